"""Peers of the control plane that answer what a test tells them to, over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from stairlib.model.construction import VolumeSpec, regions, total_bytes, walk
from stairlib.model.construction_diff import compare
from stairlib.model.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    StairwellError,
    UnavailableError,
)
from stairlib.rpc.server import RpcServer, Service
from stairlib.telemetry.trace_service import SERVICE_NAME, TraceServicer
from stairlib.telemetry.tracing import Tracing
from stairlib.wire.construction import from_message
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from stairwell.downstairs.v1 import region_service_pb2_grpc as region_grpc
from stairwell.telemetry.v1 import trace_service_pb2_grpc as trace_grpc
from stairwell.vmmd.v1 import guest_service_pb2 as guest_pb
from stairwell.vmmd.v1 import guest_service_pb2_grpc as guest_grpc
from stairwell.vmmd.v1 import machine_service_pb2 as machine_pb
from stairwell.vmmd.v1 import machine_service_pb2_grpc as machine_grpc
from stairwell.vmmd.v1 import volume_service_pb2 as pb
from stairwell.vmmd.v1 import volume_service_pb2_grpc as pb_grpc

# The one region of a plain disk.
FIRST = "sub_volumes[0]"
UNTIL_SECONDS = 10.0


@dataclass
class ScriptedVmmd:
    """A vmmd whose machines do nothing by themselves. `calls` logs (method, request)."""

    calls: list[tuple[str, Any]] = field(default_factory=list)
    machines: dict[str, machine_pb.Machine] = field(default_factory=dict)
    specs: dict[str, machine_pb.MachineSpec] = field(default_factory=dict)
    volumes: dict[str, pb.VolumeInfo] = field(default_factory=dict)
    reports: list[pb.VerifyReport] = field(default_factory=list)
    gates: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, list[StairwellError]] = field(default_factory=dict)
    limits: list[pb.RepairLimits] = field(default_factory=list)
    # The last of each disk.
    limits_of: dict[str, pb.RepairLimits] = field(default_factory=dict)
    # Of any disk.
    history: list[pb.VolumeSample] = field(default_factory=list)
    extents: list[pb.RegionExtents] = field(default_factory=list)
    # Whether a repair is finished the moment it is asked for.
    quick: bool = False
    # Whether an old member serves until the new one is filled.
    departs: bool = False
    workloads_running: int = 0
    address: str = ""

    def __post_init__(self) -> None:
        self.changed = asyncio.Condition()
        self.tracing = Tracing("vmmd", "scripted")

    def count(self, method: str) -> int:
        return sum(1 for name, _ in self.calls if name == method)

    async def heard(self, method: str, request: Any) -> None:
        """Logs a call, and holds or fails it when the test said so."""
        self.calls.append((method, request))
        if method in self.gates:
            await self.gates[method].wait()
        if self.failures.get(method):
            raise self.failures[method].pop(0)

    async def set_machine(self, machine_id: str, state: str, reason: str = "") -> None:
        machine = self.machines[machine_id]
        machine.state = machine_pb.MachineState.Value(f"MACHINE_STATE_{state}")
        machine.state_generation += 1
        machine.reason = reason
        await self.tell()

    async def reboot(self, machine_id: str) -> None:
        """What happens before a reboot is answered: that it begins. Tests put more here."""
        await self.set_machine(machine_id, "REBOOTING")

    async def tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, true: Callable[[], bool]) -> None:
        """Waits for something that a call changes here."""
        async with asyncio.timeout(UNTIL_SECONDS), self.changed:
            await self.changed.wait_for(true)

    def slot(self, disk: str, number: int, path: str = FIRST) -> pb.SlotInfo:
        (region,) = (each for each in self.volumes[disk].regions if each.path == path)
        return region.slots[number]

    async def set_volume(self, disk: str, state: str) -> None:
        self.volumes[disk].state = pb.VolumeState.Value(f"VOLUME_STATE_{state}")
        for region in self.volumes[disk].regions:
            region.state = self.volumes[disk].state
            for slot in region.slots:
                slot.state = pb.SLOT_STATE_ACTIVE
        await self.tell()

    async def scrub(self, disk: str, path: str = "", **changes: Any) -> None:
        """Changes the machine's scrub; one that is done lets the parent's regions go."""
        (found,) = (each for each in self.volumes[disk].scrubs if each.path == path)
        for name, value in changes.items():
            setattr(found, name, value)
        if found.state == pb.SCRUB_STATE_DONE:
            parent = f"{path}.read_only_parent" if path else "read_only_parent"
            kept = [each for each in self.volumes[disk].regions if not each.path.startswith(parent)]
            del self.volumes[disk].regions[:]
            self.volumes[disk].regions.extend(kept)
        await self.tell()

    async def die(self, machine_id: str) -> None:
        """The machine's process is killed; vmmd makes the next one when it is asked to."""
        self.machines[machine_id].process_died = True
        await self.set_machine(machine_id, "FAILED", "its process ended (killed by signal 9)")

    async def lose(self, machine_id: str) -> None:
        """As after a restart of vmmd: the machine and all it knew are gone."""
        del self.machines[machine_id]
        await self.tell()

    async def progress(
        self, disk: str, number: int, done: int, total: int, path: str = FIRST
    ) -> None:
        slot = self.slot(disk, number, path)
        slot.state = pb.SLOT_STATE_LIVE_REPAIR
        slot.repair.bytes_done, slot.repair.bytes_total = done, total
        slot.repair.bytes_copied = done
        await self.tell()

    async def finish(self, disk: str, number: int, path: str = FIRST) -> None:
        slot = self.slot(disk, number, path)
        slot.state = pb.SLOT_STATE_ACTIVE
        slot.departing_address = ""
        slot.ClearField("repair")
        await self.tell()

    def make(self, spec: machine_pb.MachineSpec) -> None:
        self.specs[spec.id] = spec
        self.machines[spec.id] = machine_pb.Machine(
            id=spec.id, name=spec.name, state=machine_pb.MACHINE_STATE_CREATING,
            state_generation=1, engine="none",
        )  # fmt: skip
        for disk in spec.disks:
            self.add_disk(spec.id, disk)

    def add_disk(self, machine_id: str, disk: machine_pb.MachineDisk) -> None:
        self.machines[machine_id].disks.append(disk.name)
        vcr = disk.volume_construction_request
        self.volumes[disk.name] = pb.VolumeInfo(
            machine_id=machine_id, disk=disk.name, volume_id=vcr.id,
            state=pb.VOLUME_STATE_INITIALIZING, nbd_uri="nbd+unix:///block2",
            regions=[
                pb.RegionInfo(
                    path=path, generation=region.generation,
                    state=pb.VOLUME_STATE_INITIALIZING,
                    read_only=region.options.read_only,
                    slots=[
                        pb.SlotInfo(slot=number, address=address,
                                    state=pb.SLOT_STATE_WAIT_CONNECT)
                        for number, address in enumerate(region.options.targets)
                    ],
                )
                for path, region in regions(from_message(vcr))
            ],
        )  # fmt: skip

    def volume(self, request: Any) -> pb.VolumeInfo:
        if request.machine_id not in self.machines:
            raise NotFoundError("machine", request.machine_id)
        return self.volumes[request.disk]


class Machines(machine_grpc.MachineServiceServicer):
    def __init__(self, script: ScriptedVmmd) -> None:
        self.script = script

    def find(self, machine_id: str) -> machine_pb.Machine:
        if machine_id not in self.script.machines:
            raise NotFoundError("machine", machine_id)
        return self.script.machines[machine_id]

    async def EnsureMachine(self, request, context):
        await self.script.heard("EnsureMachine", request)
        present = self.script.machines.get(request.spec.id)
        if present is None or present.process_died:
            self.script.make(request.spec)
            await self.script.tell()
        return machine_pb.EnsureMachineResponse(machine=self.find(request.spec.id))

    async def GetMachine(self, request, context):
        await self.script.heard("GetMachine", request)
        return machine_pb.GetMachineResponse(machine=self.find(request.id))

    async def SetMachineState(self, request, context):
        await self.script.heard("SetMachineState", request)
        machine = self.find(request.id)
        if request.state == machine_pb.MACHINE_REQUESTED_STATE_RUN:
            await self.script.set_machine(request.id, "STARTING")
        if request.state == machine_pb.MACHINE_REQUESTED_STATE_STOP:
            await self.script.set_machine(request.id, "STOPPING")
        if request.state == machine_pb.MACHINE_REQUESTED_STATE_REBOOT:
            await self.script.reboot(request.id)
        return machine_pb.SetMachineStateResponse(machine=machine)

    async def WatchMachine(self, request, context):
        await self.script.heard("WatchMachine", request)
        seen = request.after_generation
        while True:
            machine = self.find(request.id)
            if machine.state_generation > seen:
                seen = machine.state_generation
                yield machine_pb.WatchMachineResponse(machine=machine)
                if machine.state >= machine_pb.MACHINE_STATE_FAILED:
                    return
            async with self.script.changed:
                # It may have been lost while the answer was on its way.
                if machine.state_generation == seen and request.id in self.script.machines:
                    await self.script.changed.wait()
            if request.id not in self.script.machines:
                raise UnavailableError("the stream was cut: vmmd has restarted")

    async def PlugDisk(self, request, context):
        await self.script.heard("PlugDisk", request)
        machine = self.find(request.id)
        if request.disk.name in machine.disks:
            raise AlreadyExistsError("the machine has it", reason="DISK_EXISTS")
        self.script.add_disk(request.id, request.disk)
        return machine_pb.PlugDiskResponse(machine=machine)

    async def UnplugDisk(self, request, context):
        await self.script.heard("UnplugDisk", request)
        machine = self.find(request.id)
        if request.disk not in machine.disks:
            raise NotFoundError("disk", request.disk)
        machine.disks.remove(request.disk)
        return machine_pb.UnplugDiskResponse(machine=machine)

    async def DeleteMachine(self, request, context):
        await self.script.heard("DeleteMachine", request)
        self.find(request.id)
        del self.script.machines[request.id]
        await self.script.tell()
        return machine_pb.DeleteMachineResponse()


class Volumes(pb_grpc.VolumeServiceServicer):
    def __init__(self, script: ScriptedVmmd) -> None:
        self.script = script

    async def GetVolumeInfo(self, request, context):
        await self.script.heard("GetVolumeInfo", request)
        return pb.GetVolumeInfoResponse(volume=self.script.volume(request))

    async def WatchVolume(self, request, context):
        await self.script.heard("WatchVolume", request)
        seen = None
        while True:
            info = self.script.volume(request)
            if info != seen:
                seen = pb.VolumeInfo()
                seen.CopyFrom(info)
                yield pb.WatchVolumeResponse(volume=info)
            async with self.script.changed:
                if self.script.volume(request) == seen:
                    await self.script.changed.wait()

    async def GetExtents(self, request, context):
        await self.script.heard("GetExtents", request)
        self.script.volume(request)
        return pb.GetExtentsResponse(regions=self.script.extents)

    async def WatchExtents(self, request, context):
        await self.script.heard("WatchExtents", request)
        while True:
            self.script.volume(request)
            yield pb.WatchExtentsResponse(regions=self.script.extents)
            async with self.script.changed:
                await self.script.changed.wait()

    async def GetVolumeHistory(self, request, context):
        await self.script.heard("GetVolumeHistory", request)
        self.script.volume(request)
        after = request.after_time.ToNanoseconds()
        samples = [one for one in self.script.history if one.end_time.ToNanoseconds() > after]
        return pb.GetVolumeHistoryResponse(samples=samples[-request.samples_max :])

    async def ReplaceVcr(self, request, context):
        await self.script.heard("ReplaceVcr", request)
        info = self.script.volume(request)
        comparison = compare(from_message(request.original), from_message(request.replacement))
        changed = comparison.changed
        assert changed is not None
        found = [each for each in info.regions if each.path == changed.region_path]
        if not found:
            raise NotFoundError("target", changed.old, f"no member is at {changed.old}")
        result = pb.VCR_REPLACE_RESULT_STARTED_ALREADY
        slot = found[0].slots[changed.slot]
        if slot.address != changed.new:
            slot.departing_address = slot.address if self.script.departs else ""
            slot.address = changed.new
            slot.state = pb.SLOT_STATE_ACTIVE if self.script.quick else (
                pb.SLOT_STATE_WAIT_CONNECT)  # fmt: skip
            slot.mode = pb.SLOT_MODE_REPLACED
            result = pb.VCR_REPLACE_RESULT_STARTED
        await self.script.tell()
        return pb.ReplaceVcrResponse(result=result)

    async def VerifyVolume(self, request, context):
        await self.script.heard("VerifyVolume", request)
        if self.script.reports:
            return pb.VerifyVolumeResponse(report=self.script.reports.pop(0))
        report = pb.VerifyReport(equal=True, extents_compared=128, members_compared=3)
        return pb.VerifyVolumeResponse(report=report)

    async def Snapshot(self, request, context):
        await self.script.heard("Snapshot", request)
        region = pb.RegionSnapshot(path=FIRST, generation=1, flush_number=7, targets=["a:1"] * 3)
        return pb.SnapshotResponse(regions=[region])

    async def StartScrub(self, request, context):
        await self.script.heard("StartScrub", request)
        info = self.script.volume(request)
        spec = self.script.specs[request.machine_id]
        (disk,) = (each for each in spec.disks if each.name == request.disk)
        volume = dict(walk(from_message(disk.volume_construction_request))).get(request.path)
        if not isinstance(volume, VolumeSpec) or volume.read_only_parent is None:
            raise NotFoundError("parent", request.path)
        found = [each for each in info.scrubs if each.path == request.path]
        scrub = found[0] if found else info.scrubs.add(path=request.path)
        if scrub.state != pb.SCRUB_STATE_DONE:
            if scrub.state != pb.SCRUB_STATE_RUNNING:
                scrub.bytes_done, scrub.reason = 0, ""
            scrub.state = pb.SCRUB_STATE_RUNNING
            scrub.bytes_total = total_bytes(volume.read_only_parent)
            scrub.bytes_per_second_max = request.bytes_per_second_max
        if self.script.quick:
            await self.script.scrub(request.disk, request.path, state=pb.SCRUB_STATE_DONE)
        await self.script.tell()
        return pb.StartScrubResponse(scrub=scrub)

    async def StopScrub(self, request, context):
        await self.script.heard("StopScrub", request)
        info = self.script.volume(request)
        found = [each for each in info.scrubs if each.path == request.path]
        if not found:
            raise NotFoundError("scrub", request.path)
        found[0].state = pb.SCRUB_STATE_STOPPED
        await self.script.tell()
        return pb.StopScrubResponse(scrub=found[0])

    def at(self, request: Any) -> pb.SlotInfo:
        self.script.volume(request)
        return self.script.slot(request.disk, request.slot, request.region_path)

    async def HoldRepair(self, request, context):
        await self.script.heard("HoldRepair", request)
        self.at(request).repair_held = request.held
        await self.script.tell()
        return pb.HoldRepairResponse()

    async def RepairMember(self, request, context):
        await self.script.heard("RepairMember", request)
        slot = self.at(request)
        slot.state, slot.mode = pb.SLOT_STATE_WAIT_CONNECT, pb.SLOT_MODE_FAULTED
        slot.last_error = request.reason
        slot.ClearField("repair")
        await self.script.tell()
        return pb.RepairMemberResponse()

    async def TakeBackReplacement(self, request, context):
        await self.script.heard("TakeBackReplacement", request)
        slot = self.at(request)
        if slot.address != request.new_target:
            return pb.TakeBackReplacementResponse(was_applied=False)
        if slot.departing_address != request.old_target:
            raise ConflictError("it has left", reason="CANNOT_TAKE_BACK")
        slot.address, slot.departing_address = request.old_target, ""
        slot.state, slot.repair_held = pb.SLOT_STATE_ACTIVE, False
        slot.ClearField("repair")
        await self.script.tell()
        return pb.TakeBackReplacementResponse(was_applied=True)

    async def SetRepairLimits(self, request, context):
        await self.script.heard("SetRepairLimits", request)
        self.script.volume(request)
        self.script.limits.append(request.limits)
        self.script.limits_of[request.disk] = request.limits
        await self.script.tell()
        return pb.SetRepairLimitsResponse(repair_rate=pb.RepairRate(limits=request.limits))


class Guests(guest_grpc.GuestServiceServicer):
    def __init__(self, script: ScriptedVmmd) -> None:
        self.script = script

    async def RunWorkload(self, request, context):
        await self.script.heard("RunWorkload", request)
        self.script.workloads_running += 1
        try:
            for number in range(1, 1000):
                yield guest_pb.RunWorkloadResponse(report=guest_pb.WorkloadReport(ios=number))
                async with self.script.changed:
                    await self.script.changed.wait()
        finally:
            self.script.workloads_running -= 1
            await self.script.tell()


@asynccontextmanager
async def serving_vmmd(script: ScriptedVmmd, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serves the script until the block ends; gives the address."""
    machines, volumes, guests = Machines(script), Volumes(script), Guests(script)
    traces = TraceServicer(script.tracing)
    server = RpcServer(
        address,
        [
            Service(
                "stairwell.vmmd.v1.MachineService",
                lambda s: machine_grpc.add_MachineServiceServicer_to_server(machines, s),
            ),
            Service(
                "stairwell.vmmd.v1.VolumeService",
                lambda s: pb_grpc.add_VolumeServiceServicer_to_server(volumes, s),
            ),
            Service(
                "stairwell.vmmd.v1.GuestService",
                lambda s: guest_grpc.add_GuestServiceServicer_to_server(guests, s),
            ),
            Service(
                SERVICE_NAME, lambda s: trace_grpc.add_TraceServiceServicer_to_server(traces, s)
            ),
        ],
        script.tracing,
    )
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop(0)


class ScriptedDownstairs(region_grpc.RegionServiceServicer):
    """A downstairs that says what its `region` says."""

    def __init__(self, **changes: Any) -> None:
        self.region = region_pb.Region(
            id=str(uuid4()),
            geometry=region_pb.Geometry(block_size=4096, extent_size=16384, extent_count=128),
            version="test",
        )
        self.address = ""
        self.asked = 0
        # Called before each answer.
        self.on_asked: Callable[[], None] = lambda: None
        for name, value in changes.items():
            setattr(self.region, name, value)

    @property
    def id(self) -> UUID:
        return UUID(self.region.id)

    async def GetRegion(self, request, context):
        self.asked += 1
        self.on_asked()
        return region_pb.GetRegionResponse(region=self.region)


@asynccontextmanager
async def serving_downstairs(downstairs: ScriptedDownstairs) -> AsyncIterator[ScriptedDownstairs]:
    """Serves it until the block ends."""
    server = RpcServer(
        "127.0.0.1:0",
        [
            Service(
                "stairwell.downstairs.v1.RegionService",
                lambda s: region_grpc.add_RegionServiceServicer_to_server(downstairs, s),
            )
        ],
        Tracing("downstairs", "scripted"),
    )
    await server.start()
    downstairs.address = server.address
    try:
        yield downstairs
    finally:
        await server.stop(0)
