"""The machine process's gRPC face, for vmmd alone: check, call, map."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias

import grpc.aio

from stairlib.model.construction import Construction
from stairlib.model.construction_diff import ChangedTarget, Outcome, compare
from stairlib.model.errors import FieldViolation, InvalidRequestError, NotFoundError
from stairlib.model.snapshot import checked_name
from stairlib.wire import construction as construction_wire
from stairlib.wire.durations import seconds_of
from stairwell.vmmd.v1 import guest_service_pb2 as guest_pb
from stairwell.vmmd.v1 import machine_process_service_pb2 as process_pb
from stairwell.vmmd.v1 import machine_service_pb2 as machine_pb
from stairwell.vmmd.v1 import serial_service_pb2 as serial_pb
from stairwell.vmmd.v1 import volume_service_pb2 as pb
from stairwell.vmmd.v1.guest_service_pb2_grpc import GuestServiceServicer
from stairwell.vmmd.v1.machine_process_service_pb2_grpc import MachineProcessServiceServicer
from stairwell.vmmd.v1.serial_service_pb2_grpc import SerialServiceServicer
from stairwell.vmmd.v1.volume_service_pb2_grpc import VolumeServiceServicer
from vmmd.block.extent_watch import INTERVAL_SECONDS, changes
from vmmd.core.server_config import ServerConfig
from vmmd.guest.workload import WorkloadKind, WorkloadReport, WorkloadSpec
from vmmd.hw.uart.history import READ_BYTES_DEFAULT
from vmmd.machine.figures import figures_message
from vmmd.machine.machine import Disk
from vmmd.machine.process import MachineHost
from vmmd.machine.volume_mapping import (
    extents_message,
    policy_of,
    rate_message,
    replaced_message,
    sample_message,
    scrub_message,
    snapshot_message,
    verified_message,
    volume_message,
)
from vmmd.mapping import (
    disk_from_message,
    guest_signal,
    hypervisor_from_message,
    machine_with_state,
    record_to_message,
    requested_state,
    spec_from_message,
)

# A history answer is one message.
READ_BYTES_MAX = 1 << 20

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class MachineProcessServicer(MachineProcessServiceServicer):
    """The machine's life."""

    def __init__(self, host: MachineHost) -> None:
        self._host = host

    async def Configure(
        self, request: process_pb.ConfigureRequest, _context: Context
    ) -> process_pb.ConfigureResponse:
        record = await self._host.configure(
            spec_from_message(request.spec),
            ServerConfig.from_json(request.server_config_json),
            Path(request.socket_directory),
            hypervisor_from_message(request.hypervisor) if request.HasField("hypervisor") else None,
        )
        return process_pb.ConfigureResponse(machine=record_to_message(record))

    async def RequestState(
        self, request: process_pb.RequestStateRequest, _context: Context
    ) -> process_pb.RequestStateResponse:
        self._host.driver.request(requested_state(request.state))
        return process_pb.RequestStateResponse(machine=record_to_message(self._host.record()))

    async def WatchState(
        self, _request: process_pb.WatchStateRequest, _context: Context
    ) -> AsyncIterator[process_pb.WatchStateResponse]:
        async for published in self._host.driver.watch():
            machine = machine_with_state(self._host.record(), published)
            yield process_pb.WatchStateResponse(machine=machine)

    async def SignalGuest(
        self, request: machine_pb.SignalGuestRequest, _context: Context
    ) -> machine_pb.SignalGuestResponse:
        await self._host.machine.signal(guest_signal(request.signal))
        return machine_pb.SignalGuestResponse()

    async def PlugDisk(
        self, request: machine_pb.PlugDiskRequest, _context: Context
    ) -> machine_pb.PlugDiskResponse:
        await self._host.machine.plug(disk_from_message(request.disk, "disk"))
        return machine_pb.PlugDiskResponse(machine=record_to_message(self._host.record()))

    async def UnplugDisk(
        self, request: machine_pb.UnplugDiskRequest, _context: Context
    ) -> machine_pb.UnplugDiskResponse:
        await self._host.machine.unplug(request.disk)
        return machine_pb.UnplugDiskResponse(machine=record_to_message(self._host.record()))

    async def GetFigures(
        self, _request: process_pb.GetFiguresRequest, _context: Context
    ) -> process_pb.GetFiguresResponse:
        disks = self._host.machine.disks.values()
        return figures_message([(disk.volume, disk_info(self._host, disk)) for disk in disks])


def disk_info(host: MachineHost, disk: Disk) -> pb.VolumeInfo:
    """The volume of a disk, and where it is exported."""
    exports = disk.exports
    return volume_message(
        host.machine.spec.id,
        disk.spec.name,
        disk.volume.status(),
        nbd_uri=exports.nbd.uri,
        vhost_user_socket=exports.vhost_user.path if exports.vhost_user.listening else "",
        vfio_user_socket=exports.vfio_user.path if exports.vfio_user.listening else "",
        guest_device=host.machine.engine.describe(disk.seen),
    )


class SerialServicer(SerialServiceServicer):
    """The machine's first serial port."""

    def __init__(self, host: MachineHost) -> None:
        self._host = host

    async def Attach(
        self, requests: AsyncIterator[serial_pb.AttachRequest], _context: Context
    ) -> AsyncIterator[serial_pb.AttachResponse]:
        console = self._host.machine.console
        first = await anext(aiter(requests), serial_pb.AttachRequest())

        async def take_input() -> None:
            await console.type(first.data)
            async for request in requests:
                await console.type(request.data)

        typing = asyncio.create_task(take_input())
        start = max(0, console.history.total - first.history_bytes)
        try:
            async with contextlib.aclosing(console.follow(start)) as pieces:
                async for piece in pieces:
                    yield serial_pb.AttachResponse(
                        data=piece.data, last_byte_offset=piece.end, skipped_bytes=piece.skipped
                    )
        finally:
            typing.cancel()
            await asyncio.gather(typing, return_exceptions=True)

    async def GetHistory(
        self, request: serial_pb.GetHistoryRequest, _context: Context
    ) -> serial_pb.GetHistoryResponse:
        history = self._host.machine.console.history
        if request.HasField("from_start") == request.HasField("most_recent"):
            text = "exactly one of from_start and most_recent must be given"
            raise InvalidRequestError(text, (FieldViolation("from_start", text),))
        count = min(request.max_bytes or READ_BYTES_DEFAULT, READ_BYTES_MAX)
        if request.HasField("from_start"):
            read = history.read_from(request.from_start, count)
        else:
            read = history.read_latest(request.most_recent, count)
        return serial_pb.GetHistoryResponse(data=read.data, last_byte_offset=read.end)


class VolumeServicer(VolumeServiceServicer):
    """The machine's volumes."""

    def __init__(self, host: MachineHost) -> None:
        self._host = host

    def _disk(self, name: str) -> Disk:
        return self._host.machine.disk(name)

    def _info(self, disk: Disk) -> pb.VolumeInfo:
        return disk_info(self._host, disk)

    async def GetVolumeInfo(
        self, request: pb.GetVolumeInfoRequest, _context: Context
    ) -> pb.GetVolumeInfoResponse:
        return pb.GetVolumeInfoResponse(volume=self._info(self._disk(request.disk)))

    async def WatchVolume(
        self, request: pb.WatchVolumeRequest, _context: Context
    ) -> AsyncIterator[pb.WatchVolumeResponse]:
        disk = self._disk(request.disk)
        if request.HasField("repair"):
            followed = request.repair
            disk.volume.follow_repair(followed.region_path, followed.slot, followed.replacement_id)
        interval = seconds_of(request.interval)
        async with contextlib.aclosing(disk.volume.watch(interval)) as changes:
            async for _status in changes:
                yield pb.WatchVolumeResponse(volume=self._info(disk))

    async def GetVolumeHistory(
        self, request: pb.GetVolumeHistoryRequest, _context: Context
    ) -> pb.GetVolumeHistoryResponse:
        history = self._disk(request.disk).volume.history
        after = request.after_time.ToNanoseconds() / 1e9
        samples = history.after(after)[-request.samples_max :]
        return pb.GetVolumeHistoryResponse(samples=map(sample_message, samples))

    async def GetExtents(
        self, request: pb.GetExtentsRequest, _context: Context
    ) -> pb.GetExtentsResponse:
        found = self._disk(request.disk).volume.extents()
        return pb.GetExtentsResponse(regions=map(extents_message, found))

    async def WatchExtents(
        self, request: pb.WatchExtentsRequest, _context: Context
    ) -> AsyncIterator[pb.WatchExtentsResponse]:
        volume = self._disk(request.disk).volume
        interval = seconds_of(request.interval) or INTERVAL_SECONDS
        async with contextlib.aclosing(changes(volume.extents, interval)) as news:
            async for found in news:
                yield pb.WatchExtentsResponse(regions=map(extents_message, found))

    async def ReplaceVcr(
        self, request: pb.ReplaceVcrRequest, _context: Context
    ) -> pb.ReplaceVcrResponse:
        disk = self._disk(request.disk)
        replacement = construction_wire.from_message(request.replacement)
        changed = changed_target(construction_wire.from_message(request.original), replacement)
        if changed is None:
            return pb.ReplaceVcrResponse(result=pb.VCR_REPLACE_RESULT_VCR_MATCHES)
        self._host.machine.confinement.check(replacement)
        outcome = await self._host.driver.replace(
            lambda: disk.volume.replace(
                changed.region_path,
                changed.old,
                changed.new,
                request.replacement_id,
                changed.generation,
            )
        )
        if outcome.slot < 0:
            where = changed.region_path or "the volume"
            raise NotFoundError("target", changed.old, f"no member of {where} is at {changed.old}")
        return replaced_message(outcome.result, changed)

    async def VerifyVolume(
        self, request: pb.VerifyVolumeRequest, _context: Context
    ) -> pb.VerifyVolumeResponse:
        region_path = request.region_path if request.HasField("region_path") else None
        verification = await self._disk(request.disk).volume.verify(
            read_data=request.read_data, region_path=region_path
        )
        return pb.VerifyVolumeResponse(report=verified_message(verification))

    async def Snapshot(self, request: pb.SnapshotRequest, _context: Context) -> pb.SnapshotResponse:
        taken = await self._disk(request.disk).volume.snapshot(checked_name(request.name, "name"))
        return pb.SnapshotResponse(regions=map(snapshot_message, taken))

    async def StartScrub(
        self, request: pb.StartScrubRequest, _context: Context
    ) -> pb.StartScrubResponse:
        volume = self._disk(request.disk).volume
        status = volume.start_scrub(request.path, request.bytes_per_second_max)
        return pb.StartScrubResponse(scrub=scrub_message(status))

    async def StopScrub(
        self, request: pb.StopScrubRequest, _context: Context
    ) -> pb.StopScrubResponse:
        status = await self._disk(request.disk).volume.stop_scrub(request.path)
        return pb.StopScrubResponse(scrub=scrub_message(status))

    async def HoldRepair(
        self, request: pb.HoldRepairRequest, _context: Context
    ) -> pb.HoldRepairResponse:
        volume = self._disk(request.disk).volume
        volume.hold_repair(request.region_path, request.slot, held=request.held)
        return pb.HoldRepairResponse()

    async def RepairMember(
        self, request: pb.RepairMemberRequest, _context: Context
    ) -> pb.RepairMemberResponse:
        await self._disk(request.disk).volume.repair_member(
            request.region_path, request.slot, request.reason, whole=request.whole
        )
        return pb.RepairMemberResponse()

    async def TakeBackReplacement(
        self, request: pb.TakeBackReplacementRequest, _context: Context
    ) -> pb.TakeBackReplacementResponse:
        volume = self._disk(request.disk).volume
        # In the same queue as replacements, so that one that came before is over.
        was_applied = await self._host.driver.replace(
            lambda: volume.take_back(
                request.region_path, request.old_target, request.new_target, request.replacement_id
            )
        )
        return pb.TakeBackReplacementResponse(was_applied=was_applied)

    async def SetRepairLimits(
        self, request: pb.SetRepairLimitsRequest, _context: Context
    ) -> pb.SetRepairLimitsResponse:
        volume = self._disk(request.disk).volume
        volume.set_repair_policy(policy_of(request.limits))
        return pb.SetRepairLimitsResponse(repair_rate=rate_message(volume.status().repair_rate))


def changed_target(original: Construction, replacement: Construction) -> ChangedTarget | None:
    """The one target that changed, or None when only generations rose; InvalidRequestError when
    the machine must not follow, with every reason."""
    comparison = compare(original, replacement)
    if comparison.outcome in (Outcome.REPLACE, Outcome.GENERATION_ONLY):
        return comparison.changed
    listed = "; ".join(f"{v.field} {v.description}" for v in comparison.violations)
    raise InvalidRequestError(f"replacement refused: {listed}", comparison.violations)


class GuestServicer(GuestServiceServicer):
    """The built-in guest."""

    def __init__(self, host: MachineHost) -> None:
        self._host = host

    async def RunWorkload(
        self, request: guest_pb.RunWorkloadRequest, _context: Context
    ) -> AsyncIterator[guest_pb.RunWorkloadResponse]:
        work = request.workload
        kind = workload_kind(work.kind)
        spec = WorkloadSpec(
            kind,
            disk=work.disk,
            bytes=work.bytes,
            io_bytes=work.io_bytes,
            queue_depth=work.queue_depth,
            seconds=work.seconds,
            seed=work.seed,
        )
        reports = self._host.machine.guest.run_workload(spec)
        async with contextlib.aclosing(reports) as stream:
            async for report in stream:
                yield guest_pb.RunWorkloadResponse(report=report_message(report))


def workload_kind(value: int) -> WorkloadKind:
    """InvalidRequestError when it names none."""
    try:
        return WorkloadKind(value)
    except ValueError:
        raise InvalidRequestError("workload.kind: must be FILL, MIXED or READ_BACK") from None


def report_message(report: WorkloadReport) -> guest_pb.WorkloadReport:
    """The report's fields have the message's names."""
    return guest_pb.WorkloadReport(
        **{name: getattr(report, name) for name in WorkloadReport.__slots__}
    )
