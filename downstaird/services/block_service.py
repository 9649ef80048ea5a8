"""BlockService: negotiation of sessions, the data frames over gRPC, and block access for hands."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import grpc

from downstaird.conversation import Conversation
from downstaird.core.by_hand import check_read, contexts_for
from downstaird.core.verification import joined
from downstaird.region_host import RegionHost
from downstaird.services.mapping import proposal_of, region_message
from downstaird.stream_wire import StreamWire
from stairlib.model.errors import StateError
from stairwell.downstairs.v1 import block_service_pb2 as block_pb
from stairwell.downstairs.v1 import block_service_pb2_grpc as block_grpc

SERVICE_NAME = "stairwell.downstairs.v1.BlockService"


@dataclass(frozen=True, slots=True)
class DataPlace:
    """Where data connections are taken. `host` is what clients are told, empty to work it out for
    each."""

    host: str
    port: int
    unix_path: Path | None

    def address_for(self, peer: str) -> str:
        """ "host:port" for a gRPC peer as grpc names it ("ipv4:1.2.3.4:5")."""
        host = self.host or local_address_towards(peer)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def local_address_towards(peer: str) -> str:
    """Our address on the way to `peer`: what it reaches us by unless something translates in
    between."""
    kind, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]")
    families = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
    if kind not in families or not host:
        return "127.0.0.1"
    with socket.socket(families[kind], socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: connecting a datagram socket only chooses the route.
            probe.connect((host, 9))
            name: str = probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
    return name


class BlockServicer(block_grpc.BlockServiceServicer):
    """Answers for one host. `place` gives where data connections go, once that is known."""

    def __init__(self, host: RegionHost, version: str, place: Callable[[], DataPlace]) -> None:
        self._host = host
        self._version = version
        self._place = place

    async def OpenSession(
        self,
        request: block_pb.OpenSessionRequest,
        context: grpc.aio.ServicerContext[
            block_pb.OpenSessionRequest, block_pb.OpenSessionResponse
        ],
    ) -> block_pb.OpenSessionResponse:
        """Negotiates, promotes, and says where to connect."""
        place = self._place()
        grant, version = self._host.open_session(proposal_of(request))
        states = self._host.engine.extent_states()
        return block_pb.OpenSessionResponse(
            region=region_message(self._host, self._version),
            data_version=version,
            data_address=place.address_for(context.peer()),
            data_unix_path=str(place.unix_path or ""),
            token=grant.token,
            extent_generations=states.generations.tolist(),
            extent_flushes=states.flushes.tolist(),
            extent_flags=states.flags.tobytes(),
        )

    async def Data(
        self,
        request_iterator: AsyncIterator[block_pb.DataRequest],
        context: grpc.aio.ServicerContext[block_pb.DataRequest, block_pb.DataResponse],
    ) -> AsyncIterator[block_pb.DataResponse]:
        """A data connection inside this call."""
        wire = StreamWire()
        conversation = Conversation(self._host, wire, context.peer())
        receiving = asyncio.create_task(wire.receive(request_iterator, conversation))
        try:
            async for piece in wire.messages(conversation):
                yield block_pb.DataResponse(frame=piece)
        finally:
            conversation.close("CONNECTION_CLOSED")
            receiving.cancel()

    async def Read(
        self,
        request: block_pb.ReadRequest,
        _context: grpc.aio.ServicerContext[block_pb.ReadRequest, block_pb.ReadResponse],
    ) -> block_pb.ReadResponse:
        """Blocks and their contexts."""
        self._host.require_no_writer()
        engine = self._host.engine
        check_read(engine.definition.geometry, request.block, request.count)
        contexts, buffers = engine.read(request.block, request.count)
        return block_pb.ReadResponse(data=bytes(joined(buffers)), contexts=contexts.tobytes())

    async def Write(
        self,
        request: block_pb.WriteRequest,
        _context: grpc.aio.ServicerContext[block_pb.WriteRequest, block_pb.WriteResponse],
    ) -> block_pb.WriteResponse:
        """Plain blocks; durable after a flush."""
        self._require_writable()
        contexts = contexts_for(self._host.engine.definition, request.block, request.data)
        self._host.engine.write(request.block, contexts, request.data)
        return block_pb.WriteResponse()

    async def Flush(
        self,
        request: block_pb.FlushRequest,
        _context: grpc.aio.ServicerContext[block_pb.FlushRequest, block_pb.FlushResponse],
    ) -> block_pb.FlushResponse:
        """Makes what was written durable, and a snapshot of it."""
        self._require_writable()
        return block_pb.FlushResponse(flush_number=await self._host.flush_by_hand(request.snapshot))

    def _require_writable(self) -> None:
        if self._host.read_only:
            raise StateError("the region is served read-only (--mode ro)", reason="READ_ONLY")
        self._host.require_no_writer()
