"""Spans between OpenTelemetry's objects and our messages, in both directions.

A message keeps every attribute as text, and names those that are whole numbers, so that a span can
be made again of it (for a collector) with the types it had.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from stairwell.telemetry.v1 import trace_service_pb2 as pb

_STATUS_WORDS: Final = {StatusCode.OK: "OK", StatusCode.ERROR: "ERROR"}
_STATUS_CODES: Final = {word: code for code, word in _STATUS_WORDS.items()}


def to_message(span: ReadableSpan, service: str, instance: str) -> pb.Span:
    """The span as a message; one that is under way has no end."""
    context = span.get_span_context()
    assert context is not None
    attributes = dict(span.attributes or {})
    return pb.Span(
        trace_id=format(context.trace_id, "032x"),
        span_id=format(context.span_id, "016x"),
        parent_span_id=format(span.parent.span_id, "016x") if span.parent else "",
        name=span.name,
        service=service,
        instance=instance,
        start_time_unix_nano=span.start_time or 0,
        end_time_unix_nano=span.end_time or 0,
        attributes=_texts(attributes),
        int_attributes=_whole(attributes),
        status=_STATUS_WORDS.get(span.status.status_code, "UNSET"),
        status_message=span.status.description or "",
        kind=span.kind.name,
        events=[
            pb.SpanEvent(
                name=event.name,
                time_unix_nano=event.timestamp,
                attributes=_texts(event.attributes or {}),
                int_attributes=_whole(event.attributes or {}),
            )
            for event in tuple(span.events)
        ],
        links=[
            pb.SpanLink(
                trace_id=format(link.context.trace_id, "032x"),
                span_id=format(link.context.span_id, "016x"),
            )
            for link in tuple(span.links)
        ],
    )


def to_span(message: pb.Span, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    """The span of a message, of this process: for its memory and its exporter."""
    trace_id = int(message.trace_id, 16)
    parent = message.parent_span_id
    return ReadableSpan(
        name=message.name,
        context=_context(trace_id, int(message.span_id, 16)),
        parent=_context(trace_id, int(parent, 16)) if parent else None,
        resource=resource,
        attributes=typed(message.attributes, message.int_attributes),
        events=[
            Event(event.name, typed(event.attributes, event.int_attributes), event.time_unix_nano)
            for event in message.events
        ],
        links=[
            Link(_context(int(link.trace_id, 16), int(link.span_id, 16))) for link in message.links
        ],
        kind=SpanKind[message.kind or "INTERNAL"],
        status=Status(
            _STATUS_CODES.get(message.status, StatusCode.UNSET), message.status_message or None
        )
        if message.status == "ERROR"
        else Status(_STATUS_CODES.get(message.status, StatusCode.UNSET)),
        start_time=message.start_time_unix_nano,
        end_time=message.end_time_unix_nano,
        instrumentation_scope=scope,
    )


def typed(attributes: Mapping[str, str], whole: Iterable[str]) -> dict[str, Any]:
    """The attributes of a message with the types they had."""
    numbers = set(whole)
    return {key: int(value) if key in numbers else value for key, value in attributes.items()}


def _texts(attributes: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in attributes.items()}


def _whole(attributes: Mapping[str, Any]) -> list[str]:
    return [
        key
        for key, value in attributes.items()
        if isinstance(value, int) and not isinstance(value, bool)
    ]


def _context(trace_id: int, span_id: int) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(1))
