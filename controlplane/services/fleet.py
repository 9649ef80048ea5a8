"""FleetService: check, ask the operations, map the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc.aio

from controlplane.answers import AnswerBook
from controlplane.operations.drains import Drains
from controlplane.operations.fleet import FleetBook
from controlplane.services.fleet_mapping import (
    agent_message,
    downstairs_message,
    drain_message,
    faulted_message,
    policy_message,
    policy_wish,
    register_wish,
)
from stairwell.controlplane.v1 import fleet_service_pb2 as pb
from stairwell.controlplane.v1 import fleet_service_pb2_grpc as pb_grpc


class FleetServicer(pb_grpc.FleetServiceServicer):
    """The fleet over gRPC."""

    def __init__(self, fleet: FleetBook, drains: Drains, answers: AnswerBook) -> None:
        self._fleet = fleet
        self._drains = drains
        self._answers = answers

    async def RegisterDownstairs(
        self,
        request: pb.RegisterDownstairsRequest,
        context: grpc.aio.ServicerContext[
            pb.RegisterDownstairsRequest, pb.RegisterDownstairsResponse
        ],
    ) -> pb.RegisterDownstairsResponse:
        """Records a spare, or what is new about one that is known."""
        del context
        view = await self._fleet.register(register_wish(request))
        return pb.RegisterDownstairsResponse(downstairs=downstairs_message(view))

    async def DeregisterDownstairs(
        self,
        request: pb.DeregisterDownstairsRequest,
        context: grpc.aio.ServicerContext[
            pb.DeregisterDownstairsRequest, pb.DeregisterDownstairsResponse
        ],
    ) -> pb.DeregisterDownstairsResponse:
        """Forgets one that nothing uses."""
        del context
        await self._fleet.deregister(request.address)
        return pb.DeregisterDownstairsResponse()

    async def ListDownstairs(
        self,
        request: pb.ListDownstairsRequest,
        context: grpc.aio.ServicerContext[pb.ListDownstairsRequest, pb.ListDownstairsResponse],
    ) -> pb.ListDownstairsResponse:
        """All downstairs known."""
        del context
        views = await self._fleet.listed(look=request.look)
        return pb.ListDownstairsResponse(downstairs=[downstairs_message(each) for each in views])

    async def RegisterAgent(
        self,
        request: pb.RegisterAgentRequest,
        context: grpc.aio.ServicerContext[pb.RegisterAgentRequest, pb.RegisterAgentResponse],
    ) -> pb.RegisterAgentResponse:
        """Records an agent that may be asked for regions."""
        del context
        view = await self._fleet.register_agent(
            request.address,
            request.host if request.HasField("host") else None,
            request.failure_domain if request.HasField("failure_domain") else None,
        )
        return pb.RegisterAgentResponse(agent=agent_message(view))

    async def DeregisterAgent(
        self,
        request: pb.DeregisterAgentRequest,
        context: grpc.aio.ServicerContext[pb.DeregisterAgentRequest, pb.DeregisterAgentResponse],
    ) -> pb.DeregisterAgentResponse:
        """Forgets one."""
        del context
        await self._fleet.deregister_agent(request.address)
        return pb.DeregisterAgentResponse()

    async def ListAgents(
        self,
        request: pb.ListAgentsRequest,
        context: grpc.aio.ServicerContext[pb.ListAgentsRequest, pb.ListAgentsResponse],
    ) -> pb.ListAgentsResponse:
        """All agents, as they are now."""
        del request, context
        views = await self._fleet.agents()
        return pb.ListAgentsResponse(agents=[agent_message(each) for each in views])

    async def GetFleetPolicy(
        self,
        request: pb.GetFleetPolicyRequest,
        context: grpc.aio.ServicerContext[pb.GetFleetPolicyRequest, pb.GetFleetPolicyResponse],
    ) -> pb.GetFleetPolicyResponse:
        """The policy, and the members found faulted."""
        del request, context
        policy, faulted = await self._fleet.policy()
        return pb.GetFleetPolicyResponse(
            policy=policy_message(policy), faulted=[faulted_message(each) for each in faulted]
        )

    async def SetFleetPolicy(
        self,
        request: pb.SetFleetPolicyRequest,
        context: grpc.aio.ServicerContext[pb.SetFleetPolicyRequest, pb.SetFleetPolicyResponse],
    ) -> pb.SetFleetPolicyResponse:
        """Changes the policy."""
        del context
        policy = await self._fleet.set_policy(policy_wish(request))
        return pb.SetFleetPolicyResponse(policy=policy_message(policy))

    async def DrainDownstairs(
        self,
        request: pb.DrainDownstairsRequest,
        context: grpc.aio.ServicerContext[pb.DrainDownstairsRequest, pb.DrainDownstairsResponse],
    ) -> pb.DrainDownstairsResponse:
        """Begins to empty a host or an address."""
        del context

        async def begin() -> pb.DrainDownstairsResponse:
            view = await self._drains.begin(request.target, validate_only=request.validate_only)
            return pb.DrainDownstairsResponse(drain=drain_message(view))

        return await self._answers.once(
            "DrainDownstairs", request.request_id, request, pb.DrainDownstairsResponse, begin
        )

    async def GetDrain(
        self,
        request: pb.GetDrainRequest,
        context: grpc.aio.ServicerContext[pb.GetDrainRequest, pb.GetDrainResponse],
    ) -> pb.GetDrainResponse:
        """One drain."""
        del context
        return pb.GetDrainResponse(drain=drain_message(await self._drains.get(request.id)))

    async def ListDrains(
        self,
        request: pb.ListDrainsRequest,
        context: grpc.aio.ServicerContext[pb.ListDrainsRequest, pb.ListDrainsResponse],
    ) -> pb.ListDrainsResponse:
        """The newest drains."""
        del request, context
        views = await self._drains.listed()
        return pb.ListDrainsResponse(drains=[drain_message(each) for each in views])

    async def WatchDrain(
        self,
        request: pb.WatchDrainRequest,
        context: grpc.aio.ServicerContext[pb.WatchDrainRequest, pb.WatchDrainResponse],
    ) -> AsyncIterator[pb.WatchDrainResponse]:
        """The present state and each change, until the end."""
        del context
        async with aclosing(self._drains.watch(request.id)) as views:
            async for view in views:
                yield pb.WatchDrainResponse(drain=drain_message(view))

    async def CancelDrain(
        self,
        request: pb.CancelDrainRequest,
        context: grpc.aio.ServicerContext[pb.CancelDrainRequest, pb.CancelDrainResponse],
    ) -> pb.CancelDrainResponse:
        """Ends a drain."""
        del context
        return pb.CancelDrainResponse(drain=drain_message(await self._drains.cancel(request.id)))
