"""The trace of a replacement over real daemons, one of which is killed, and at a real receiver."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc

from stairwell.controlplane.v1 import replacement_service_pb2 as pb
from stairwell.controlplane.v1 import replacement_service_pb2_grpc as pb_grpc
from stairwell.telemetry.v1.trace_service_pb2 import Span
from tests.integration.cluster import MIB, Cluster, until
from tests.integration.volume import fresh_volume

pytestmark = pytest.mark.processes

SERVICES = {"controlplane", "vmmd", "machine", "downstairs"}


class Receiver(otlp_grpc.TraceServiceServicer):
    """What a collector does first: takes batches of spans."""

    def __init__(self) -> None:
        self.batches: list[otlp_pb.ExportTraceServiceRequest] = []

    def Export(self, request: Any, context: Any) -> otlp_pb.ExportTraceServiceResponse:
        self.batches.append(request)
        return otlp_pb.ExportTraceServiceResponse()

    def spans(self, trace_id: str) -> dict[tuple[str, str], Any]:
        """Those of a trace, by service and span id."""
        found = {}
        for batch in list(self.batches):
            for resource in batch.resource_spans:
                named = {each.key: each.value.string_value for each in resource.resource.attributes}
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        if span.trace_id.hex() == trace_id:
                            found[named["service.name"], span.span_id.hex()] = span
        return found


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    found = Receiver()
    otlp_grpc.add_TraceServiceServicer_to_server(found, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    yield found
    server.stop(0).wait()


async def trace(cluster: Cluster, identity: str) -> list[Span]:
    request = pb.GetReplacementTraceRequest(id=identity)
    stub = pb_grpc.ReplacementServiceStub
    answer = await cluster.call(stub, "GetReplacementTrace", request)
    return list(answer.spans)


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


@pytest.mark.long
async def test_one_trace_over_all_daemons_also_when_two_were_killed(
    tmp_path: Path, receiver: Receiver
) -> None:
    async with Cluster.started(tmp_path / "cluster") as cluster, fresh_volume(cluster) as volume:
        await volume.fill(16 * MIB)
        await volume.limit(MIB)
        answer = await volume.replace()
        await volume.mid_repair(answer.replacement_id)
        cluster.controlplane.kill()
        await cluster.controlplane.start()
        await until(
            lambda: trace(cluster, answer.replacement_id),
            lambda spans: len(named(spans, "replacement repair")) == 2,
        )
        volume.spare.kill()
        await volume.spare.start()
        await volume.limit(0)
        await volume.done(answer.replacement_id)
        spans = await trace(cluster, answer.replacement_id)

        assert {span.trace_id for span in spans} == {answer.trace_id}
        assert {span.service for span in spans} == SERVICES
        cut, *rest = named(spans, "replacement repair")
        assert (cut.status, cut.attributes["cut"]) == ("ERROR", "true")
        assert rest[-1].status == "UNSET"
        (root,) = named(spans, "replacement")
        assert root.attributes["state"] == "DONE"
        copies = named(spans, "repair.copy_extent")
        assert {span.instance for span in copies} == {volume.spare.address}
        sources = {s.instance for s in spans if s.name.endswith("RepairService/StreamExtent")}
        assert sources - {volume.spare.address}, "the members that were read from are there, too"
        repairs = named(spans, "upstairs.live_repair")
        assert all(each.attributes["replacement.id"] == answer.replacement_id for each in repairs)

        received = await until(
            lambda: asyncio.to_thread(receiver.spans, answer.trace_id),
            lambda found: (
                {service for service, _ in found} == SERVICES
                and ("controlplane", root.span_id) in found
            ),
        )
        assert received["controlplane", cut.span_id].status.message == cut.status_message
        assert received["controlplane", root.span_id].name == "replacement"
