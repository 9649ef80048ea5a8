"""Tracing of one program: an OpenTelemetry provider, a bounded memory of spans, and W3C context.

Every daemon keeps its recent spans so that a trace can be read with no collector installed; they
are sent to a collector as well when the environment names one (`exporting`). Invariants: no global
provider (two daemons in one process keep apart), memory is bounded, ending a span never waits for
the network.
"""

from __future__ import annotations

import threading
from importlib import metadata
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stairlib.telemetry import exporting
from stairlib.telemetry.span_message import to_message, to_span
from stairlib.telemetry.span_store import MAX_SPANS, SpanStore
from stairwell.telemetry.v1 import trace_service_pb2 as telemetry_pb

# Sending what is left at the end must not hold up a stop that someone waits for.
_FLUSH_SECONDS: Final = 3.0
_SCOPE: Final = "stairwell"
_TRACEPARENT: Final = "traceparent"
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class Tracing:
    """The tracer of one program and what it recorded."""

    def __init__(self, service: str, instance: str, *, limit: int = MAX_SPANS) -> None:
        self.service = service
        self.instance = instance
        self._store = SpanStore(self._encoded, limit)
        self._sent: SpanProcessor | None = None
        self._resource = Resource.create(
            {
                "service.name": service,
                "service.instance.id": instance,
                "service.version": metadata.version("stairwell"),
            }
        )
        self._provider = TracerProvider(resource=self._resource, shutdown_on_exit=False)
        self._provider.add_span_processor(self._store)
        self.tracer: Tracer = self._provider.get_tracer(_SCOPE)

    @classmethod
    def configure(cls, service: str, instance: str) -> Tracing:
        """A tracing for `service` (as "vmmd") at `instance` (its address); OTLP by environment.

        InvalidRequestError when the environment asks for what we cannot send.
        """
        tracing = cls(service, instance)
        tracing._sent = exporting.span_processor()
        if tracing._sent is not None:
            tracing._provider.add_span_processor(tracing._sent)
        return tracing

    def spans(self, trace_id: str, *, under_way: bool = False) -> list[telemetry_pb.Span]:
        """The finished spans of a trace (32 hexadecimal digits), as messages.

        With `under_way` also those that have not ended, last and with no end.
        """
        number = int(trace_id, 16)
        found = [telemetry_pb.Span.FromString(body) for body in self._store.spans(number)]
        if under_way:
            ended = {span.span_id for span in found}
            running = [self._message(span) for span in self._store.under_way(number)]
            found += [span for span in running if span.span_id not in ended]
        return found

    def _message(self, span: ReadableSpan) -> telemetry_pb.Span:
        return to_message(span, self.service, self.instance)

    def _encoded(self, span: ReadableSpan) -> bytes:
        return self._message(span).SerializeToString()

    def record(self, span: telemetry_pb.Span) -> None:
        """Takes a span that was made by hand as one of this program that has ended.

        For a span that outlives processes, and one whose process died before it ended.
        """
        assert span.end_time_unix_nano, "a span is recorded when it has ended"
        made = to_span(span, self._resource, InstrumentationScope(_SCOPE))
        self._store.on_end(made)
        if self._sent is not None:
            self._sent.on_end(made)

    def shutdown(self) -> None:
        """Sends what is left, if anything is exported; call it when the servers have stopped.

        A collector that is away costs three seconds at most: the library's own limits add up to
        far more than a supervisor waits, so the rest goes on in a thread that ends with us.
        """
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_FLUSH_SECONDS)


def traceparent() -> str | None:
    """The W3C `traceparent` of the current span, or None outside any span."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get(_TRACEPARENT)


def context_from(traceparent: str | None) -> Context:
    """The context to start a span in that continues `traceparent`; empty for a malformed one."""
    carrier = {_TRACEPARENT: traceparent} if traceparent else {}
    return _PROPAGATOR.extract(carrier, Context())


def current_trace_id() -> str | None:
    """The trace id of the current span in 32 hexadecimal digits, or None outside any span."""
    context = trace.get_current_span().get_span_context()
    return format(context.trace_id, "032x") if context.is_valid else None


def parse_traceparent(text: str) -> tuple[str, str] | None:
    """(trace id, span id) of a W3C `traceparent`, or None for a malformed one."""
    found = trace.get_current_span(context_from(text)).get_span_context()
    if not found.is_valid:
        return None
    return format(found.trace_id, "032x"), format(found.span_id, "016x")
