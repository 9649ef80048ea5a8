"""The agent of a host as the control plane sees it: asked what it has, and for regions.

As with the downstairs, no connection is kept: each question opens one and closes it. Over TLS where
the control plane was given files of its own.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from controlplane.core.fleet import AgentFacts
from stairlib.model.geometry import Geometry
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.tls import TlsFiles, reach
from stairlib.telemetry import configuration_service
from stairlib.telemetry.tracing import Tracing
from stairwell.agent.v1 import agent_service_pb2 as pb
from stairwell.agent.v1 import agent_service_pb2_grpc as pb_grpc
from stairwell.telemetry.v1 import configuration_service_pb2 as configuration_pb

# Its answers come once a wish is on disk.
ASK_SECONDS = 10.0


class Agents:
    """Dials agents by address. `tls` is the control plane's own identity, if it has one."""

    def __init__(self, tracing: Tracing, tls: TlsFiles | None = None) -> None:
        self._tracing = tracing
        self._tls = tls

    async def facts(self, address: str) -> AgentFacts:
        """What its host has to give; what a capacity leaves where it was given one."""
        answer: pb.GetHostResponse = await self._call(address, "GetHost", pb.GetHostRequest())
        free = answer.free_bytes
        if answer.capacity_bytes:
            free = min(free, max(0, answer.capacity_bytes - answer.provisioned_bytes))
        return AgentFacts(answer.host_name, answer.failure_domain, free, answer.ports_free)

    async def create(
        self, address: str, region_id: UUID, geometry: Geometry, cipher: str
    ) -> pb.Region:
        """Asks for a region, or finds the one that was asked for."""
        request = pb.CreateRegionRequest(
            id=str(region_id),
            geometry=pb.Geometry(
                block_size=geometry.block_size,
                extent_size=geometry.blocks_per_extent,
                extent_count=geometry.extent_count,
            ),
            cipher=cipher,
        )
        answer = await self._call(address, "CreateRegion", request)
        region: pb.Region = answer.region
        return region

    async def region(self, address: str, region_id: UUID) -> pb.Region:
        """One region; NotFoundError when the agent knows none of that id."""
        answer = await self._call(address, "GetRegion", pb.GetRegionRequest(id=str(region_id)))
        region: pb.Region = answer.region
        return region

    async def destroy(self, address: str, region_id: UUID) -> None:
        """Has a region gone, whatever it is in the middle of; idempotent."""
        await self._call(address, "DestroyRegion", pb.DestroyRegionRequest(id=str(region_id)))

    async def configuration(
        self, address: str, seconds: float
    ) -> configuration_pb.DaemonConfiguration:
        """What it was started with."""
        peer = await reach(address, self._tls) if self._tls is not None else None
        async with open_channel(address, tracing=self._tracing, tls=peer) as channel:
            return await configuration_service.ask(channel, f"the agent at {address}", seconds)

    async def _call(self, address: str, method: str, request: object) -> Any:
        peer = await reach(address, self._tls) if self._tls is not None else None
        async with open_channel(address, tracing=self._tracing, tls=peer) as channel:
            stub: Any = pb_grpc.AgentServiceStub(channel)
            with translated(f"the agent at {address}"):
                return await getattr(stub, method)(request, timeout=ASK_SECONDS)
