"""A trace as an OTLP document, read back as a receiver would."""

from __future__ import annotations

import base64
import json

from google.protobuf import json_format
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.trace import StatusCode

from stairlib.telemetry.otlp_file import to_json_line, traces_data
from stairlib.telemetry.tracing import Tracing, context_from

REQUEST = f"00-{'ab' * 16}-{'cd' * 8}-01"


def spans():
    """What two daemons have of one trace, one span of it still under way."""
    one, two = Tracing("controlplane", "a:1"), Tracing("vmmd", "b:2")
    waits = one.tracer.start_span("waits", context=context_from(REQUEST))
    for tracing in (one, two):
        with tracing.tracer.start_as_current_span(
            "step", context=context_from(REQUEST), attributes={"slot": 2, "volume.id": "v"}
        ) as span:
            span.add_event("progress", {"percent": 10, "of": "all"})
            span.set_status(StatusCode.ERROR, "it is full")
    found = [span for t in (one, two) for span in t.spans("ab" * 16, under_way=True)]
    waits.end()
    return found


def from_otlp_json(text):
    """OTLP's JSON as protobuf's: ids in base64 again."""
    document = json.loads(text)
    for resource in document["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for name in ("traceId", "spanId", "parentSpanId"):
                    assert len(span[name]) in (16, 32)
                    span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    return json_format.ParseDict(document, trace_pb2.TracesData())


def test_each_daemon_is_a_resource_and_values_keep_their_types():
    data = traces_data(spans())
    named = [
        {each.key: each.value.string_value for each in resource.resource.attributes}
        for resource in data.resource_spans
    ]
    assert named == [
        {"service.name": "controlplane", "service.instance.id": "a:1"},
        {"service.name": "vmmd", "service.instance.id": "b:2"},
    ]
    (span,) = data.resource_spans[0].scope_spans[0].spans
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == ("ab" * 16, "cd" * 8)
    assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
    values = {each.key: each.value.WhichOneof("value") for each in span.attributes}
    assert values == {"slot": "int_value", "volume.id": "string_value"}
    (event,) = span.events
    assert {e.key: e.value.WhichOneof("value") for e in event.attributes} == {
        "of": "string_value",
        "percent": "int_value",
    }
    assert (span.status.code, span.status.message) == (2, "it is full")


def test_json_is_one_line_that_gives_the_same_back():
    data = traces_data(spans())
    text = to_json_line(data)
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert from_otlp_json(text) == data
    assert '"kind":1' in text, "enumerations are numbers"


def test_nothing_is_a_document_too():
    assert from_otlp_json(to_json_line(traces_data([])).replace("{}", '{"resourceSpans":[]}')) == (
        trace_pb2.TracesData()
    )
