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

_log = get_logger(__name__)


class TraceServicer(telemetry_grpc.TraceServiceServicer):
    """Answers from this daemon's memory and from those behind `downstream()`.

    `downstream` gives (name of the peer, open channel) pairs at the time of the call.
    """

    def __init__(
        self,
        tracing: Tracing,
        downstream: Callable[[], Iterable[tuple[str, grpc.aio.Channel]]] = tuple,
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
                collect(peer, channel, trace_id, min(seconds, _COLLECT_SECONDS))
                for peer, channel in (self._downstream() if seconds > 0 else ())
            )
        )
        return _answer([self._tracing.spans(trace_id), *gathered])


def checked_trace_id(text: str) -> str:
    """The trace id in lower case; raises InvalidRequestError unless it is 32 hexadecimal digits."""
    if not re.fullmatch(r"[0-9a-fA-F]{32}", text):
        message = f"trace_id must be 32 hexadecimal digits, not {text[:64]!r}"
        raise InvalidRequestError(message, (FieldViolation("trace_id", message, "BAD_TRACE_ID"),))
    return text.lower()


async def collect(
    peer: str, channel: grpc.aio.Channel, trace_id: str, seconds: float = _COLLECT_SECONDS
) -> list[telemetry_pb.Span]:
    """The spans a peer (and those behind it) has of a trace; none, and a log line, if it fails."""
    stub = telemetry_grpc.TraceServiceStub(channel)
    try:
        with translated(peer):
            answer = await stub.CollectTrace(
                telemetry_pb.CollectTraceRequest(trace_id=trace_id), timeout=seconds
            )
    except StairwellError as error:
        _log.info("trace not collected", peer=peer, reason=error.reason, error=error.message)
        return []
    return list(answer.spans)


def _answer(groups: list[list[telemetry_pb.Span]]) -> telemetry_pb.CollectTraceResponse:
    unique = {span.span_id: span for spans in groups for span in spans}
    answer = telemetry_pb.CollectTraceResponse()
    size = 0
    for span in sorted(unique.values(), key=lambda each: each.start_time_unix_nano):
        size += span.ByteSize() + 8
        if size > _MAX_ANSWER_BYTES:
            _log.warning("trace cut short", kept=len(answer.spans), spans=len(unique))
            break
        answer.spans.append(span)
    return answer
