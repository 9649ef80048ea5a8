"""The memory of spans is bounded and gives whole traces."""

import functools
import threading

import pytest
from opentelemetry import trace
from opentelemetry.context import Context

from stairlib.model.errors import InvalidRequestError
from stairlib.telemetry import tracing as tracing_module
from stairlib.telemetry.span_store import SpanStore
from stairlib.telemetry.tracing import Tracing, context_from, current_trace_id, traceparent


def record(tracing, name, parent=None):
    with tracing.tracer.start_as_current_span(name, context=context_from(parent)) as span:
        span.set_attribute("n", 7)
    return format(span.get_span_context().trace_id, "032x")


def names(tracing, trace_id):
    return [span.name for span in tracing.spans(trace_id)]


def test_an_unknown_trace_has_no_spans():
    assert Tracing("s", "i").spans("0" * 31 + "1") == []


def test_the_oldest_trace_goes_first_and_goes_whole():
    tracing = Tracing("s", "i", limit=4)
    with tracing.tracer.start_as_current_span("first") as span:
        first = current_trace_id()
        with tracing.tracer.start_as_current_span("child"):
            pass
    assert first == format(span.get_span_context().trace_id, "032x")
    second = record(tracing, "second")
    third = record(tracing, "third")
    assert names(tracing, first) == ["child", "first"]
    fourth = record(tracing, "fourth")
    assert names(tracing, first) == []
    assert [names(tracing, each) for each in (second, third, fourth)] == [
        ["second"],
        ["third"],
        ["fourth"],
    ]


def test_a_single_huge_trace_keeps_its_first_spans():
    tracing = Tracing("s", "i", limit=3)
    with tracing.tracer.start_as_current_span("root"):
        trace_id = current_trace_id()
        for number in range(10):
            with tracing.tracer.start_as_current_span(f"child {number}"):
                pass
    assert names(tracing, trace_id) == ["child 0", "child 1", "child 2"]


def test_a_trace_that_goes_on_outlives_those_of_calls_since():
    tracing = Tracing("s", "i", limit=4)
    with tracing.tracer.start_as_current_span("days of repair"):
        long = current_trace_id()
        with tracing.tracer.start_as_current_span("limits changed"):
            pass
        asked = [record(tracing, f"look {number}") for number in range(10)]
        assert names(tracing, long) == ["limits changed"]
        assert [each for each in asked if names(tracing, each)] == asked[-3:]
    for number in range(10):
        record(tracing, f"look {number}")
    assert names(tracing, long) == [], "once it has ended it goes like any other"


def _open_limited(monkeypatch, **limits):
    """A tracing whose memory of what is under way is small."""
    monkeypatch.setattr(tracing_module, "SpanStore", functools.partial(SpanStore, **limits))
    return Tracing("s", "i")


def _under_way(tracing, trace_id):
    return [span.name for span in tracing.spans(trace_id, under_way=True)]


def test_one_trace_of_many_spans_under_way_leaves_the_others_theirs(monkeypatch):
    tracing = _open_limited(monkeypatch, open_of_trace=3)
    with tracing.tracer.start_as_current_span("drain"):
        many = current_trace_id()
        spans = [tracing.tracer.start_span(f"move {number}") for number in range(5)]
        assert _under_way(tracing, many) == ["drain", "move 0", "move 1"]
        with tracing.tracer.start_as_current_span("repair", context=Context()):
            assert _under_way(tracing, current_trace_id()) == ["repair"]
        for span in spans:
            span.end()
    assert len(names(tracing, many)) == 6, "each is known once it has ended"


def test_what_is_left_out_of_traces_is_told(monkeypatch, caplog):
    tracing = _open_limited(monkeypatch, open_limit=2)
    spans = [tracing.tracer.start_span(f"call {number}") for number in range(4)]
    (told,) = caplog.records
    assert "left out of their traces" in told.getMessage()
    assert "call 2" in told.getMessage(), "the first one; not each of them"
    spans[0].end()
    again = tracing.tracer.start_span("again")
    assert _under_way(tracing, format(again.get_span_context().trace_id, "032x")) == ["again"]


def test_thousands_of_workflows_have_their_steps_under_way_in_their_traces():
    tracing = Tracing("s", "i")
    spans = [tracing.tracer.start_span(f"step {number}") for number in range(5_000)]
    last = format(spans[-1].get_span_context().trace_id, "032x")
    assert _under_way(tracing, last) == ["step 4999"]


def test_a_span_as_a_message():
    tracing = Tracing("vmmd", "127.0.0.1:1")
    (span,) = tracing.spans(record(tracing, "copy"))
    assert (span.service, span.instance, span.name) == ("vmmd", "127.0.0.1:1", "copy")
    assert dict(span.attributes) == {"n": "7"}
    assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
    assert (span.status, span.parent_span_id) == ("UNSET", "")
    assert (len(span.trace_id), len(span.span_id)) == (32, 16)


def test_an_exception_marks_its_span():
    tracing = Tracing("s", "i")
    span = tracing.tracer.start_span("bad")
    with pytest.raises(ValueError, match="no"), trace.use_span(span, end_on_exit=True):
        raise ValueError("no")
    trace_id = format(span.get_span_context().trace_id, "032x")
    (span,) = tracing.spans(trace_id)
    assert span.status == "ERROR"


def test_two_tracings_in_one_process_keep_apart():
    one, two = Tracing("one", "1"), Tracing("two", "2")
    with one.tracer.start_as_current_span("caller"):
        parent = traceparent()
    trace_id = record(two, "callee", parent)
    assert trace_id == parent.split("-")[1]
    assert [(span.service, span.name) for span in one.spans(trace_id)] == [("one", "caller")]
    assert [(span.service, span.name) for span in two.spans(trace_id)] == [("two", "callee")]


@pytest.mark.parametrize("text", [None, "", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_malformed_traceparent_begins_a_new_trace(text):
    tracing = Tracing("s", "i")
    (span,) = tracing.spans(record(tracing, "alone", text))
    assert span.parent_span_id == ""


def test_outside_any_span_there_is_no_context():
    assert traceparent() is None
    assert current_trace_id() is None


def test_spans_of_many_threads_are_all_kept_within_the_limit():
    tracing = Tracing("s", "i", limit=100)
    ids = []
    threads = [
        threading.Thread(target=lambda: ids.extend(record(tracing, "t") for _ in range(50)))
        for _ in range(4)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sum(len(tracing.spans(each)) for each in ids) == 100


def test_nothing_is_exported_unless_the_environment_says_so(monkeypatch):
    def sends(name):
        tracing = Tracing.configure(name, "i")
        sent = tracing._sent is not None
        tracing.shutdown()
        return sent

    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    assert not sends("one")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    assert sends("two")
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:4317")
    assert sends("three")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert not sends("four")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not sends("five")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "carrier-pigeon"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_words(monkeypatch, name, value):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidRequestError, match=f"{name}={value}.*use "):
        Tracing.configure("s", "i")
