"""Spans reach a collector when the environment names one; one that is away costs little."""

import threading
import time
from concurrent import futures

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc

from stairlib.telemetry.tracing import Tracing


class Collector(otlp_grpc.TraceServiceServicer):
    def __init__(self):
        self.received = []
        self.arrived = threading.Event()

    def Export(self, request, context):
        self.received.append(request)
        self.arrived.set()
        return otlp_pb.ExportTraceServiceResponse()


@pytest.fixture
def collector(monkeypatch):
    server = grpc.server(futures.ThreadPoolExecutor(2))
    servicer = Collector()
    otlp_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    yield servicer
    server.stop(0).wait()


def test_spans_are_exported_with_their_resource_and_are_kept_as_well(collector):
    tracing = Tracing.configure("vmmd", "127.0.0.1:55401")
    with tracing.tracer.start_as_current_span("copy") as span:
        trace_id = format(span.get_span_context().trace_id, "032x")
    tracing.shutdown()
    assert collector.arrived.is_set()
    (resource,) = collector.received[0].resource_spans
    attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert attributes["service.name"] == "vmmd"
    assert attributes["service.instance.id"] == "127.0.0.1:55401"
    assert attributes["service.version"]
    (exported,) = resource.scope_spans[0].spans
    assert (exported.name, exported.trace_id.hex()) == ("copy", trace_id)
    assert [each.name for each in tracing.spans(trace_id)] == ["copy"]


def test_a_collector_that_is_away_holds_nothing_up(monkeypatch, unused_tcp_port):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{unused_tcp_port}")
    tracing = Tracing.configure("vmmd", "here")
    began = time.monotonic()
    for _ in range(1_000):
        with tracing.tracer.start_as_current_span("quick"):
            pass
    assert time.monotonic() - began < 2
    tracing.shutdown()
    assert time.monotonic() - began < 6
