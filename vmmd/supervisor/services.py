"""vmmd's gRPC face. Machines are the daemon's own; volumes and guests live in the machines'
processes, so those calls go there with the caller's deadline and come back as they are."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import grpc.aio

from stairlib.rpc.errors import translated
from stairwell.vmmd.v1 import guest_service_pb2 as guest_pb
from stairwell.vmmd.v1 import machine_service_pb2 as pb
from stairwell.vmmd.v1 import serial_service_pb2 as serial_pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from stairwell.vmmd.v1.guest_service_pb2_grpc import GuestServiceServicer, GuestServiceStub
from stairwell.vmmd.v1.machine_service_pb2_grpc import MachineServiceServicer
from stairwell.vmmd.v1.serial_service_pb2_grpc import SerialServiceServicer, SerialServiceStub
from stairwell.vmmd.v1.volume_service_pb2_grpc import VolumeServiceServicer, VolumeServiceStub
from vmmd.mapping import machine_with_state, record_to_message, requested_state
from vmmd.supervisor.machines import Machines

if TYPE_CHECKING:
    from stairwell.vmmd.v1.guest_service_pb2_grpc import GuestServiceAsyncStub
    from stairwell.vmmd.v1.volume_service_pb2_grpc import VolumeServiceAsyncStub

# What a call to a machine's process may take when the caller set no deadline.
CALL_SECONDS = 30.0
# A new disk has to become active; one that goes waits for the guest, then flushes.
PLUG_SECONDS = 60.0
# Verifying reads every stored block of three members.
VERIFY_SECONDS = 3600.0

_Response = TypeVar("_Response")
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
# From a machine's id and a disk of it to where other hosts reach that; empty where they do not.
GatewayUri: TypeAlias = Callable[[str, str], str]


def remaining(context: Context, default: float) -> float:
    """Seconds the caller still waits."""
    left = context.time_remaining()
    return default if left is None else min(left, default)


async def relayed(
    call: grpc.aio.UnaryStreamCall[Any, _Response] | grpc.aio.StreamStreamCall[Any, _Response],
) -> AsyncGenerator[_Response, None]:
    """The messages of a machine's stream. Closed early, it hangs up at once: a call that is only
    forgotten goes on until the garbage collector finds it, and a workload with it."""
    try:
        with translated("machine process"):
            async for response in call:
                yield response
    finally:
        call.cancel()


class MachineServicer(MachineServiceServicer):
    """Machines: ensure, look, change state, watch, forget."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines

    async def EnsureMachine(
        self, request: pb.EnsureMachineRequest, _context: Context
    ) -> pb.EnsureMachineResponse:
        record = await self._machines.ensure(request.spec)
        return pb.EnsureMachineResponse(machine=record_to_message(record))

    async def GetMachine(
        self, request: pb.GetMachineRequest, _context: Context
    ) -> pb.GetMachineResponse:
        record = self._machines.find(request.id).record
        return pb.GetMachineResponse(machine=record_to_message(record))

    async def ListMachines(
        self, _request: pb.ListMachinesRequest, _context: Context
    ) -> pb.ListMachinesResponse:
        return pb.ListMachinesResponse(machines=map(record_to_message, self._machines.records()))

    async def SetMachineState(
        self, request: pb.SetMachineStateRequest, _context: Context
    ) -> pb.SetMachineStateResponse:
        record = await self._machines.request_state(request.id, requested_state(request.state))
        return pb.SetMachineStateResponse(machine=record_to_message(record))

    async def WatchMachine(
        self, request: pb.WatchMachineRequest, _context: Context
    ) -> AsyncIterator[pb.WatchMachineResponse]:
        watch = self._machines.watch(request.id, request.after_generation)
        async with contextlib.aclosing(watch) as changes:
            async for record, published in changes:
                yield pb.WatchMachineResponse(machine=machine_with_state(record, published))

    async def DeleteMachine(
        self, request: pb.DeleteMachineRequest, _context: Context
    ) -> pb.DeleteMachineResponse:
        await self._machines.delete(request.id)
        return pb.DeleteMachineResponse()

    async def SignalGuest(
        self, request: pb.SignalGuestRequest, context: Context
    ) -> pb.SignalGuestResponse:
        with translated("machine process"):
            answer: pb.SignalGuestResponse = (
                await self._machines.find(request.id)
                .process_stub()
                .SignalGuest(request, timeout=remaining(context, CALL_SECONDS))
            )
        return answer

    async def PlugDisk(self, request: pb.PlugDiskRequest, context: Context) -> pb.PlugDiskResponse:
        process = self._machines.find(request.id)
        with translated("machine process"):
            answer = await process.process_stub().PlugDisk(
                request, timeout=remaining(context, PLUG_SECONDS)
            )
        return pb.PlugDiskResponse(machine=record_to_message(process.saw(answer.machine)))

    async def UnplugDisk(
        self, request: pb.UnplugDiskRequest, context: Context
    ) -> pb.UnplugDiskResponse:
        process = self._machines.find(request.id)
        with translated("machine process"):
            answer = await process.process_stub().UnplugDisk(
                request, timeout=remaining(context, PLUG_SECONDS)
            )
        return pb.UnplugDiskResponse(machine=record_to_message(process.saw(answer.machine)))


class VolumeServicer(VolumeServiceServicer):
    """Volumes, by the machine that has them."""

    def __init__(
        self, machines: Machines, gateway_uri: GatewayUri = lambda _machine, _disk: ""
    ) -> None:
        self._machines = machines
        self._gateway_uri = gateway_uri

    def _told(self, volume: volume_pb.VolumeInfo) -> None:
        """Adds what only the daemon knows."""
        volume.nbd_gateway_uri = self._gateway_uri(volume.machine_id, volume.disk)

    def _stub(self, machine_id: str) -> VolumeServiceAsyncStub:
        # The generated class serves both kinds of channel; its type knows only the blocking one.
        stub: Any = VolumeServiceStub(self._machines.channel(machine_id))
        return cast("VolumeServiceAsyncStub", stub)

    async def GetVolumeInfo(
        self, request: volume_pb.GetVolumeInfoRequest, context: Context
    ) -> volume_pb.GetVolumeInfoResponse:
        with translated("machine process"):
            answer: volume_pb.GetVolumeInfoResponse = await self._stub(
                request.machine_id
            ).GetVolumeInfo(request, timeout=remaining(context, CALL_SECONDS))
        self._told(answer.volume)
        return answer

    async def WatchVolume(
        self, request: volume_pb.WatchVolumeRequest, _context: Context
    ) -> AsyncIterator[volume_pb.WatchVolumeResponse]:
        call = self._stub(request.machine_id).WatchVolume(request)
        async with contextlib.aclosing(relayed(call)) as responses:
            async for response in responses:
                self._told(response.volume)
                yield response

    async def GetVolumeHistory(
        self, request: volume_pb.GetVolumeHistoryRequest, context: Context
    ) -> volume_pb.GetVolumeHistoryResponse:
        with translated("machine process"):
            return await self._stub(request.machine_id).GetVolumeHistory(
                request, timeout=remaining(context, CALL_SECONDS)
            )

    async def GetExtents(
        self, request: volume_pb.GetExtentsRequest, context: Context
    ) -> volume_pb.GetExtentsResponse:
        with translated("machine process"):
            return await self._stub(request.machine_id).GetExtents(
                request, timeout=remaining(context, CALL_SECONDS)
            )

    async def WatchExtents(
        self, request: volume_pb.WatchExtentsRequest, _context: Context
    ) -> AsyncIterator[volume_pb.WatchExtentsResponse]:
        call = self._stub(request.machine_id).WatchExtents(request)
        async with contextlib.aclosing(relayed(call)) as responses:
            async for response in responses:
                yield response

    async def ReplaceVcr(
        self, request: volume_pb.ReplaceVcrRequest, context: Context
    ) -> volume_pb.ReplaceVcrResponse:
        with translated("machine process"):
            return await self._stub(request.machine_id).ReplaceVcr(
                request, timeout=remaining(context, CALL_SECONDS)
            )

    async def VerifyVolume(
        self, request: volume_pb.VerifyVolumeRequest, context: Context
    ) -> volume_pb.VerifyVolumeResponse:
        with translated("machine process"):
            return await self._stub(request.machine_id).VerifyVolume(
                request, timeout=remaining(context, VERIFY_SECONDS)
            )

    async def Snapshot(
        self, request: volume_pb.SnapshotRequest, context: Context
    ) -> volume_pb.SnapshotResponse:
        with translated("machine process"):
            return await self._stub(request.machine_id).Snapshot(
                request, timeout=remaining(context, CALL_SECONDS)
            )

    async def StartScrub(
        self, request: volume_pb.StartScrubRequest, context: Context
    ) -> volume_pb.StartScrubResponse:
        with translated("machine process"):
            return await self._stub(request.machine_id).StartScrub(
                request, timeout=remaining(context, CALL_SECONDS)
            )

    async def StopScrub(
        self, request: volume_pb.StopScrubRequest, context: Context
    ) -> volume_pb.StopScrubResponse:
        with translated("machine process"):
            return await self._stub(request.machine_id).StopScrub(
                request, timeout=remaining(context, CALL_SECONDS)
            )

    async def HoldRepair(
        self, request: volume_pb.HoldRepairRequest, context: Context
    ) -> volume_pb.HoldRepairResponse:
        with translated("machine process"):
            return await self._stub(request.machine_id).HoldRepair(
                request, timeout=remaining(context, CALL_SECONDS)
            )

    async def RepairMember(
        self, request: volume_pb.RepairMemberRequest, context: Context
    ) -> volume_pb.RepairMemberResponse:
        with translated("machine process"):
            return await self._stub(request.machine_id).RepairMember(
                request, timeout=remaining(context, CALL_SECONDS)
            )

    async def TakeBackReplacement(
        self, request: volume_pb.TakeBackReplacementRequest, context: Context
    ) -> volume_pb.TakeBackReplacementResponse:
        with translated("machine process"):
            return await self._stub(request.machine_id).TakeBackReplacement(
                request, timeout=remaining(context, CALL_SECONDS)
            )

    async def SetRepairLimits(
        self, request: volume_pb.SetRepairLimitsRequest, context: Context
    ) -> volume_pb.SetRepairLimitsResponse:
        with translated("machine process"):
            return await self._stub(request.machine_id).SetRepairLimits(
                request, timeout=remaining(context, CALL_SECONDS)
            )


class GuestServicer(GuestServiceServicer):
    """The built-in guests."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines

    async def RunWorkload(
        self, request: guest_pb.RunWorkloadRequest, _context: Context
    ) -> AsyncIterator[guest_pb.RunWorkloadResponse]:
        made: Any = GuestServiceStub(self._machines.channel(request.machine_id))
        stub = cast("GuestServiceAsyncStub", made)
        async with contextlib.aclosing(relayed(stub.RunWorkload(request))) as responses:
            async for response in responses:
                yield response


class SerialServicer(SerialServiceServicer):
    """The machines' serial ports."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines

    async def Attach(
        self, requests: AsyncIterator[serial_pb.AttachRequest], _context: Context
    ) -> AsyncIterator[serial_pb.AttachResponse]:
        first = await anext(aiter(requests), serial_pb.AttachRequest())
        stub: Any = SerialServiceStub(self._machines.channel(first.machine_id))

        async def passed_on() -> AsyncIterator[serial_pb.AttachRequest]:
            yield first
            async for request in requests:
                yield request

        async with contextlib.aclosing(relayed(stub.Attach(passed_on()))) as responses:
            async for response in responses:
                yield response

    async def GetHistory(
        self, request: serial_pb.GetHistoryRequest, context: Context
    ) -> serial_pb.GetHistoryResponse:
        stub: Any = SerialServiceStub(self._machines.channel(request.machine_id))
        with translated("machine process"):
            answer: serial_pb.GetHistoryResponse = await stub.GetHistory(
                request, timeout=remaining(context, CALL_SECONDS)
            )
        return answer
