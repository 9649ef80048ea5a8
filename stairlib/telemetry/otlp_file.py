"""A trace as an OTLP document, as the file receiver of a collector reads it.

`TracesData` of the OTLP protocol, grouped by daemon: as one line of JSON in the encoding that OTLP
prescribes (ids in hexadecimal, enumerations as numbers), or as protobuf bytes. Spans that are under
way are left out, since a receiver takes ended ones only.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from google.protobuf import json_format
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from stairwell.telemetry.v1 import trace_service_pb2 as pb

_SCOPE: Final = "stairwell"
_ID_FIELDS: Final = ("traceId", "spanId", "parentSpanId")
_STATUS: Final = {
    "OK": trace_pb2.Status.STATUS_CODE_OK,
    "ERROR": trace_pb2.Status.STATUS_CODE_ERROR,
}


def traces_data(spans: Iterable[pb.Span]) -> trace_pb2.TracesData:
    """The ended spans as OTLP has them; each daemon is a resource."""
    data = trace_pb2.TracesData()
    groups: dict[tuple[str, str], trace_pb2.ScopeSpans] = {}
    for span in spans:
        if not span.end_time_unix_nano:
            continue
        key = (span.service, span.instance)
        if key not in groups:
            resource = data.resource_spans.add()
            named = {"service.name": span.service, "service.instance.id": span.instance}
            resource.resource.attributes.extend(_attributes(named, ()))
            groups[key] = resource.scope_spans.add()
            groups[key].scope.name = _SCOPE
        groups[key].spans.append(_span(span))
    return data


def to_json_line(data: trace_pb2.TracesData) -> str:
    """One line of OTLP JSON, with its end."""
    document = json_format.MessageToDict(data, use_integers_for_enums=True)
    for resource in document.get("resourceSpans", ()):
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                _in_hexadecimal(span)
                for link in span.get("links", ()):
                    _in_hexadecimal(link)
    return json.dumps(document, separators=(",", ":")) + "\n"


def _in_hexadecimal(fields: dict[str, Any]) -> None:
    """OTLP's exception from protobuf's JSON, which has bytes in base64."""
    for name in _ID_FIELDS:
        if name in fields:
            fields[name] = base64.b64decode(fields[name]).hex()


def _span(span: pb.Span) -> trace_pb2.Span:
    return trace_pb2.Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_span_id),
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Value(f"SPAN_KIND_{span.kind or 'INTERNAL'}"),
        start_time_unix_nano=span.start_time_unix_nano,
        end_time_unix_nano=span.end_time_unix_nano,
        attributes=_attributes(span.attributes, span.int_attributes),
        events=[
            trace_pb2.Span.Event(
                name=event.name,
                time_unix_nano=event.time_unix_nano,
                attributes=_attributes(event.attributes, event.int_attributes),
            )
            for event in span.events
        ],
        links=[
            trace_pb2.Span.Link(
                trace_id=bytes.fromhex(link.trace_id), span_id=bytes.fromhex(link.span_id)
            )
            for link in span.links
        ],
        status=trace_pb2.Status(
            code=_STATUS.get(span.status, trace_pb2.Status.STATUS_CODE_UNSET),
            message=span.status_message,
        ),
    )


def _attributes(attributes: Mapping[str, str], whole: Iterable[str]) -> list[common_pb2.KeyValue]:
    numbers = set(whole)
    return [
        common_pb2.KeyValue(
            key=key,
            value=common_pb2.AnyValue(int_value=int(value))
            if key in numbers
            else common_pb2.AnyValue(string_value=value),
        )
        for key, value in sorted(attributes.items())
    ]
