"""TraceService: a daemon's recent spans of one trace, with those of the daemons it called.

A daemon that is away costs its own spans only: the answer is what could be collected. Invariants:
every call downstream has a deadline, and the answer stays within the default message size.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from typing import Final

import grpc

from stairlib.model.errors import FieldViolation, InvalidRequestError, StairwellError
from stairlib.rpc.errors import translated
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.tracing import Tracing
from stairwell.telemetry.v1 import trace_service_pb2 as telemetry_pb
from stairwell.telemetry.v1 import trace_service_pb2_grpc as telemetry_grpc

SERVICE_NAME: Final = "stairwell.telemetry.v1.TraceService"
# A daemon answers from memory: longer means that it is stuck or away.
_COLLECT_SECONDS: Final = 5.0
# Each hop leaves its caller this much time to answer in turn.
_HOP_SECONDS: Final = 0.5
# gRPC clients refuse messages above 4 MiB by default.
_MAX_ANSWER_BYTES: Final = 3 << 20
# Around each span of an answer.
_FRAME_BYTES: Final = 8

_log = get_logger(__name__)


class TraceServicer(telemetry_grpc.TraceServiceServicer):
    """Answers from this daemon's memory and from those behind `downstream`.

    `downstream` gives (name of the peer, open channel) pairs at the time of the call: those of a
    machine by its id, or all for an empty one.
    """

    def __init__(
        self,
        tracing: Tracing,
        downstream: Callable[[str], Iterable[tuple[str, grpc.aio.Channel]]] = lambda _machine: (),
    ) -> None:
        self._tracing = tracing
        self._downstream = downstream

    async def CollectTrace(
        self,
        request: telemetry_pb.CollectTraceRequest,
        context: grpc.aio.ServicerContext[
            telemetry_pb.CollectTraceRequest, telemetry_pb.CollectTraceResponse
        ],
    ) -> telemetry_pb.CollectTraceResponse:
        """The spans in the order they began, each once."""
        trace_id = checked_trace_id(request.trace_id)
        remaining = context.time_remaining()
        seconds = _COLLECT_SECONDS if remaining is None else remaining - _HOP_SECONDS
        gathered = await asyncio.gather(
            *(
                collect(peer, channel, trace_id, min(seconds, _COLLECT_SECONDS), request.machine_id)
                for peer, channel in (self._downstream(request.machine_id) if seconds > 0 else ())
            )
        )
        return _answer([self._tracing.spans(trace_id, under_way=True), *gathered])


def checked_trace_id(text: str) -> str:
    """The trace id in lower case; raises InvalidRequestError unless it is 32 hexadecimal digits."""
    if not re.fullmatch(r"[0-9a-fA-F]{32}", text):
        message = f"trace_id must be 32 hexadecimal digits, not {text[:64]!r}"
        raise InvalidRequestError(message, (FieldViolation("trace_id", message, "BAD_TRACE_ID"),))
    return text.lower()


async def collect(
    peer: str,
    channel: grpc.aio.Channel,
    trace_id: str,
    seconds: float = _COLLECT_SECONDS,
    machine_id: str = "",
) -> list[telemetry_pb.Span]:
    """The spans a peer (and those behind it) has of a trace; none, and a log line, if it fails."""
    stub = telemetry_grpc.TraceServiceStub(channel)
    try:
        with translated(peer):
            answer = await stub.CollectTrace(
                telemetry_pb.CollectTraceRequest(trace_id=trace_id, machine_id=machine_id),
                timeout=seconds,
            )
    except StairwellError as error:
        _log.info("trace not collected", peer=peer, reason=error.reason, error=error.message)
        return []
    return list(answer.spans)


def bounded(spans: Iterable[telemetry_pb.Span], size_max: int) -> list[telemetry_pb.Span]:
    """The spans in the order they began, each once, as many as fit into `size_max` bytes.

    What is left out are the leaves farthest below: the steps of a workflow and what failed tell
    more than the ten thousandth copy of an extent.
    """
    unique: dict[str, telemetry_pb.Span] = {}
    for span in spans:
        known = unique.get(span.span_id)
        # What is under way for one who asked early may have ended for another.
        if known is None or not known.end_time_unix_nano:
            unique[span.span_id] = span
    sizes = {span_id: span.ByteSize() + _FRAME_BYTES for span_id, span in unique.items()}
    kept = list(unique.values())
    if sum(sizes.values()) > size_max:
        kept, size = [], 0
        depths = _depths(unique)
        for span in sorted(
            unique.values(),
            key=lambda one: (one.status != "ERROR", depths[one.span_id], one.start_time_unix_nano),
        ):
            size += sizes[span.span_id]
            if size > size_max:
                break
            kept.append(span)
        _log.warning("trace cut short", kept=len(kept), spans=len(unique))
    return sorted(kept, key=lambda span: span.start_time_unix_nano)


def _depths(spans: dict[str, telemetry_pb.Span]) -> dict[str, int]:
    """How many of the known spans are above each."""
    depths: dict[str, int] = {}
    for span_id in spans:
        path: list[str] = []
        walk = span_id
        while walk in spans and walk not in depths and walk not in path:
            path.append(walk)
            walk = spans[walk].parent_span_id
        depth = depths.get(walk, -1)
        for each in reversed(path):
            depth += 1
            depths[each] = depth
    return depths


def _answer(groups: list[list[telemetry_pb.Span]]) -> telemetry_pb.CollectTraceResponse:
    everything = (span for spans in groups for span in spans)
    return telemetry_pb.CollectTraceResponse(spans=bounded(everything, _MAX_ANSWER_BYTES))
