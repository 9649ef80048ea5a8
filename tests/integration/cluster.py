"""An installation of real processes for the scenario tests: started, tormented, and cleaned up.

`Cluster` keeps one vmmd and one control plane and any number of downstairs, each on a fixed port of
its own, so that a program that was killed comes back at the same address. `Volume` is a disk of
three members and a spare with its machine, and what tests do to it. Ports are taken below the range
the system hands out by itself: nobody takes one while its owner is down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
from google.protobuf import json_format

from stairlib.model.errors import StairwellError
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.health_check import check
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import disk_service_pb2_grpc as disk_grpc
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import instance_service_pb2_grpc as instance_grpc
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.controlplane.v1 import replacement_service_pb2_grpc as replacement_grpc
from stairwell.vcr.v1.volume_construction_request_pb2 import VolumeConstructionRequest
from stairwell.vmmd.v1 import guest_service_pb2 as guest_pb
from stairwell.vmmd.v1 import guest_service_pb2_grpc as guest_grpc
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from stairwell.vmmd.v1 import volume_service_pb2_grpc as volume_grpc
from stairwell.vmmd.v1.guest_service_pb2 import Workload, WorkloadKind, WorkloadReport

LOOPBACK = "127.0.0.1"
# Not a measure of speed: others may have the machine at the same time.
DEADLINE = 60.0
# Between looks at what cannot be waited for.
LOOK_SECONDS = 0.03
STOP_SECONDS = 15.0
BLOCK_SIZE = 4096
BLOCKS_PER_EXTENT = 256
EXTENT_COUNT = 64
MIB = 1 << 20
BIN = Path(sys.executable).parent

T = TypeVar("T")

VOLUME_ACTIVE = volume_pb.VOLUME_STATE_ACTIVE
SLOT_ACTIVE = volume_pb.SLOT_STATE_ACTIVE
DONE = replacement_pb.REPLACEMENT_STATE_DONE
FAILED = replacement_pb.REPLACEMENT_STATE_FAILED
_MIXED = WorkloadKind.WORKLOAD_KIND_MIXED


def is_free(port: int) -> bool:
    """Whether the port can be taken now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(2.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


def free_ports(count: int, step: int = 1) -> int:
    """The first of `count` ports, `step` apart, that are free now, as are those after each."""
    for _ in range(500):
        base = random.randrange(10_000, 30_000, 10)
        if all(is_free(base + step * n + more) for n in range(count) for more in (0, 1)):
            return base
    raise AssertionError("no free ports")


async def until(
    look: Callable[[], Awaitable[T]], wanted: Callable[[T], object], seconds: float = DEADLINE
) -> T:
    """Looks again and again until what is seen is wanted; AssertionError with the last look."""
    end = time.monotonic() + seconds
    while True:
        seen = await look()
        if wanted(seen):
            return seen
        assert time.monotonic() < end, f"not as wanted after {seconds:g} s:\n{seen}"
        await asyncio.sleep(LOOK_SECONDS)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command came to."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output as a JSON document."""
        return json.loads(self.out)

    def good(self) -> Self:
        """Itself, if it succeeded."""
        assert self.status == 0, self.out + self.err
        return self

    def bad(self, *words: str) -> Self:
        """Itself, if it failed as a user's mistake should: in words, and with these among them."""
        text = self.out + self.err
        assert self.status not in (0, None), text
        assert "Traceback" not in text, text
        for word in words:
            assert word in self.err, f"{word!r} is not in:\n{text}"
        return self


async def run(*command: str | Path, env: dict[str, str] | None = None) -> Answer:
    """Runs a command of this installation to its end."""
    name, *arguments = map(str, command)
    process = await asyncio.create_subprocess_exec(
        str(BIN / name) if (BIN / name).exists() else name,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    try:
        async with asyncio.timeout(DEADLINE):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Answer(process.returncode, out.decode(), err.decode())


class Program:
    """One daemon at one address. It leads a process group, which ends with it."""

    def __init__(
        self, name: str, command: Sequence[str], port: int, log: Path, env: dict[str, str]
    ) -> None:
        self.name = name
        self.command = list(command)
        self.port = port
        self.address = f"{LOOPBACK}:{port}"
        self.log = log
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Starts it; `serving` waits for it."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(BIN / self.command[0]), *self.command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self._env},
            )

    async def serving(self) -> None:
        """Returns when its health says SERVING."""

        async def look() -> bool:
            assert self.is_running, f"{self.name} ended:\n{self.tail()}"
            # A refused channel backs off: asked only once something listens.
            if not listens(self.port):
                return False
            with contextlib.suppress(StairwellError):
                return await check(self.address, seconds=2.0) == "SERVING"
            return False

        await until(look, bool)

    async def start(self) -> None:
        """Starts it and returns when it serves."""
        self.launch()
        await self.serving()

    def signal(self, number: int) -> None:
        """Sends a signal to the process alone."""
        if self.is_running:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, as a host that loses power; returns when it is gone."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(DEADLINE)

    async def end(self, seconds: float = DEADLINE) -> int:
        """SIGTERM; the exit status once it has ended."""
        self.signal(signal.SIGTERM)
        return await self.ended(seconds)

    async def ended(self, seconds: float = DEADLINE) -> int:
        """The exit status once it has ended by itself."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, seconds)

    def sweep(self) -> None:
        """Kills what is left of its group."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def children(pid: int) -> list[int]:
    """The processes a process has started."""
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for each in listed for word in each.read_text().split()]


class Cluster:
    """See the module. Use `started`; everything a test adds goes away with it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.sockets = Path(tempfile.mkdtemp(prefix="sw-"))
        self.env = {"TMPDIR": str(self.sockets), "XDG_RUNTIME_DIR": str(self.sockets)}
        self.programs: list[Program] = []
        (folder / "server.toml").touch()
        self.vmmd = self._daemon("vmmd", ["vmmd", "run", str(folder / "server.toml")])
        data = ["--vmmd", self.vmmd.address, "--data", str(folder / "controlplane")]
        self.controlplane = self._daemon("controlplane", ["controlplane", "run"], data)
        self._channels: dict[str, grpc.aio.Channel] = {}

    def _daemon(self, name: str, words: list[str], more: Sequence[str] = ()) -> Program:
        port = free_ports(1)
        return self.program(name, [*words, f"{LOOPBACK}:{port}", *more], port)

    def program(self, name: str, command: Sequence[str], port: int) -> Program:
        """A program of this cluster; not yet started."""
        found = Program(name, command, port, self.folder / f"{name}.log", self.env)
        self.programs.append(found)
        return found

    def downstairs(
        self,
        *,
        block_size: int = BLOCK_SIZE,
        blocks_per_extent: int = BLOCKS_PER_EXTENT,
        extent_count: int = EXTENT_COUNT,
    ) -> Program:
        """A new downstairs with an empty region; not yet started."""
        port = free_ports(1)
        # A port may be used again by a later one, a region must not.
        name = f"downstairs-{port}-{uuid.uuid4().hex[:6]}"
        command = [
            "downstaird", "run", "--create", "-u", str(uuid.uuid4()),
            "-d", str(self.folder / name), "-p", str(port), "-a", LOOPBACK,
            "--block-size", str(block_size), "--extent-size", str(blocks_per_extent),
            "--extent-count", str(extent_count),
        ]  # fmt: skip
        return self.program(name, command, port)

    @classmethod
    @asynccontextmanager
    async def started(cls, folder: Path) -> AsyncIterator[Cluster]:
        """A cluster with its vmmd and control plane running."""
        cluster = cls(folder)
        try:
            await asyncio.gather(cluster.vmmd.start(), cluster.controlplane.start())
            yield cluster
        finally:
            await cluster.close()

    async def close(self) -> None:
        """Ends everything, gently first."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
        self.remove(self.programs)
        shutil.rmtree(self.sockets, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove(self, programs: Sequence[Program]) -> None:
        """Ends programs and forgets them."""
        programs = list(programs)
        try:
            for program in reversed(programs):
                program.signal(signal.SIGCONT)
                program.signal(signal.SIGTERM)
            end = time.monotonic() + STOP_SECONDS
            while time.monotonic() < end and any(program.is_running for program in programs):
                time.sleep(LOOK_SECONDS)
        finally:
            for program in programs:
                program.sweep()
        self.programs = [each for each in self.programs if each not in programs]

    # ----- asking

    async def cli(self, *words: str | Path, server: str = "") -> Answer:
        """`stairwell` with these words, sent to the control plane."""
        host, _, port = (server or self.controlplane.address).rpartition(":")
        return await run("stairwell", "-s", host, "-p", port, *words, env=self.env)

    def channel(self, address: str) -> grpc.aio.Channel:
        """The channel to a daemon, opened once."""
        if address not in self._channels:
            self._channels[address] = open_channel(address)
        return self._channels[address]

    async def call(self, stub: type, method: str, request: Any, *, at: str = "") -> Any:
        """One call, by default of the control plane; failures come back as typed errors."""
        address = at or self.controlplane.address
        with translated(address):
            bound = getattr(stub(self.channel(address)), method)
            return await bound(request, timeout=DEADLINE, wait_for_ready=True)

    async def get_disk(self, name: str) -> disk_pb.Disk:
        """A disk as the control plane tells it."""
        request = disk_pb.GetDiskRequest(name=name)
        disk: disk_pb.Disk = (await self.call(disk_grpc.DiskServiceStub, "GetDisk", request)).disk
        return disk

    async def get_instance(self, name: str) -> instance_pb.Instance:
        """An instance as the control plane tells it."""
        request = instance_pb.GetInstanceRequest(name=name)
        answer = await self.call(instance_grpc.InstanceServiceStub, "GetInstance", request)
        instance: instance_pb.Instance = answer.instance
        return instance

    async def get_replacement(self, name: str) -> replacement_pb.Replacement:
        """A replacement as the control plane tells it."""
        stub = replacement_grpc.ReplacementServiceStub
        request = replacement_pb.GetReplacementRequest(id=name)
        found: replacement_pb.Replacement = (
            await self.call(stub, "GetReplacement", request)
        ).replacement
        return found

    async def replacements(self, disk: str = "") -> list[replacement_pb.Replacement]:
        """All replacements of a disk, or of all."""
        stub = replacement_grpc.ReplacementServiceStub
        request = replacement_pb.ListReplacementsRequest(disk=disk)
        return list((await self.call(stub, "ListReplacements", request)).replacements)

    # ----- volumes

    @asynccontextmanager
    async def volume(self, *, run: bool = True) -> AsyncIterator[Volume]:
        """A machine with a disk of three fresh members and a started spare."""
        programs = [self.downstairs() for _ in range(4)]
        volume = Volume(self, programs)
        try:
            await asyncio.gather(*(program.start() for program in programs))
            await volume.create()
            if run:
                await volume.run()
            yield volume
        finally:
            with contextlib.suppress(StairwellError, AssertionError):
                await volume.delete()
            self.remove(volume.downstairs)


class Volume:
    """A disk and its machine. `downstairs` holds the first three members, then spares."""

    def __init__(self, cluster: Cluster, downstairs: Sequence[Program]) -> None:
        self.cluster = cluster
        self.downstairs = list(downstairs)
        self.id = str(uuid.uuid4())
        self.disk = f"disk-{self.id[:8]}"
        self.instance = f"vm-{self.id[:8]}"
        self.instance_id = ""

    @property
    def targets(self) -> list[str]:
        """The addresses of the first three members."""
        return [program.address for program in self.downstairs[:3]]

    @property
    def spare(self) -> Program:
        """The first downstairs that is no member at first."""
        return self.downstairs[3]

    def vcr(self, generation: int, targets: Sequence[str], **shape: int) -> dict[str, Any]:
        """A construction request of this volume; `shape` overrides its geometry."""
        region = {
            "type": "region",
            "block_size": BLOCK_SIZE,
            "blocks_per_extent": BLOCKS_PER_EXTENT,
            "extent_count": EXTENT_COUNT,
            "gen": generation,
            "opts": {
                "id": self.id, "target": list(targets), "lossy": False, "read_only": False,
            },
        }  # fmt: skip
        region.update(shape)
        size = region["block_size"]
        return {"type": "volume", "id": self.id, "block_size": size, "sub_volumes": [region]}

    def changed(self, slot: int = 2, target: str = "", generation: int = 2) -> dict[str, Any]:
        """The request that puts `target`, by default the spare, into a slot."""
        targets = self.targets
        targets[slot] = target or self.spare.address
        return self.vcr(generation, targets)

    def spec(self, targets: Sequence[str] = (), generation: int = 1) -> dict[str, Any]:
        """The disk as a crucible-disks file has it."""
        vcr = self.vcr(generation, targets or self.targets)
        return {
            "device": "nvme", "name": self.disk, "read_only": False, "slot": 3,
            "volume_construction_request": vcr,
        }  # fmt: skip

    async def create(self, targets: Sequence[str] = (), generation: int = 1) -> None:
        """Makes the machine with the disk."""
        request = instance_pb.CreateInstanceRequest(
            name=self.instance, request_id=str(uuid.uuid4())
        )
        spec = self.spec(targets, generation)
        json_format.ParseDict(spec, request.disks.add())
        stub = instance_grpc.InstanceServiceStub
        answer = await self.cluster.call(stub, "CreateInstance", request)
        self.instance_id = answer.instance.id

    async def set_state(self, state: int) -> None:
        """Asks for a state."""
        request = instance_pb.SetInstanceStateRequest(name=self.instance)
        request.state = state  # type: ignore[assignment]
        stub = instance_grpc.InstanceServiceStub
        await self.cluster.call(stub, "SetInstanceState", request)

    async def run(self) -> None:
        """Runs the machine; returns when it does."""
        await self.set_state(instance_pb.REQUESTED_STATE_RUN)
        await self.reach(instance_pb.INSTANCE_STATE_RUNNING)

    async def stop(self) -> None:
        """Stops the machine; returns when it is gone."""
        await self.set_state(instance_pb.REQUESTED_STATE_STOP)
        await self.reach(instance_pb.INSTANCE_STATE_DESTROYED)

    async def reach(self, *states: int) -> instance_pb.Instance:
        """Waits until the instance is in one of the states."""
        return await until(
            lambda: self.cluster.get_instance(self.instance), lambda one: one.state in states
        )

    async def delete(self) -> None:
        """Removes the instance."""
        request = instance_pb.DeleteInstanceRequest(name=self.instance)
        await self.cluster.call(instance_grpc.InstanceServiceStub, "DeleteInstance", request)

    async def info(self) -> disk_pb.Disk:
        """The disk now."""
        return await self.cluster.get_disk(self.disk)

    async def slot(self, number: int) -> volume_pb.SlotInfo:
        """What the machine says of a slot."""
        return (await self.info()).volume.regions[0].slots[number]

    async def settled(self) -> None:
        """Waits until the volume and all its members are active."""

        def active(disk: disk_pb.Disk) -> bool:
            return disk.volume.state == VOLUME_ACTIVE and all(
                slot.state == SLOT_ACTIVE for region in disk.volume.regions for slot in region.slots
            )

        await until(self.info, active)

    async def slot_not_active(self, number: int) -> None:
        """Waits until the machine has noticed that a member is gone."""
        await until(lambda: self.slot(number), lambda slot: slot.state != SLOT_ACTIVE)

    async def limit(self, bytes_per_second: int) -> None:
        """Sets the repair rate at the machine, also before there is a repair; 0 lifts it."""
        request = volume_pb.SetRepairLimitsRequest(
            machine_id=self.instance_id, disk=self.disk, bytes_per_second_max=bytes_per_second
        )
        stub = volume_grpc.VolumeServiceStub
        await self.cluster.call(stub, "SetRepairLimits", request, at=self.cluster.vmmd.address)

    async def replace(self, vcr: dict[str, Any] | None = None) -> disk_pb.ReplaceVcrResponse:
        """Asks for a replacement, by default of slot 2 by the spare."""
        request = disk_pb.ReplaceVcrRequest(name=self.disk)
        json_format.ParseDict(vcr or self.changed(), request.vcr)
        answer: disk_pb.ReplaceVcrResponse = await self.cluster.call(
            disk_grpc.DiskServiceStub, "ReplaceVcr", request
        )
        return answer

    async def mid_repair(self, replacement: str, extents: int = 1) -> replacement_pb.Replacement:
        """Waits until a replacement has copied some extents; it must not be over by then."""
        found = await until(
            lambda: self.cluster.get_replacement(replacement),
            lambda one: one.extents_done >= extents or one.state in (DONE, FAILED),
        )
        assert found.state == replacement_pb.REPLACEMENT_STATE_REPAIR, found
        return found

    async def done(self, replacement: str) -> replacement_pb.Replacement:
        """Waits until a replacement has ended, which must be well."""
        found = await until(
            lambda: self.cluster.get_replacement(replacement),
            lambda one: one.state in (DONE, FAILED),
        )
        assert found.state == DONE, found
        assert found.bytes_done == found.bytes_total
        return found

    async def verify(self, members: int = 3) -> None:
        """All members hold the same, and every stored block is whole."""
        request = disk_pb.VerifyDiskRequest(name=self.disk, read_data=True)
        stub = disk_grpc.DiskServiceStub
        report = (await self.cluster.call(stub, "VerifyDisk", request)).report
        assert report.equal, report
        assert report.members_compared == members
        assert report.extents_compared == EXTENT_COUNT
        assert not report.bad_blocks

    async def workload(self, kind: WorkloadKind.ValueType, **more: Any) -> WorkloadReport:
        """Runs a workload of the guest to its end, which must be faultless."""
        last = WorkloadReport()
        async for report in self.reports(kind, **more):
            last = report
        assert last.finished
        faultless(last)
        return last

    async def fill(self, size: int = 16 * MIB, seed: int = 1) -> WorkloadReport:
        """Writes patterned data over the whole disk, and flushes."""
        return await self.workload(WorkloadKind.WORKLOAD_KIND_FILL, bytes=size, seed=seed)

    async def read_back(self) -> WorkloadReport:
        """Reads every block this guest ever wrote."""
        report = await self.workload(WorkloadKind.WORKLOAD_KIND_READ_BACK)
        assert report.bytes_read > 0
        return report

    async def reports(
        self, kind: WorkloadKind.ValueType, *, directly: bool = False, **more: Any
    ) -> AsyncIterator[WorkloadReport]:
        """The reports of a workload as they come, `directly` from vmmd if so wished."""
        workload = Workload(kind=kind, disk=self.disk, **more)
        cluster = self.cluster
        address = (cluster.vmmd if directly else cluster.controlplane).address
        with translated(address):
            if directly:
                guest = guest_grpc.GuestServiceStub(cluster.channel(address))
                stream = guest.RunWorkload(
                    guest_pb.RunWorkloadRequest(machine_id=self.instance_id, workload=workload)
                )
            else:
                instances = instance_grpc.InstanceServiceStub(cluster.channel(address))
                stream = instances.RunGuestWorkload(
                    instance_pb.RunGuestWorkloadRequest(name=self.instance, workload=workload)
                )
            try:
                async for message in stream:
                    yield message.report
            finally:
                stream.cancel()

    @asynccontextmanager
    async def load(
        self, *, seed: int = 2, queue_depth: int = 4, directly: bool = False
    ) -> AsyncIterator[Load]:
        """A verified mixed load while the block runs; in the end it must have been faultless.

        `directly`: by a call of vmmd, which outlives the control plane.
        """
        load = Load(self.reports(_MIXED, seed=seed, queue_depth=queue_depth, directly=directly))
        try:
            await load.goes_on()
            yield load
            await load.goes_on()
            faultless(load.last)
        finally:
            await load.stop()


def faultless(report: WorkloadReport) -> None:
    """The guest saw no error, and nothing it had not written."""
    assert not report.errors, report
    assert not report.mismatches, report


class Load:
    """A mixed load in the background."""

    def __init__(self, reports: AsyncIterator[WorkloadReport]) -> None:
        self.last = WorkloadReport()
        self._arrived = asyncio.Event()
        self._task = asyncio.create_task(self._run(reports))

    async def _run(self, reports: AsyncIterator[WorkloadReport]) -> None:
        async for report in reports:
            self.last = report
            self._arrived.set()

    async def _next(self) -> None:
        """Waits for the next report."""
        self._arrived.clear()
        arrival = asyncio.create_task(self._arrived.wait())
        try:
            await asyncio.wait(
                {arrival, self._task}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            arrival.cancel()
        if self._task.done():
            self._task.result()
            raise AssertionError("the load ended by itself")
        assert self._arrived.is_set(), "the load says nothing more"

    async def goes_on(self) -> None:
        """Waits until commands that began after this call have ended."""
        await self._next()
        end = time.monotonic() + DEADLINE
        before = self.last.ios
        while self.last.ios <= before:
            assert time.monotonic() < end, f"the guest's I/O stands still: {self.last}"
            await self._next()

    async def stop(self) -> None:
        """Ends it."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._task


def as_message(vcr: dict[str, Any]) -> VolumeConstructionRequest:
    """A construction request as the services take it."""
    return json_format.ParseDict(vcr, VolumeConstructionRequest())
