"""vmmd as the control plane sees it: one method for each call it makes.

Invariants: every unary call has a deadline; a failure is a domain error that names vmmd; a stream
that is left, for whatever reason, is cancelled on the other side.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar
from uuid import UUID

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from stairlib.model.construction import Construction
from stairlib.rpc.channel import open_channel
from stairlib.rpc.flags import FLAGS
from stairlib.rpc.renewed_channel import RenewedChannel
from stairlib.rpc.tls import Kind, TlsFiles, saying_why, why
from stairlib.telemetry.trace_service import collect
from stairlib.telemetry.tracing import Tracing
from stairlib.wire.construction import to_message
from stairlib.wire.durations import duration
from stairwell.telemetry.v1 import trace_service_pb2 as telemetry_pb
from stairwell.vmmd.v1 import guest_service_pb2 as guest_pb
from stairwell.vmmd.v1 import guest_service_pb2_grpc as guest_grpc
from stairwell.vmmd.v1 import machine_service_pb2 as machine_pb
from stairwell.vmmd.v1 import machine_service_pb2_grpc as machine_grpc
from stairwell.vmmd.v1 import serial_service_pb2 as serial_pb
from stairwell.vmmd.v1 import serial_service_pb2_grpc as serial_grpc
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from stairwell.vmmd.v1 import volume_service_pb2_grpc as volume_grpc

_T = TypeVar("_T")

_KIND = Kind("vmmd", FLAGS, "vmmd")
_REMEDY = f"start the control plane with {', '.join(FLAGS)}"

# Starting a machine's process and its devices: a second or so, on a busy host several.
ENSURE_SECONDS = 30.0
# Stopping one on the way out of the world, with its last flush.
DELETE_SECONDS = 60.0
# Questions that are answered from memory.
ASK_SECONDS = 5.0
# A hypervisor that waits for a disk answers late.
SIGNAL_SECONDS = 30.0
# A volume becomes active, or is flushed, and the guest has half a minute to let it go.
PLUG_SECONDS = 60.0
# Asked on behalf of a user who wants an answer now, with or without it.
GLANCE_SECONDS = 2.0
# The machine looks at its own state and answers; nothing is copied meanwhile.
REPLACE_SECONDS = 20.0
# A flush and the digests of all extents of three members.
VERIFY_SECONDS = 300.0
# The same, reading every stored block.
VERIFY_DATA_SECONDS = 6 * 3600.0
# A flush of three members, however much is to be flushed.
SNAPSHOT_SECONDS = 60.0


def _channel(address: str, tracing: Tracing, tls: TlsFiles | None) -> Any:
    if tls is None:
        return open_channel(address, tracing=tracing)
    return RenewedChannel(address, tls, tracing)


class Vmmd:
    """The vmmd at one address. `close` it when done."""

    def __init__(self, address: str, tracing: Tracing, tls: TlsFiles | None = None) -> None:
        """With `tls`, both sides show certificates. StateError TLS_FILE when they will not do."""
        self.address = address
        self.peer = f"vmmd at {address}"
        self._tls = tls
        # A channel as stubs want it: mypy-protobuf types a stub by its channel.
        self._channel = _channel(address, tracing, tls)
        self._machines: Any = machine_grpc.MachineServiceStub(self._channel)
        self._volumes: Any = volume_grpc.VolumeServiceStub(self._channel)
        # What was last told of each disk's repairs, by machine and disk.
        self.rates: dict[tuple[UUID, str], volume_pb.RepairRate] = {}
        self._serials: Any = serial_grpc.SerialServiceStub(self._channel)
        self._guests: Any = guest_grpc.GuestServiceStub(self._channel)

    async def close(self) -> None:
        """Ends every call and the connection."""
        await self._channel.close()

    def _said(self) -> AbstractAsyncContextManager[None]:
        """Failures as domain errors; what is wrong with certificates is found out and said."""
        return saying_why(
            self.peer, lambda error: why(self.address, error, self._tls, _KIND, _REMEDY)
        )

    def channels(self, _machine_id: str = "") -> list[tuple[str, grpc.aio.Channel]]:
        """(name, channel) of those behind the control plane in a trace."""
        return [(self.peer, self._channel)]

    async def ensure_machine(self, spec: machine_pb.MachineSpec) -> machine_pb.Machine:
        """Makes the machine, or finds the same one."""
        request = machine_pb.EnsureMachineRequest(spec=spec)
        async with self._said():
            answer = await self._machines.EnsureMachine(request, timeout=ENSURE_SECONDS)
        machine: machine_pb.Machine = answer.machine
        return machine

    async def get_machine(self, machine_id: UUID) -> machine_pb.Machine:
        """The machine now; NotFoundError when vmmd does not know it."""
        request = machine_pb.GetMachineRequest(id=str(machine_id))
        async with self._said():
            answer = await self._machines.GetMachine(request, timeout=ASK_SECONDS)
        machine: machine_pb.Machine = answer.machine
        return machine

    async def set_machine_state(
        self, machine_id: UUID, state: machine_pb.MachineRequestedState.ValueType
    ) -> machine_pb.Machine:
        """Queues a change of state."""
        request = machine_pb.SetMachineStateRequest(id=str(machine_id), state=state)
        async with self._said():
            answer = await self._machines.SetMachineState(request, timeout=ASK_SECONDS)
        machine: machine_pb.Machine = answer.machine
        return machine

    async def signal_guest(
        self, machine_id: UUID, signal: machine_pb.GuestSignal.ValueType
    ) -> None:
        """Presses a button of the machine."""
        request = machine_pb.SignalGuestRequest(id=str(machine_id), signal=signal)
        async with self._said():
            await self._machines.SignalGuest(request, timeout=SIGNAL_SECONDS)

    async def plug_disk(self, machine_id: UUID, disk: machine_pb.MachineDisk) -> machine_pb.Machine:
        """Gives a running machine one more disk; returns once its guest can see it."""
        request = machine_pb.PlugDiskRequest(id=str(machine_id), disk=disk)
        async with self._said():
            answer = await self._machines.PlugDisk(request, timeout=PLUG_SECONDS)
        machine: machine_pb.Machine = answer.machine
        return machine

    async def unplug_disk(self, machine_id: UUID, disk: str) -> machine_pb.Machine:
        """Returns once the guest has let it go; NotFoundError (its kind says) when vmmd knows no
        such machine, or the machine no such disk."""
        request = machine_pb.UnplugDiskRequest(id=str(machine_id), disk=disk)
        async with self._said():
            answer = await self._machines.UnplugDisk(request, timeout=PLUG_SECONDS)
        machine: machine_pb.Machine = answer.machine
        return machine

    def attach_serial(
        self, machine_id: UUID, history_bytes: int, typed: AsyncIterator[bytes]
    ) -> AsyncGenerator[serial_pb.AttachResponse, None]:
        """What the machine's serial port says; what is typed goes there."""

        async def requests() -> AsyncIterator[serial_pb.AttachRequest]:
            yield serial_pb.AttachRequest(machine_id=str(machine_id), history_bytes=history_bytes)
            async for data in typed:
                yield serial_pb.AttachRequest(data=data)

        return self._stream(self._serials.Attach, requests(), lambda answer: answer)

    async def serial_history(
        self, request: serial_pb.GetHistoryRequest
    ) -> serial_pb.GetHistoryResponse:
        """What the machine's serial port has said."""
        async with self._said():
            answer: serial_pb.GetHistoryResponse = await self._serials.GetHistory(
                request, timeout=ASK_SECONDS
            )
        return answer

    def watch_machine(
        self, machine_id: UUID, after: int
    ) -> AsyncGenerator[machine_pb.Machine, None]:
        """The machine's states after generation `after`; ends when no later one can come."""
        request = machine_pb.WatchMachineRequest(id=str(machine_id), after_generation=after)
        return self._stream(self._machines.WatchMachine, request, lambda answer: answer.machine)

    async def delete_machine(self, machine_id: UUID) -> None:
        """Stops and forgets the machine; NotFoundError when vmmd does not know it."""
        request = machine_pb.DeleteMachineRequest(id=str(machine_id))
        async with self._said():
            await self._machines.DeleteMachine(request, timeout=DELETE_SECONDS)
        for key in [each for each in self.rates if each[0] == machine_id]:
            del self.rates[key]

    async def get_volume_info(
        self, machine_id: UUID, disk: str, *, seconds: float = ASK_SECONDS
    ) -> volume_pb.VolumeInfo:
        """The state of a volume and of its slots."""
        request = volume_pb.GetVolumeInfoRequest(machine_id=str(machine_id), disk=disk)
        async with self._said():
            answer = await self._volumes.GetVolumeInfo(request, timeout=seconds)
        return self._noted(machine_id, disk, answer.volume)

    def _noted(
        self, machine_id: UUID, disk: str, info: volume_pb.VolumeInfo
    ) -> volume_pb.VolumeInfo:
        if info.HasField("repair_rate"):
            self.rates[machine_id, disk] = info.repair_rate
        return info

    def watch_volume(
        self,
        machine_id: UUID,
        disk: str,
        repair: volume_pb.FollowedRepair | None = None,
        interval: float = 0.0,
    ) -> AsyncGenerator[volume_pb.VolumeInfo, None]:
        """The same, now and at each change; `repair` is told in the trace of this call. Messages
        that bring newer numbers alone are at least `interval` seconds apart."""
        request = volume_pb.WatchVolumeRequest(
            machine_id=str(machine_id), disk=disk, repair=repair, interval=duration(interval)
        )
        return self._stream(
            self._volumes.WatchVolume,
            request,
            lambda answer: self._noted(machine_id, disk, answer.volume),
        )

    async def volume_extents(self, machine_id: UUID, disk: str) -> list[volume_pb.RegionExtents]:
        """What is known of the extents of a volume's members."""
        request = volume_pb.GetExtentsRequest(machine_id=str(machine_id), disk=disk)
        async with self._said():
            answer = await self._volumes.GetExtents(request, timeout=GLANCE_SECONDS)
        return list(answer.regions)

    def watch_extents(
        self, machine_id: UUID, disk: str
    ) -> AsyncGenerator[list[volume_pb.RegionExtents], None]:
        """The same, then all regions at each change, with the columns that changed."""
        request = volume_pb.WatchExtentsRequest(machine_id=str(machine_id), disk=disk)
        return self._stream(
            self._volumes.WatchExtents, request, lambda answer: list(answer.regions)
        )

    async def volume_history(
        self, machine_id: UUID, disk: str, after: Timestamp, newest: int
    ) -> list[volume_pb.VolumeSample]:
        """The samples of a volume that end after a moment, oldest first; `newest` so many at most,
        if it is not 0."""
        request = volume_pb.GetVolumeHistoryRequest(
            machine_id=str(machine_id), disk=disk, after_time=after, samples_max=newest
        )
        async with self._said():
            answer = await self._volumes.GetVolumeHistory(request, timeout=ASK_SECONDS)
        return list(answer.samples)

    async def replace_vcr(
        self, machine_id: UUID, disk: str, *, original: Construction, replacement: Construction,
        replacement_id: UUID,
    ) -> volume_pb.ReplaceVcrResponse:  # fmt: skip
        """Tells the machine to replace the target in which the two requests differ."""
        request = volume_pb.ReplaceVcrRequest(
            machine_id=str(machine_id),
            disk=disk,
            original=to_message(original),
            replacement=to_message(replacement),
            replacement_id=str(replacement_id),
        )
        async with self._said():
            answer: volume_pb.ReplaceVcrResponse = await self._volumes.ReplaceVcr(
                request, timeout=REPLACE_SECONDS
            )
        return answer

    async def verify_volume(
        self, machine_id: UUID, disk: str, *, read_data: bool, region_path: str | None = None,
        seconds: float | None = None,
    ) -> volume_pb.VerifyReport:  # fmt: skip
        """Compares the members of a volume, or of its region at `region_path` alone."""
        request = volume_pb.VerifyVolumeRequest(
            machine_id=str(machine_id), disk=disk, read_data=read_data, region_path=region_path
        )
        if seconds is None:
            seconds = VERIFY_DATA_SECONDS if read_data else VERIFY_SECONDS
        async with self._said():
            answer = await self._volumes.VerifyVolume(request, timeout=seconds)
        report: volume_pb.VerifyReport = answer.report
        return report

    async def snapshot(
        self, machine_id: UUID, disk: str, name: str
    ) -> list[volume_pb.RegionSnapshot]:
        """Has all members keep what the volume holds now."""
        request = volume_pb.SnapshotRequest(machine_id=str(machine_id), disk=disk, name=name)
        async with self._said():
            answer = await self._volumes.Snapshot(request, timeout=SNAPSHOT_SECONDS)
        return list(answer.regions)

    async def start_scrub(
        self, machine_id: UUID, disk: str, path: str, bytes_per_second_max: int
    ) -> volume_pb.ScrubInfo:
        """Has the parent of the volume at `path` copied; of one that runs, changes the rate."""
        request = volume_pb.StartScrubRequest(
            machine_id=str(machine_id),
            disk=disk,
            path=path,
            bytes_per_second_max=bytes_per_second_max,
        )
        async with self._said():
            answer = await self._volumes.StartScrub(request, timeout=ASK_SECONDS)
        scrub: volume_pb.ScrubInfo = answer.scrub
        return scrub

    async def stop_scrub(self, machine_id: UUID, disk: str, path: str) -> volume_pb.ScrubInfo:
        """Ends one; NotFoundError or StateError when there is none."""
        request = volume_pb.StopScrubRequest(machine_id=str(machine_id), disk=disk, path=path)
        async with self._said():
            answer = await self._volumes.StopScrub(request, timeout=ASK_SECONDS)
        scrub: volume_pb.ScrubInfo = answer.scrub
        return scrub

    async def hold_repair(
        self, machine_id: UUID, disk: str, region_path: str, slot: int, *, held: bool
    ) -> None:
        """Has the repairs of a slot stand still, or go on."""
        request = volume_pb.HoldRepairRequest(
            machine_id=str(machine_id), disk=disk, region_path=region_path, slot=slot, held=held
        )
        async with self._said():
            await self._volumes.HoldRepair(request, timeout=ASK_SECONDS)

    async def repair_member(
        self, machine_id: UUID, disk: str, region_path: str, slot: int, *, whole: bool, reason: str
    ) -> None:
        """Has the member of a slot filled anew; with `whole`, whatever its stamps say."""
        request = volume_pb.RepairMemberRequest(
            machine_id=str(machine_id),
            disk=disk,
            region_path=region_path,
            slot=slot,
            whole=whole,
            reason=reason,
        )
        async with self._said():
            await self._volumes.RepairMember(request, timeout=ASK_SECONDS)

    async def take_back(
        self, machine_id: UUID, disk: str, region_path: str, slot: int, *, old: str, new: str,
        replacement_id: UUID,
    ) -> None:  # fmt: skip
        """Has the old member stay and the new one go; ConflictError (CANNOT_TAKE_BACK) when the old
        one is not there any more."""
        request = volume_pb.TakeBackReplacementRequest(
            machine_id=str(machine_id),
            disk=disk,
            region_path=region_path,
            slot=slot,
            old_target=old,
            new_target=new,
            replacement_id=str(replacement_id),
        )
        async with self._said():
            await self._volumes.TakeBackReplacement(request, timeout=REPLACE_SECONDS)

    async def set_repair_limits(
        self, machine_id: UUID, disk: str, limits: volume_pb.RepairLimits
    ) -> None:
        """Bounds the repairs of a volume."""
        request = volume_pb.SetRepairLimitsRequest(
            machine_id=str(machine_id), disk=disk, limits=limits
        )
        async with self._said():
            answer = await self._volumes.SetRepairLimits(request, timeout=ASK_SECONDS)
        if answer.HasField("repair_rate"):
            self.rates[machine_id, disk] = answer.repair_rate

    def run_workload(
        self, machine_id: UUID, workload: guest_pb.Workload
    ) -> AsyncGenerator[guest_pb.WorkloadReport, None]:
        """Reports of a workload of the built-in guest; leaving the stream ends the workload."""
        request = guest_pb.RunWorkloadRequest(machine_id=str(machine_id), workload=workload)
        return self._stream(self._guests.RunWorkload, request, lambda answer: answer.report)

    async def collect_trace(
        self, trace_id: str, seconds: float, machine_id: UUID | None = None
    ) -> list[telemetry_pb.Span]:
        """The spans vmmd and those behind it (or behind one machine) have of a trace; none when it
        does not answer."""
        machine = str(machine_id) if machine_id is not None else ""
        return await collect(self.peer, self._channel, trace_id, seconds, machine)

    async def _stream(
        self, method: Callable[[Any], Any], request: object, taken: Callable[[Any], _T]
    ) -> AsyncGenerator[_T, None]:
        """What `taken` takes from each answer. Close it (`aclosing`) to end the call."""
        call = method(request)
        try:
            async with self._said():
                async for answer in call:
                    yield taken(answer)
        finally:
            call.cancel()
