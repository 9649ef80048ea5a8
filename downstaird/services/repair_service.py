"""RepairService: the source's side of a repair.

The caller must be of the set that owns the region, in the generation promoted last. An extent that
is itself under repair, or damaged, is never a source. Reads are of one moment each; a block the
session changes between two of them reaches the target by the session as well."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc

from downstaird.core.engine import Buffer
from downstaird.core.rate_limit import Stride
from downstaird.core.repair_plan import (
    CHUNK_BYTES_MAX,
    STEP_BYTES,
    Run,
    checksum,
    steps,
    stored_runs,
)
from downstaird.core.repair_source import check_caller, check_extent, checked_runs
from downstaird.core.verification import joined
from downstaird.region_host import RegionHost
from downstaird.services.block_service import DataPlace
from downstaird.services.mapping import uuid_of
from stairlib.model.context import ContextArray
from stairlib.wire.repair_chunk import Chunk, encode_chunk
from stairwell.downstairs.v1 import repair_service_pb2 as repair_pb

SERVICE_NAME = "stairwell.downstairs.v1.RepairService"


def register(server: grpc.aio.Server, host: RegionHost, place: Callable[[], DataPlace]) -> None:
    """Adds the service, as the generated function does, but for how chunks become bytes."""
    servicer = RepairServicer(host, place)
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "GetExtentContexts": grpc.unary_unary_rpc_method_handler(
            servicer.GetExtentContexts,
            request_deserializer=repair_pb.GetExtentContextsRequest.FromString,
            response_serializer=repair_pb.GetExtentContextsResponse.SerializeToString,
        ),
        "StreamExtent": grpc.unary_stream_rpc_method_handler(
            servicer.StreamExtent,
            request_deserializer=repair_pb.StreamExtentRequest.FromString,
            response_serializer=None,
        ),
        "OpenBlockConnection": grpc.unary_unary_rpc_method_handler(
            servicer.OpenBlockConnection,
            request_deserializer=repair_pb.OpenBlockConnectionRequest.FromString,
            response_serializer=repair_pb.OpenBlockConnectionResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))
    server.add_registered_method_handlers(SERVICE_NAME, handlers)


def _announcement(first_block: int, contexts: ContextArray, size: int) -> bytes:
    raw = contexts.tobytes()
    return encode_chunk(Chunk(first_block, raw, b"", checksum(raw, ()), size))


def _message(first_block: int, contexts: ContextArray, buffers: Sequence[Buffer]) -> bytes:
    raw, data = contexts.tobytes(), joined(buffers)
    return encode_chunk(Chunk(first_block, raw, data, checksum(raw, (data,))))


class RepairServicer:
    """Answers for one host. Registered by hand, for the sake of StreamExtent's messages."""

    def __init__(self, host: RegionHost, place: Callable[[], DataPlace]) -> None:
        self._host = host
        self._place = place

    async def GetExtentContexts(
        self,
        request: repair_pb.GetExtentContextsRequest,
        _context: grpc.aio.ServicerContext[
            repair_pb.GetExtentContextsRequest, repair_pb.GetExtentContextsResponse
        ],
    ) -> repair_pb.GetExtentContextsResponse:
        """Contexts of an extent, or a part of one, and its stamp at the same moment."""
        engine = self._host.engine
        self._check_caller(request)
        states = engine.extent_states()
        check_extent(states, request.extent)
        geometry = engine.definition.geometry
        blocks = geometry.blocks_per_extent
        asked = Run(request.first_block, request.block_count or blocks)
        [window] = checked_runs([asked], blocks)
        equal = request.HasField("digest") and request.digest == engine.digest(request.extent)
        runs = []
        if not equal:
            contexts = engine.contexts(request.extent * blocks + window.first, window.count)
            runs = [
                repair_pb.ContextRun(first_block=window.first + first, contexts=raw)
                for first, raw in stored_runs(contexts)
            ]
        return repair_pb.GetExtentContextsResponse(
            runs=runs,
            equal=equal,
            generation=int(states.generations[request.extent]),
            flush_number=int(states.flushes[request.extent]),
            block_size=geometry.block_size,
            blocks_per_extent=blocks,
            extent_count=geometry.extent_count,
        )

    async def StreamExtent(
        self,
        request: repair_pb.StreamExtentRequest,
        _context: grpc.aio.ServicerContext[repair_pb.StreamExtentRequest, bytes],
    ) -> AsyncIterator[bytes]:
        """The blocks asked for, in steps: sent on the caller's block connection where they lie in
        their homes, else read and made a message of; all of it off the loop."""
        engine = self._host.engine
        self._check_caller(request)
        check_extent(engine.extent_states(), request.extent)
        geometry = engine.definition.geometry
        base = request.extent * geometry.blocks_per_extent
        asked = (Run(each.first_block, each.block_count) for each in request.ranges)
        parts = checked_runs(asked, geometry.blocks_per_extent)
        most = min(request.chunk_bytes, CHUNK_BYTES_MAX)
        stride = Stride(STEP_BYTES, most, self._host.guest_frames)

        sending = self._host.repair_sending
        with sending.taken(request.block_token) as connection:

            def size() -> int:
                # By sendfile the loop has little of it: its size is the target's to say.
                beside = connection is not None and most > 0
                return most if beside else stride.bytes(self._host.guest_frames)

            for run in steps(parts, geometry.block_size, size):
                # Asked each time: a takeover in between makes the caller a stranger.
                self._check_caller(request)
                work = engine.begin_read(base + run.first, run.count) if connection else None
                if connection is None or work is None:
                    form = functools.partial(_message, run.first)
                    yield await self._host.repair_threads.read(base + run.first, run.count, form)
                    continue
                # First, so that the other end is there to take them.
                yield _announcement(run.first, work.contexts, run.count * geometry.block_size)
                await sending.send(work, connection)

    async def OpenBlockConnection(
        self,
        request: repair_pb.OpenBlockConnectionRequest,
        context: grpc.aio.ServicerContext[
            repair_pb.OpenBlockConnectionRequest, repair_pb.OpenBlockConnectionResponse
        ],
    ) -> repair_pb.OpenBlockConnectionResponse:
        """A token for one connection, and where to show it."""
        self._check_caller(request)
        token = self._host.repair_sending.offer()
        if not token:
            return repair_pb.OpenBlockConnectionResponse()
        place = self._place()
        return repair_pb.OpenBlockConnectionResponse(
            token=token,
            data_address=place.address_for(context.peer()),
            data_unix_path=str(place.unix_path or ""),
        )

    def _check_caller(
        self,
        request: repair_pb.GetExtentContextsRequest
        | repair_pb.StreamExtentRequest
        | repair_pb.OpenBlockConnectionRequest,
    ) -> None:
        check_caller(
            self._host.engine.ownership,
            uuid_of(request.upstairs_id, "upstairs_id"),
            request.generation,
            read_only=self._host.read_only,
        )
