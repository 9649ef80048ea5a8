"""SerialService: finds the instance's machine and passes bytes on, both ways."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc.aio

from controlplane.operations.instances import Instances
from stairwell.controlplane.v1 import serial_service_pb2 as pb
from stairwell.controlplane.v1 import serial_service_pb2_grpc as pb_grpc
from stairwell.vmmd.v1 import serial_service_pb2 as vmmd_pb


class SerialServicer(pb_grpc.SerialServiceServicer):
    """Serial ports over gRPC."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances

    async def Attach(
        self,
        request_iterator: AsyncIterator[pb.AttachRequest],
        context: grpc.aio.ServicerContext[pb.AttachRequest, pb.AttachResponse],
    ) -> AsyncIterator[pb.AttachResponse]:
        """The port's bytes, until the machine ends or the caller hangs up."""
        del context
        first = await anext(aiter(request_iterator), pb.AttachRequest())

        async def typed() -> AsyncIterator[bytes]:
            if first.data:
                yield first.data
            async for request in request_iterator:
                yield request.data

        stream = await self._instances.attach_serial(first.instance, first.history_bytes, typed())
        async with aclosing(stream) as answers:
            async for answer in answers:
                yield pb.AttachResponse(
                    data=answer.data,
                    last_byte_offset=answer.last_byte_offset,
                    skipped_bytes=answer.skipped_bytes,
                )

    async def GetHistory(
        self,
        request: pb.GetHistoryRequest,
        context: grpc.aio.ServicerContext[pb.GetHistoryRequest, pb.GetHistoryResponse],
    ) -> pb.GetHistoryResponse:
        """A piece of what the port has said."""
        del context
        asked = vmmd_pb.GetHistoryRequest(max_bytes=request.max_bytes)
        if request.HasField("from_start"):
            asked.from_start = request.from_start
        if request.HasField("most_recent"):
            asked.most_recent = request.most_recent
        read = await self._instances.serial_history(request.instance, asked)
        return pb.GetHistoryResponse(data=read.data, last_byte_offset=read.last_byte_offset)
