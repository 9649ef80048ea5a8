"""DscService over gRPC: check, hand to the fleet, map."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import grpc.aio

from downstaird.dsc.core.member import State
from downstaird.dsc.fleet import Fleet
from downstaird.dsc.monitor import Monitor
from stairlib.model.errors import FieldViolation, InvalidRequestError
from stairwell.dsc.v1 import dsc_service_pb2 as pb
from stairwell.dsc.v1 import dsc_service_pb2_grpc as pb_grpc

SERVICE_NAME = "stairwell.dsc.v1.DscService"

_STATES = {
    State.STOPPED: pb.REGION_STATE_STOPPED,
    State.STOPPING: pb.REGION_STATE_STOPPING,
    State.STARTING: pb.REGION_STATE_STARTING,
    State.RUNNING: pb.REGION_STATE_RUNNING,
    State.EXIT: pb.REGION_STATE_EXIT,
    State.FAILED: pb.REGION_STATE_FAILED,
}


class DscServicer(pb_grpc.DscServiceServicer):
    """Serves one fleet; `shut_down` is called to ask the whole of dsc to end."""

    def __init__(self, fleet: Fleet, shut_down: Callable[[], None]) -> None:
        self._fleet = fleet
        self._shut_down = shut_down

    async def ListRegions(
        self,
        request: pb.ListRegionsRequest,
        context: grpc.aio.ServicerContext[pb.ListRegionsRequest, pb.ListRegionsResponse],
    ) -> pb.ListRegionsResponse:
        """Every member and its state."""
        del request, context
        return pb.ListRegionsResponse(
            regions=_regions(self._fleet.monitors), read_only=self._fleet.launcher.read_only
        )

    async def GetRegionInfo(
        self,
        request: pb.GetRegionInfoRequest,
        context: grpc.aio.ServicerContext[pb.GetRegionInfoRequest, pb.GetRegionInfoResponse],
    ) -> pb.GetRegionInfoResponse:
        """The geometry that the members share."""
        del request, context
        geometry = self._fleet.region_geometry()
        return pb.GetRegionInfoResponse(
            block_size=geometry.block_size,
            blocks_per_extent=geometry.blocks_per_extent,
            extent_count=geometry.extent_count,
        )

    async def Start(
        self,
        request: pb.StartRequest,
        context: grpc.aio.ServicerContext[pb.StartRequest, pb.StartResponse],
    ) -> pb.StartResponse:
        """Start members that are down."""
        del context
        monitors = self._chosen(request.members)
        self._fleet.start_members(monitors)
        return pb.StartResponse(regions=_regions(monitors))

    async def Stop(
        self,
        request: pb.StopRequest,
        context: grpc.aio.ServicerContext[pb.StopRequest, pb.StopResponse],
    ) -> pb.StopResponse:
        """Stop members that are up."""
        del context
        monitors = self._chosen(request.members)
        self._fleet.stop_members(monitors, graceful=request.graceful)
        return pb.StopResponse(regions=_regions(monitors))

    async def SetRestart(
        self,
        request: pb.SetRestartRequest,
        context: grpc.aio.ServicerContext[pb.SetRestartRequest, pb.SetRestartResponse],
    ) -> pb.SetRestartResponse:
        """Turn restarts of members on or off."""
        del context
        monitors = self._chosen(request.members)
        self._fleet.set_restart(monitors, enabled=request.enabled)
        return pb.SetRestartResponse(regions=_regions(monitors))

    async def SetRandomStop(
        self,
        request: pb.SetRandomStopRequest,
        context: grpc.aio.ServicerContext[pb.SetRandomStopRequest, pb.SetRandomStopResponse],
    ) -> pb.SetRandomStopResponse:
        """Change random stops by what is given; answers how they are then."""
        del context
        policy = self._fleet.random_stop.changed(
            enabled=request.enabled if request.HasField("enabled") else None,
            min_seconds=request.min_seconds if request.HasField("min_seconds") else None,
            max_seconds=request.max_seconds if request.HasField("max_seconds") else None,
        )
        self._fleet.set_random_stop(policy)
        return pb.SetRandomStopResponse(
            enabled=policy.enabled,
            min_seconds=policy.min_seconds,
            max_seconds=policy.max_seconds,
        )

    async def Shutdown(
        self,
        request: pb.ShutdownRequest,
        context: grpc.aio.ServicerContext[pb.ShutdownRequest, pb.ShutdownResponse],
    ) -> pb.ShutdownResponse:
        """Ask dsc to stop its members and end; answers at once."""
        del request, context
        self._shut_down()
        return pb.ShutdownResponse()

    def _chosen(self, members: pb.Members) -> Sequence[Monitor]:
        which = members.WhichOneof("which")
        if which == "cid":
            return [self._fleet.one(members.cid)]
        if which == "all" and members.all:
            return self._fleet.monitors
        if which == "random" and members.random:
            return [self._fleet.any_running()]
        text = "say which members: cid, all or random"
        raise InvalidRequestError(text, (FieldViolation("members", text, "REQUIRED"),))


def _regions(monitors: Sequence[Monitor]) -> list[pb.Region]:
    return [
        pb.Region(
            cid=monitor.plan.cid,
            id=str(monitor.plan.region_id),
            port=monitor.plan.port,
            pid=monitor.pid,
            state=_STATES[monitor.state],
            restart=monitor.member.restart,
            directory=monitor.plan.directory,
            output=monitor.plan.output,
        )
        for monitor in monitors
    ]
