"""Spans and metrics reach a collector that the environment names; one that is away costs little.

The receiver is grpcio's server with the collector's own service definition, and aiohttp's with its
path: they take apart what any collector would. Building a whole collector for each run of the tests
would take minutes and prove the same exchange.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import threading
import time
from concurrent import futures

import grpc
import pytest
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as otlp_metrics_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as otlp_metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc

from stairlib.telemetry import logs
from stairlib.telemetry.metrics import Metrics
from stairlib.telemetry.tracing import Tracing, context_from

# More than the queue to the collector holds.
SPANS = 3_000
REQUEST = f"00-{'ab' * 16}-{'cd' * 8}-01"


class Collector(otlp_grpc.TraceServiceServicer):
    def __init__(self):
        self.received = []
        self.metrics = []
        self.arrived = threading.Event()

    def Export(self, request, context):
        self.received.append(request)
        self.arrived.set()
        return otlp_pb.ExportTraceServiceResponse()


class MetricsCollector(otlp_metrics_grpc.MetricsServiceServicer):
    def __init__(self, collector):
        self.collector = collector

    def Export(self, request, context):
        self.collector.metrics.append(request)
        return otlp_metrics_pb.ExportMetricsServiceResponse()


@pytest.fixture
def grpc_collector(monkeypatch):
    server = grpc.server(futures.ThreadPoolExecutor(2))
    servicer = Collector()
    otlp_grpc.add_TraceServiceServicer_to_server(servicer, server)
    otlp_metrics_grpc.add_MetricsServiceServicer_to_server(MetricsCollector(servicer), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    yield servicer
    server.stop(0).wait()


@pytest.fixture
def http_collector(monkeypatch):
    """A receiver of OTLP/HTTP with protobuf, on a loop of its own."""
    collector = Collector()

    def handler(kind, answer, kept):
        async def take(request):
            body = await request.read()
            assert request.headers["Content-Type"] == "application/x-protobuf"
            if body[:2] == b"\x1f\x8b":
                body = gzip.decompress(body)
            kept.append(kind.FromString(body))
            collector.arrived.set()
            return web.Response(
                body=answer().SerializeToString(), content_type="application/x-protobuf"
            )

        return take

    app = web.Application()
    app.router.add_post(
        "/v1/traces",
        handler(
            otlp_pb.ExportTraceServiceRequest,
            otlp_pb.ExportTraceServiceResponse,
            collector.received,
        ),
    )
    app.router.add_post(
        "/v1/metrics",
        handler(
            otlp_metrics_pb.ExportMetricsServiceRequest,
            otlp_metrics_pb.ExportMetricsServiceResponse,
            collector.metrics,
        ),
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def serve():
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    runner, port = asyncio.run_coroutine_threadsafe(serve(), loop).result(10)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    yield collector
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(params=["grpc", "http"])
def collector(request):
    return request.getfixturevalue(f"{request.param}_collector")


def attributes_of(found):
    return {each.key: each.value.string_value or each.value.int_value for each in found}


def test_spans_arrive_with_their_resource_events_and_links_and_are_kept_as_well(collector):
    tracing = Tracing.configure("vmmd", "127.0.0.1:55401")
    with tracing.tracer.start_as_current_span(
        "copy", context=context_from(REQUEST), attributes={"slot": 2, "volume.id": "v"}
    ) as span:
        span.add_event("progress", {"percent": 10})
    tracing.shutdown()
    assert collector.arrived.is_set()
    (resource,) = collector.received[0].resource_spans
    attributes = attributes_of(resource.resource.attributes)
    assert attributes["service.name"] == "vmmd"
    assert attributes["service.instance.id"] == "127.0.0.1:55401"
    assert attributes["service.version"]
    (exported,) = resource.scope_spans[0].spans
    assert (exported.name, exported.trace_id.hex()) == ("copy", "ab" * 16)
    assert exported.parent_span_id.hex() == "cd" * 8
    assert attributes_of(exported.attributes) == {"slot": 2, "volume.id": "v"}
    assert [(each.name, attributes_of(each.attributes)) for each in exported.events] == [
        ("progress", {"percent": 10})
    ]
    assert [each.name for each in tracing.spans("ab" * 16)] == ["copy"]


def test_a_span_that_was_made_by_hand_arrives_like_any_other(collector):
    earlier = Tracing("controlplane", "here")
    with earlier.tracer.start_as_current_span("step", attributes={"slot": 2}) as span:
        span.add_event("blocked", {"blocked_on": "vmmd"})
        trace_id = format(span.get_span_context().trace_id, "032x")
        (cut,) = earlier.spans(trace_id, under_way=True)
    assert cut.end_time_unix_nano == 0
    cut.end_time_unix_nano = cut.start_time_unix_nano + 1
    cut.status, cut.status_message = "ERROR", "cut short"
    cut.links.add(trace_id="ab" * 16, span_id="cd" * 8)
    tracing = Tracing.configure("controlplane", "here")
    tracing.record(cut)
    tracing.shutdown()
    (exported,) = collector.received[0].resource_spans[0].scope_spans[0].spans
    assert (exported.name, exported.span_id.hex()) == ("step", cut.span_id)
    assert (exported.status.code, exported.status.message) == (2, "cut short")
    assert attributes_of(exported.attributes) == {"slot": 2}
    assert [each.name for each in exported.events] == ["blocked"]
    assert [each.trace_id.hex() for each in exported.links] == ["ab" * 16]
    assert tracing.spans(trace_id) == [cut]


def test_metrics_arrive_too(collector):
    metrics = Metrics.configure("controlplane", "here")
    metrics.meter.create_counter("stairwell.test", unit="By").add(7, {"state": "DONE"})
    metrics.shutdown()
    (resource,) = collector.metrics[0].resource_metrics
    assert attributes_of(resource.resource.attributes)["service.name"] == "controlplane"
    (metric,) = [m for scope in resource.scope_metrics for m in scope.metrics]
    assert (metric.name, metric.unit) == ("stairwell.test", "By")
    assert metric.sum.data_points[0].as_int == 7


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_is_away_holds_nothing_up_and_fills_no_log(
    monkeypatch, refusing_port, protocol, capfd
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{refusing_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    # Batches that fail quickly and often, so that a flood would show.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    root = logging.getLogger()
    before = root.handlers[:], root.level
    logs.configure("vmmd", json=True)
    tracing = Tracing.configure("vmmd", "here")
    try:
        began = time.monotonic()
        for _ in range(SPANS):
            with tracing.tracer.start_as_current_span("quick", context=context_from(REQUEST)):
                pass
        took = time.monotonic() - began
        tracing.shutdown()
        stopped = time.monotonic() - began - took
    finally:
        logs.flush()
        root.handlers[:], root.level = before
    assert took < 10, "a span waits for nobody"
    assert stopped < 5
    assert len(tracing.spans("ab" * 16)) == SPANS
    told = [line for line in capfd.readouterr().err.splitlines() if "opentelemetry" in line]
    assert len(told) <= 6, told
