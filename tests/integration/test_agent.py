"""`downstaird agent` with real regions: agents and regions killed at any moment."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from downstaird.agent.core.intent import (
    Intent,
    Wanted,
    moved,
    requested,
    snapshot_asked,
    snapshot_moved,
    snapshot_unasked,
)
from downstaird.agent.core.region_states import RegionEvent
from downstaird.agent.core.snapshot_wishes import WishEvent
from downstaird.agent.intent_store import IntentStore
from stairlib.model.errors import LimitError, StateError, UnavailableError
from stairlib.model.geometry import Geometry
from stairlib.rpc.channel import open_channel
from stairlib.rpc.health_check import check
from stairlib.rpc.tls import TlsFiles
from stairwell.agent.v1 import agent_service_pb2 as pb
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from stairwell.downstairs.v1 import region_service_pb2_grpc as region_grpc
from tests.certificates import Authority
from tests.integration.agent import DESTROYED, FAILED, FAILED_SNAPSHOT, RUNNING, TAKEN, agent_on
from tests.integration.cluster import (
    BIN,
    BLOCK_SIZE,
    BLOCKS_PER_EXTENT,
    DEADLINE,
    EXTENT_COUNT,
    LOOK_SECONDS,
    LOOPBACK,
    Cluster,
    Program,
    run,
)
from tests.integration.volume import Volume
from tests.ports import free_ports

pytestmark = [pytest.mark.processes]

SHAPE_FLAGS = ("--block-size", str(BLOCK_SIZE), "--extent-size", str(BLOCKS_PER_EXTENT))
SHAPE = Geometry(BLOCK_SIZE, BLOCKS_PER_EXTENT, EXTENT_COUNT)


@pytest.mark.long
async def test_an_agent_that_is_killed_leaves_its_regions_to_the_next(tmp_path: Path) -> None:
    async with agent_on(tmp_path, 2) as agent:
        first, second = await agent.create(), await agent.create()
        before = await agent.serving(first, second)
        assert [region.port for region in before] == list(agent.ports)
        with pytest.raises(LimitError) as failed:
            await agent.create()
        assert failed.value.reason == "NO_PORTS"
        assert await agent.create(first) == first

        # Two agents on one root.
        rival = agent.another()
        rival.launch()
        assert await rival.ended() == 1
        assert "another agent keeps the regions" in rival.tail()

        # With all of its process group, as by Ctrl-C on a terminal.
        agent.program.sweep()
        # A region dies while nobody looks after it: the next agent starts it, and takes the other.
        os.kill(before[0].process.pid, signal.SIGKILL)
        await agent.again()
        after = await agent.serving(first, second)
        assert after[0].process.pid != before[0].process.pid
        assert after[1].process.pid == before[1].process.pid
        assert [region.process.adopted for region in after] == [False, True]
        assert not any(region.process.outdated for region in after)

        # One that was taken over is started again as well.
        os.kill(after[1].process.pid, signal.SIGKILL)
        again = await agent.until_one(
            second,
            lambda one: one.process.state == RUNNING and one.process.pid != after[1].process.pid,
        )
        assert again.process.restarts == 1

        # The end of the agent is not that of its regions, unless it is told so.
        assert await agent.program.end() == 0
        assert len(agent.processes()) == 2
        await agent.again("--on-stop", "stop")
        await agent.serving(first, second)
        assert await agent.program.end() == 0
        assert not agent.processes()

        # A port comes back when its region is gone.
        await agent.again()
        await agent.destroy(first)
        await agent.gone(first)
        third = await agent.create()
        (region,) = await agent.serving(third)
        assert region.port == before[0].port


async def test_a_region_that_somebody_serves_by_hand_is_left_to_him(tmp_path: Path) -> None:
    async with agent_on(tmp_path, 1) as agent:
        region = await agent.create()
        (before,) = await agent.serving(region)
        agent.program.kill()
        os.kill(before.process.pid, signal.SIGKILL)
        by_hand = in_service(agent.root / "regions" / region, free_ports(1))
        await agent.again()
        await agent.until_one(region, lambda one: "in use" in one.process.trouble)
        assert by_hand.poll() is None
        by_hand.terminate()
        assert by_hand.wait(DEADLINE) == 0
        await agent.serving(region)


async def test_every_half_done_state_is_gone_on_with(tmp_path: Path) -> None:
    """What an agent leaves that is killed at a step: its record, and what may be on the disk."""
    names = ["requested", "creating", "creating-orphan", "created", "destroying", "destroying-half"]
    ids = {name: str(uuid.uuid4()) for name in names}
    async with agent_on(tmp_path, len(names), start=False) as agent:
        store = IntentStore(agent.root)
        intent = store.open()
        for name, port in zip(names, agent.ports, strict=True):
            intent = recorded(intent, uuid.UUID(ids[name]), name, port)
        store.store(intent)
        store.close()
        regions = agent.root / "regions"
        # A creation was cut off in the middle.
        (regions / ids["creating"]).mkdir()
        (regions / ids["creating"] / "region.json").write_text("{")
        # Another still goes on, with nobody to hear of its end.
        orphan = creation_that_hangs(tmp_path, regions / ids["creating-orphan"])
        count = ("--extent-count", str(EXTENT_COUNT))
        for name in ("created", "destroying"):
            made = await run(
                "downstaird",
                "create",
                "-d",
                regions / ids[name],
                "-u",
                ids[name],
                *SHAPE_FLAGS,
                *count,
            )
            made.good()
        # One that is to go still serves; of another half of the files are gone.
        serving = in_service(regions / ids["destroying"], agent.ports[names.index("destroying")])
        shutil.copytree(regions / ids["created"], regions / ids["destroying-half"], symlinks=True)
        (regions / ids["destroying-half"] / "region.json").unlink(missing_ok=True)

        await agent.program.start()
        await agent.call("GetHost", pb.GetHostRequest())
        alive = [ids[name] for name in names[:4]]
        for region in await agent.serving(*alive):
            assert await named(region.address) == region.id
        await agent.gone(ids["destroying"], ids["destroying-half"])
        assert serving.wait(DEADLINE) == 0
        assert orphan.wait(DEADLINE) == 7
        # The same intent once more changes nothing.
        pids = sorted(agent.processes())
        agent.program.kill()
        await agent.again()
        await agent.serving(*alive)
        assert sorted(agent.processes()) == pids


def recorded(intent: Intent, region: uuid.UUID, name: str, port: int) -> Intent:
    events = {
        "requested": (),
        "creating": (RegionEvent.CREATE_BEGUN,),
        "created": (RegionEvent.CREATE_BEGUN, RegionEvent.CREATE_DONE),
        "destroying": (RegionEvent.CREATE_BEGUN, RegionEvent.DESTROY_ASKED),
    }
    intent = requested(intent, Wanted(region, SHAPE), port)
    for event in events[name.partition("-")[0]]:
        intent = moved(intent, region, event)
    return intent


def in_service(directory: Path, port: int) -> subprocess.Popen[bytes]:
    """A region's process that another agent left; returns once it serves."""
    process = subprocess.Popen(
        [
            *(str(BIN / "downstaird"), "run", "-d", str(directory)),
            *("-p", str(port), "-a", LOOPBACK),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline().startswith(b"ready")
    return process


def creation_that_hangs(folder: Path, directory: Path) -> subprocess.Popen[bytes]:
    """A creation that never ends, with the arguments of a real one. Its status is 7 when it is told
    to end before there is a region in its place."""
    program = folder / "downstaird"
    program.write_text(
        "#!/bin/sh\n"
        f"trap 'kill $!; test -e {directory}/region.json && exit 8; exit 7' TERM\n"
        "sleep 600 & wait\n"
    )
    program.chmod(0o755)
    return subprocess.Popen([str(program), "create", "-d", str(directory), "-u", "x"])


async def named(address: str) -> str:
    """The id of the region that answers there."""
    async with open_channel(address) as channel:
        stub = region_grpc.RegionServiceStub(channel)
        reply = await stub.GetRegion(region_pb.GetRegionRequest(), timeout=DEADLINE)
    return reply.region.id


async def test_killed_right_after_each_answer_it_keeps_its_word(tmp_path: Path) -> None:
    async with agent_on(tmp_path, 2) as agent:
        kept, dropped = await agent.create(), await agent.create()
        agent.program.kill()
        await agent.again()
        # A destruction races a creation that has just begun again.
        await agent.destroy(dropped)
        agent.program.kill()
        await agent.again()
        await agent.serving(kept)
        await agent.gone(dropped)
        await agent.destroy(kept)
        agent.program.kill()
        await agent.again()
        await agent.gone(kept)
        assert (await agent.destroy(kept)).state == DESTROYED
        facts = await agent.call("GetHost", pb.GetHostRequest())
        assert (facts.regions, facts.ports_free, facts.provisioned_bytes) == (0, 2, 0)


@pytest.mark.long
async def test_snapshots_are_gone_on_with_and_need_no_process(tmp_path: Path) -> None:
    """As an agent leaves them that is killed at a step; then with nobody to serve the region."""
    states = ["requested", "taking", "taking-done", "deleting", "deleting-done"]
    region = uuid.uuid4()
    directory = tmp_path / "root" / "regions" / str(region)
    async with agent_on(tmp_path, 1, start=False) as agent:
        store = IntentStore(agent.root)
        intent = recorded(store.open(), region, "created", agent.ports[0])
        for name in states:
            intent = snapshot_recorded(intent, region, name)
        store.store(intent)
        store.close()
        made = [*("downstaird", "create", "-d", directory, "-u", str(region)), *SHAPE_FLAGS]
        (await run(*made, "--extent-count", str(EXTENT_COUNT))).good()
        for name in ("taking-done", "deleting", "theirs"):
            (await run("downstaird", "snapshot", "create", "-d", directory, name)).good()

        expected = {
            **dict.fromkeys(("requested", "taking", "taking-done"), (TAKEN, True, True)),
            "theirs": (TAKEN, False, True),
        }
        await agent.program.start()
        await agent.call("GetHost", pb.GetHostRequest())
        await agent.snapshots(str(region), lambda found: found == expected)

        # A name that is not ours, and the region with all it has.
        await agent.snapshot("CreateSnapshot", str(region), "theirs")
        refused = (FAILED_SNAPSHOT, True, False)
        await agent.snapshots(str(region), lambda found: found.get("theirs") == refused)
        with pytest.raises(StateError) as kept:
            await agent.destroy(str(region))
        assert kept.value.reason == "REGION_HAS_SNAPSHOTS"
        assert (await agent.region(str(region))).used_bytes > 0

        # Another program gets the port the moment its process dies.
        (serving,) = await agent.serving(str(region))
        agent.program.kill()
        os.kill(serving.process.pid, signal.SIGKILL)
        with squatter(agent.ports[0]):
            await agent.again()
            waits = pb.PROCESS_STATE_WAITING
            await agent.until_one(str(region), lambda one: one.process.state == waits)
            await agent.snapshot("CreateSnapshot", str(region), "at-rest")
            await agent.snapshot("DeleteSnapshot", str(region), "taking")
            del expected["taking"]
            expected |= {"at-rest": (TAKEN, True, True), "theirs": refused}
            await agent.snapshots(str(region), lambda found: found == expected)
            told = await agent.region(str(region))
            assert "in use by another program" in told.process.last_error
            # Of what it printed when it served nothing is told as the reason.
            assert "ready" not in told.process.last_error
        (again,) = await agent.serving(str(region))
        assert not again.process.trouble
        assert "in use by another program" in again.process.last_error
        await agent.snapshots(str(region), lambda found: found == expected)
        await agent.call(
            "DestroyRegion", pb.DestroyRegionRequest(id=str(region), with_snapshots=True)
        )
        await agent.gone(str(region))


def snapshot_recorded(intent: Intent, region: uuid.UUID, name: str) -> Intent:
    if name.startswith("deleting"):
        return snapshot_unasked(intent, region, name)
    intent = snapshot_asked(intent, region, name)
    if name.startswith("taking"):
        intent = snapshot_moved(intent, region, name, WishEvent.TAKE_BEGUN)
    return intent


@contextlib.contextmanager
def squatter(port: int) -> Iterator[None]:
    """Somebody else listens there."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        end = time.monotonic() + DEADLINE
        while True:
            try:
                taken.bind((LOOPBACK, port))
                break
            except OSError:
                # The process that had it was killed and is not gone yet.
                assert time.monotonic() < end
                time.sleep(LOOK_SECONDS)
        taken.listen()
        yield


async def test_a_copy_is_made_of_a_region_served_read_only(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"golden" * 100_000)
    source, port = tmp_path / "source", free_ports(1)
    made = await run(
        *("downstaird", "create", "-d", source, "-u", str(uuid.uuid4()), *SHAPE_FLAGS),
        *("--import-path", image),
    )
    extents = int(made.good().out.split(" extents")[0].rsplit(" ", 1)[1])
    served = ["downstaird", "run", "-d", str(source), "-p", str(port), "-a", LOOPBACK]
    writable = Program("source", served, port, tmp_path / "source.log", {})
    readable = Program("source", [*served, "--mode", "ro"], port, tmp_path / "source.log", {})
    async with agent_on(tmp_path / "agent", 2) as agent:
        try:
            # The program's own reason is told, and what failed can be left.
            await writable.start()
            refused = await agent.create(source=writable.address, extents=extents)
            (failed,) = await agent.until([refused], lambda one: one.state == FAILED)
            assert "is served for writing" in failed.reason
            await agent.destroy(refused)
            await agent.gone(refused)
            await writable.end()
            await readable.start()
            copy = await agent.create(source=readable.address, extents=extents)
            (region,) = await agent.serving(copy)
            assert region.read_only
        finally:
            writable.sweep()
            readable.sweep()
        assert await agent.program.end() == 0
        await agent.again("--on-stop", "stop")
        await agent.serving(copy)
        await agent.program.end()
        whole = tmp_path / "whole"
        exported = await run(
            "downstaird", "export", "-d", agent.root / "regions" / copy, "-e", whole
        )
        exported.good()
        assert whole.read_bytes().startswith(image.read_bytes())


async def test_with_certificates_agent_and_regions_speak_tls_and_tell_no_key(
    tmp_path: Path,
) -> None:
    files = Authority(tmp_path / "certificates").issue("host", LOOPBACK)
    async with agent_on(tmp_path / "agent", 1, tls=files) as agent:
        (region,) = await agent.serving(await agent.create())
        assert (await agent.call("GetHost", pb.GetHostRequest())).tls
        assert await check(region.address, tls=files) == "SERVING"
        for address in (region.address, agent.program.address):
            with pytest.raises(UnavailableError):
                await check(address)
        agent.program.kill()
        await agent.again()
        (again,) = await agent.serving(region.id)
        assert again.process.pid == region.process.pid
        told = str(again) + agent.program.log.read_text()
        told += "".join(each.read_text() for each in agent.root.glob("agent.intent*"))
        told += "".join(each.read_text() for each in (agent.root / "output").iterdir())
        assert "ready" in told
        assert key_text(files)[:32] not in told
        assert files.key not in str(again)


def key_text(files: TlsFiles) -> str:
    """What no answer and no file but its own may hold."""
    return "".join(Path(files.key).read_text().splitlines()[1:-1])


@pytest.mark.long
async def test_a_volume_goes_on_while_its_agent_is_killed_and_replaced(tmp_path: Path) -> None:
    async with (
        Cluster.started(tmp_path / "cluster") as cluster,
        agent_on(tmp_path / "agent", 3) as agent,
    ):
        regions = [await agent.create() for _ in range(3)]
        members = await agent.serving(*regions)
        volume = OfAddresses(cluster, [member.address for member in members])
        await volume.create()
        await volume.run()
        await volume.settled()
        async with volume.load() as load:
            agent.program.kill()
            await load.goes_on()
            await agent.again()
            assert [one.process.pid for one in await agent.serving(*regions)] == [
                one.process.pid for one in members
            ]
            await load.goes_on()
            # A member that dies is started again by the agent, and repaired by the volume.
            os.kill(members[2].process.pid, signal.SIGKILL)
            await volume.slot_not_active(2)
            await volume.settled()
        await volume.read_back()
        await volume.verify()
        await volume.stop()


class OfAddresses(Volume):
    """A volume of regions that others made."""

    def __init__(self, cluster: Cluster, addresses: list[str]) -> None:
        super().__init__(cluster, [])
        self._addresses = addresses

    @property
    def targets(self) -> list[str]:
        return list(self._addresses)
