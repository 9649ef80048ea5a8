"""An encrypted disk on real processes, all logging whatever they can: its data is right, and its
key is found in no file, log, reply, trace or process list."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf import json_format

from stairlib.model.cipher import CIPHERS, DEFAULT_CIPHER
from stairlib.model.errors import StairwellError
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import disk_service_pb2_grpc as disk_grpc
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import instance_service_pb2_grpc as instance_grpc
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.controlplane.v1 import replacement_service_pb2_grpc as replacement_grpc
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from stairwell.downstairs.v1 import region_service_pb2_grpc as region_grpc
from stairwell.vmmd.v1 import machine_service_pb2 as machine_pb
from stairwell.vmmd.v1 import machine_service_pb2_grpc as machine_grpc
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from stairwell.vmmd.v1 import volume_service_pb2_grpc as volume_grpc
from tests.integration.cluster import MIB, Answer, Cluster, children
from tests.integration.nbd_client import NbdClient
from tests.integration.test_bundle import bundled_files
from tests.integration.volume import Volume, fresh_volume

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

# Readable in a dump, and without a form of itself that could stand there by chance.
RAW = b"this-is-the-key-of-the-test-disk"
KEY = base64.b64encode(RAW).decode()
MARK = b"plain text of the guest, to be found nowhere " * 3
FORMS = {
    "raw": RAW,
    # Parts, so that what is given out of a key that was mistyped is found too.
    "base64": KEY[:24].encode(),
    "base64, lower": KEY[:24].lower().encode(),
    "hex": RAW.hex().encode(),
    "hex, upper": RAW.hex().upper().encode(),
    "repr": repr(list(RAW))[1:-1].encode(),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("encryption") / "cluster")
    for program in (made.vmmd, made.controlplane):
        program.command += ["--log-level", "debug"]
    try:
        await asyncio.gather(made.vmmd.start(), made.controlplane.start())
        yield made
    finally:
        await made.close()


# The default suite is for every run of the tests.
SUITES = [
    pytest.param(cipher, marks=[] if cipher == DEFAULT_CIPHER else pytest.mark.long)
    for cipher in CIPHERS
]


@pytest_asyncio.fixture(loop_scope="module", params=SUITES)
async def volume(cluster: Cluster, request: pytest.FixtureRequest) -> AsyncIterator[Volume]:
    async with fresh_volume(cluster, key=KEY, cipher=request.param) as made:
        yield made


def files(*folders: Path) -> Iterator[tuple[str, bytes]]:
    """Every file there with what it holds; of sparse ones, without the holes."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if stat.S_ISREG(path.lstat().st_mode):
                yield str(path), contents(path)


def contents(path: Path) -> bytes:
    """What a file holds, its holes left out."""
    pieces, end = [], 0
    with path.open("rb") as file:
        size = path.stat().st_size
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:  # nothing behind `end`
                break
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            pieces.append(os.pread(file.fileno(), end - start, start))
    return b"".join(pieces)


def process_lists(cluster: Cluster) -> Iterator[tuple[str, bytes]]:
    """Command line and environment of every process of the cluster."""
    pids = [program.pid for program in cluster.programs if program.is_running]
    pids += [child for pid in pids for child in children(pid)]
    for pid in pids:
        for name in ("cmdline", "environ"):
            yield f"{name} of {pid}", Path(f"/proc/{pid}/{name}").read_bytes()


class Heard:
    """Everything that anybody was told: replies, errors, and what commands print."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.texts: list[tuple[str, bytes]] = []

    async def call(self, stub: type, method: str, request: Any, *, at: str = "") -> Any:
        """A call; an error is an answer as well."""
        try:
            answer = await self.volume.cluster.call(stub, method, request, at=at)
        except StairwellError as error:
            text = f"{error!r} {error.metadata} {getattr(error, 'violations', '')}"
            self.texts.append((method, text.encode()))
            return error
        self.texts.append((method, f"{answer}".encode() + answer.SerializeToString()))
        return answer

    async def cli(self, *words: str | Path) -> Answer:
        """A command."""
        answer = await self.volume.cluster.cli(*words)
        self.texts.append((" ".join(map(str, words)), (answer.out + answer.err).encode()))
        return answer

    async def everything(self, replacement: str) -> None:
        """Asks whatever can be asked about the disk."""
        volume, vmmd = self.volume, self.volume.cluster.vmmd.address
        disks, instances = disk_grpc.DiskServiceStub, instance_grpc.InstanceServiceStub
        replacements = replacement_grpc.ReplacementServiceStub
        by_machine = {"machine_id": volume.instance_id}
        await self.call(disks, "GetDisk", disk_pb.GetDiskRequest(name=volume.disk))
        await self.call(disks, "ListDisks", disk_pb.ListDisksRequest())
        await self.call(
            instances, "GetInstance", instance_pb.GetInstanceRequest(name=volume.instance)
        )
        await self.call(instances, "ListInstances", instance_pb.ListInstancesRequest())
        await self.call(
            replacements, "GetReplacement", replacement_pb.GetReplacementRequest(id=replacement)
        )
        await self.call(
            replacements,
            "GetReplacementTrace",
            replacement_pb.GetReplacementTraceRequest(id=replacement),
        )
        await self.call(
            machine_grpc.MachineServiceStub,
            "GetMachine",
            machine_pb.GetMachineRequest(id=volume.instance_id),
            at=vmmd,
        )
        await self.call(
            volume_grpc.VolumeServiceStub,
            "GetVolumeInfo",
            volume_pb.GetVolumeInfoRequest(**by_machine, disk=volume.disk),
            at=vmmd,
        )
        for words in (("disk", "status"), ("instance", "list"), ("trace", replacement)):
            await self.cli(*words)
            await self.cli(*words, "--output", "json")

    async def mistakes(self) -> None:
        """Requests with the key in them that are refused."""
        volume = self.volume
        disks, instances = disk_grpc.DiskServiceStub, instance_grpc.InstanceServiceStub
        for change in ({"key": KEY[:-4]}, {"key": KEY + "!"}, {"key": KEY.lower()}, {"key": None}):
            vcr = volume.changed(generation=9)
            vcr["sub_volumes"][0]["opts"].update(change)
            request = disk_pb.ReplaceVcrRequest(name=volume.disk, vcr_json=json.dumps(vcr))
            assert isinstance(await self.call(disks, "ReplaceVcr", request), StairwellError)
        text = json.dumps(volume.changed())[:-9]
        request = disk_pb.ReplaceVcrRequest(name=volume.disk, vcr_json=text)
        assert isinstance(await self.call(disks, "ReplaceVcr", request), StairwellError)
        again = instance_pb.CreateInstanceRequest(name=volume.instance)
        json_format.ParseDict({**volume.spec(), "name": "other"}, again.disks.add())
        assert isinstance(await self.call(instances, "CreateInstance", again), StairwellError)


def assert_nowhere(found: Iterator[tuple[str, bytes]]) -> int:
    """None of the places holds the key in any form, or what the guest wrote; how many there are."""
    count = 0
    for name, text in found:
        count += 1
        for form, needle in FORMS.items():
            assert needle not in text, f"{name} holds the key, {form}"
        assert MARK not in text, f"{name} holds plain text"
    return count


async def test_the_data_is_right_and_the_key_is_nowhere(volume: Volume) -> None:
    cluster, heard = volume.cluster, Heard(volume)
    await volume.settled()
    uri = (await volume.info()).volume.nbd_uri
    with NbdClient(uri) as client:
        client.write(63 * MIB, MARK.ljust(65536, b"."))
        client.flush()
    await volume.fill(8 * MIB)
    # The control plane begins anew: the key comes back out of its store.
    cluster.controlplane.kill()
    await cluster.controlplane.start()
    async with volume.load() as load:
        answer = await volume.replace()
        await volume.done(answer.replacement_id)
        await load.goes_on()
    await heard.mistakes()
    await heard.everything(answer.replacement_id)
    assert_nowhere(process_lists(cluster))
    await volume.settled()
    await volume.verify()
    await volume.read_back()
    with NbdClient(uri) as client:
        assert client.read(63 * MIB, 4096).startswith(MARK)
    members = [volume.downstairs[number] for number in (0, 1, 3)]
    for member in members:
        told = await heard.call(
            region_grpc.RegionServiceStub, "GetRegion", region_pb.GetRegionRequest(),
            at=member.address,
        )  # fmt: skip
        assert told.region.cipher in CIPHERS
    (region,) = (await volume.info()).volume.regions
    assert region.cipher == told.region.cipher
    assert assert_nowhere(iter(heard.texts)) > 20
    held = dict(files(cluster.folder, cluster.sockets))
    assert assert_nowhere(iter(held.items())) > 20
    archive = cluster.folder / f"bundle-{volume.disk}.tar.gz"
    (await cluster.cli("bundle", "--file", archive)).good()
    assert assert_nowhere(iter((await asyncio.to_thread(bundled_files, archive)).items())) > 5
    # The search does find what is there: the disk in the store, the machine in the logs.
    for place, needle in (("controlplane/", volume.id), ("vmmd.log", volume.instance_id)):
        assert any(place in name and needle.encode() in text for name, text in held.items())


async def test_a_wrong_key_stops_the_machine_before_it_writes(volume: Volume) -> None:
    """As somebody mistypes it who makes the machine anew for a disk that there is."""
    await volume.settled()
    data = random.Random(8).randbytes(MIB)
    with NbdClient((await volume.info()).volume.nbd_uri) as client:
        client.write(5 * MIB, data)
        client.flush()
    await volume.stop()
    await volume.delete()
    right, volume.key = volume.key, base64.b64encode(b"?" * 32).decode()
    await volume.create(generation=2)
    await volume.set_state(instance_pb.REQUESTED_STATE_RUN)
    failed = await volume.reach(instance_pb.INSTANCE_STATE_FAILED)
    assert "the key is not the one that the region was first activated with" in failed.reason
    assert volume.key not in str(failed)
    await volume.delete()
    volume.key = right
    # Not even the generation was taken.
    await volume.create(generation=2)
    await volume.run()
    await volume.settled()
    with NbdClient((await volume.info()).volume.nbd_uri) as client:
        assert client.read(5 * MIB, MIB) == data
    await volume.verify()
