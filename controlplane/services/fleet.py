"""FleetService: check, ask the operations, map the answer."""

from __future__ import annotations

import grpc.aio

from controlplane.operations.fleet import FleetBook
from controlplane.services.mapping import downstairs_message
from stairwell.controlplane.v1 import fleet_service_pb2 as pb
from stairwell.controlplane.v1 import fleet_service_pb2_grpc as pb_grpc


class FleetServicer(pb_grpc.FleetServiceServicer):
    """The fleet over gRPC."""

    def __init__(self, fleet: FleetBook) -> None:
        self._fleet = fleet

    async def RegisterDownstairs(
        self,
        request: pb.RegisterDownstairsRequest,
        context: grpc.aio.ServicerContext[
            pb.RegisterDownstairsRequest, pb.RegisterDownstairsResponse
        ],
    ) -> pb.RegisterDownstairsResponse:
        """Records a spare."""
        del context
        record = await self._fleet.register(request.address)
        return pb.RegisterDownstairsResponse(downstairs=downstairs_message(record))

    async def ListDownstairs(
        self,
        request: pb.ListDownstairsRequest,
        context: grpc.aio.ServicerContext[pb.ListDownstairsRequest, pb.ListDownstairsResponse],
    ) -> pb.ListDownstairsResponse:
        """All downstairs known."""
        del request, context
        found = await self._fleet.listed()
        return pb.ListDownstairsResponse(downstairs=[downstairs_message(each) for each in found])
