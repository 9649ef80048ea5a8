"""InstanceService: check, ask the operations, map the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc.aio

from controlplane.answers import AnswerBook
from controlplane.core.records import InstanceRecord
from controlplane.operations.instances import Instances
from controlplane.operations.plugging import Plugging
from controlplane.services.mapping import (
    create_wish,
    desired_state,
    disk_name,
    instance_message,
    plug_wish,
)
from stairwell.controlplane.v1 import instance_service_pb2 as pb
from stairwell.controlplane.v1 import instance_service_pb2_grpc as pb_grpc


class InstanceServicer(pb_grpc.InstanceServiceServicer):
    """Instances over gRPC."""

    def __init__(
        self, instances: Instances, plugging: Plugging, answers: AnswerBook, vmmd_address: str
    ) -> None:
        self._instances = instances
        self._plugging = plugging
        self._answers = answers
        self._vmmd_address = vmmd_address

    async def CreateInstance(
        self,
        request: pb.CreateInstanceRequest,
        context: grpc.aio.ServicerContext[pb.CreateInstanceRequest, pb.CreateInstanceResponse],
    ) -> pb.CreateInstanceResponse:
        """Records the instance and makes its machine."""
        del context
        wish = create_wish(request)

        async def create() -> pb.CreateInstanceResponse:
            made = await self._message(await self._instances.create(wish))
            return pb.CreateInstanceResponse(instance=made)

        return await self._answers.once(
            "CreateInstance", request.request_id, request, pb.CreateInstanceResponse, create
        )

    async def GetInstance(
        self,
        request: pb.GetInstanceRequest,
        context: grpc.aio.ServicerContext[pb.GetInstanceRequest, pb.GetInstanceResponse],
    ) -> pb.GetInstanceResponse:
        """One instance."""
        del context
        found = await self._instances.find(request.name)
        return pb.GetInstanceResponse(instance=await self._message(found))

    async def ListInstances(
        self,
        request: pb.ListInstancesRequest,
        context: grpc.aio.ServicerContext[pb.ListInstancesRequest, pb.ListInstancesResponse],
    ) -> pb.ListInstancesResponse:
        """A page of instances."""
        del context
        found, token = await self._instances.page(request.page_size, request.page_token)
        return pb.ListInstancesResponse(
            instances=[await self._message(each) for each in found], next_page_token=token
        )

    async def SetInstanceState(
        self,
        request: pb.SetInstanceStateRequest,
        context: grpc.aio.ServicerContext[pb.SetInstanceStateRequest, pb.SetInstanceStateResponse],
    ) -> pb.SetInstanceStateResponse:
        """Queues a change of state."""
        del context
        wanted = desired_state(request)

        async def change() -> pb.SetInstanceStateResponse:
            changed = await self._instances.set_state(request.name, wanted)
            return pb.SetInstanceStateResponse(instance=await self._message(changed))

        return await self._answers.once(
            "SetInstanceState", request.request_id, request, pb.SetInstanceStateResponse, change
        )

    async def WatchInstance(
        self,
        request: pb.WatchInstanceRequest,
        context: grpc.aio.ServicerContext[pb.WatchInstanceRequest, pb.WatchInstanceResponse],
    ) -> AsyncIterator[pb.WatchInstanceResponse]:
        """The present state and each later one."""
        del context
        async with aclosing(self._instances.watch(request.name)) as states:
            async for record in states:
                yield pb.WatchInstanceResponse(instance=await self._message(record))

    async def DeleteInstance(
        self,
        request: pb.DeleteInstanceRequest,
        context: grpc.aio.ServicerContext[pb.DeleteInstanceRequest, pb.DeleteInstanceResponse],
    ) -> pb.DeleteInstanceResponse:
        """Ends the machine and forgets the instance."""
        del context
        await self._instances.delete(request.name)
        return pb.DeleteInstanceResponse()

    async def SignalGuest(
        self,
        request: pb.SignalGuestRequest,
        context: grpc.aio.ServicerContext[pb.SignalGuestRequest, pb.SignalGuestResponse],
    ) -> pb.SignalGuestResponse:
        """Presses a button of the machine."""
        del context
        pressed = await self._instances.signal_guest(request.name, request.signal)
        return pb.SignalGuestResponse(instance=await self._message(pressed))

    async def PlugDisk(
        self,
        request: pb.PlugDiskRequest,
        context: grpc.aio.ServicerContext[pb.PlugDiskRequest, pb.PlugDiskResponse],
    ) -> pb.PlugDiskResponse:
        """Gives the machine one more disk."""
        del context
        wish = plug_wish(request)

        async def plug() -> pb.PlugDiskResponse:
            changed = await self._plugging.plug(wish)
            return pb.PlugDiskResponse(instance=await self._message(changed))

        return await self._answers.once(
            "PlugDisk", request.request_id, request, pb.PlugDiskResponse, plug
        )

    async def UnplugDisk(
        self,
        request: pb.UnplugDiskRequest,
        context: grpc.aio.ServicerContext[pb.UnplugDiskRequest, pb.UnplugDiskResponse],
    ) -> pb.UnplugDiskResponse:
        """Takes a disk away."""
        del context
        name = disk_name(request.disk, "disk")

        async def unplug() -> pb.UnplugDiskResponse:
            changed = await self._plugging.unplug(name)
            return pb.UnplugDiskResponse(instance=await self._message(changed))

        return await self._answers.once(
            "UnplugDisk", request.request_id, request, pb.UnplugDiskResponse, unplug
        )

    async def RunGuestWorkload(
        self,
        request: pb.RunGuestWorkloadRequest,
        context: grpc.aio.ServicerContext[pb.RunGuestWorkloadRequest, pb.RunGuestWorkloadResponse],
    ) -> AsyncIterator[pb.RunGuestWorkloadResponse]:
        """Reports of the guest's workload; the caller's hang-up ends it."""
        del context
        stream = await self._instances.run_workload(request.name, request.workload)
        async with aclosing(stream) as reports:
            async for report in reports:
                yield pb.RunGuestWorkloadResponse(report=report)

    async def _message(self, record: InstanceRecord) -> pb.Instance:
        disks = await self._instances.disk_names(record)
        return instance_message(record, disks, self._vmmd_address)
