"""Tracing of one program: an OpenTelemetry provider, a bounded memory of spans, and W3C context.

Every daemon keeps its recent finished spans so that a trace can be read with no collector
installed; they go to OTLP as well when `OTEL_EXPORTER_OTLP_ENDPOINT` (or the `_TRACES_` variant)
is set. Invariants: no global provider (two daemons in one process keep apart), memory is bounded,
ending a span never waits for the network.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from importlib import metadata
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stairwell.telemetry.v1 import trace_service_pb2 as telemetry_pb

# About 20 MiB of span objects; a replacement of a hundred extents leaves some hundred spans.
MAX_SPANS: Final = 20_000
# Sending what is left at the end must not hold up a stop that someone waits for.
_FLUSH_SECONDS: Final = 3.0
_OTLP_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_TRACEPARENT: Final = "traceparent"
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class SpanStore(SpanProcessor):
    """The finished spans by trace; at `limit` spans the trace that began first is dropped whole.

    A single trace of `limit` spans keeps its first ones. Safe to use from any thread.
    """

    def __init__(self, limit: int = MAX_SPANS) -> None:
        self._limit = limit
        self._count = 0
        self._traces: OrderedDict[int, list[ReadableSpan]] = OrderedDict()
        self._lock = threading.Lock()

    def on_end(self, span: ReadableSpan) -> None:
        """Keeps one finished span."""
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        with self._lock:
            spans = self._traces.setdefault(context.trace_id, [])
            while self._count >= self._limit:
                oldest, dropped = next(iter(self._traces.items()))
                if oldest == context.trace_id:
                    return
                del self._traces[oldest]
                self._count -= len(dropped)
            spans.append(span)
            self._count += 1

    def spans(self, trace_id: int) -> list[ReadableSpan]:
        """The kept spans of a trace, in the order they ended."""
        with self._lock:
            return list(self._traces.get(trace_id, ()))


class Tracing:
    """The tracer of one program and what it recorded."""

    def __init__(self, service: str, instance: str, *, limit: int = MAX_SPANS) -> None:
        self.service = service
        self.instance = instance
        self._store = SpanStore(limit)
        self._provider = TracerProvider(
            resource=Resource.create(
                {
                    "service.name": service,
                    "service.instance.id": instance,
                    "service.version": metadata.version("stairwell"),
                }
            ),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(self._store)
        self.tracer: Tracer = self._provider.get_tracer("stairwell")

    @classmethod
    def configure(cls, service: str, instance: str) -> Tracing:
        """A tracing for `service` (as "vmmd") at `instance` (its address); OTLP by environment."""
        tracing = cls(service, instance)
        if any(os.environ.get(name) for name in _OTLP_VARIABLES):
            tracing._export()
        return tracing

    def _export(self) -> None:
        # Late imports: they take a while and most runs have no collector.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))

    def spans(self, trace_id: str) -> list[telemetry_pb.Span]:
        """The finished spans of a trace (32 hexadecimal digits), as messages."""
        return [
            _span_message(span, self.service, self.instance)
            for span in self._store.spans(int(trace_id, 16))
        ]

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


def _span_message(span: ReadableSpan, service: str, instance: str) -> telemetry_pb.Span:
    context = span.get_span_context()
    assert context is not None
    status = span.status.status_code
    return telemetry_pb.Span(
        trace_id=format(context.trace_id, "032x"),
        span_id=format(context.span_id, "016x"),
        parent_span_id=format(span.parent.span_id, "016x") if span.parent else "",
        name=span.name,
        service=service,
        instance=instance,
        start_time_unix_nano=span.start_time or 0,
        end_time_unix_nano=span.end_time or 0,
        attributes={key: str(value) for key, value in (span.attributes or {}).items()},
        status={StatusCode.OK: "OK", StatusCode.ERROR: "ERROR"}.get(status, "UNSET"),
        status_message=span.status.description or "",
    )
