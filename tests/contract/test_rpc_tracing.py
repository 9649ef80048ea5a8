"""One trace over several real servers: propagation, statuses, and collecting it afterwards."""

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest
from opentelemetry import trace

from stairlib.model.errors import InvalidRequestError, StateError, UnavailableError
from stairlib.rpc import health_check
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.server import RpcServer, Service
from stairlib.telemetry.trace_service import SERVICE_NAME, TraceServicer, collect
from stairlib.telemetry.tracing import Tracing, context_from, traceparent
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import disk_service_pb2_grpc as disk_grpc
from stairwell.controlplane.v1 import vcr_service_pb2 as pb
from stairwell.controlplane.v1 import vcr_service_pb2_grpc as pb_grpc
from stairwell.telemetry.v1 import trace_service_pb2 as telemetry_pb
from stairwell.telemetry.v1 import trace_service_pb2_grpc as telemetry_grpc

VCR = "stairwell.controlplane.v1.VcrService"
DISK = "stairwell.controlplane.v1.DiskService"


class Forwarding(pb_grpc.VcrServiceServicer):
    """Asks the next server the same; without one, answers or raises."""

    def __init__(self, following=None, error=None):
        self.following = following
        self.error = error

    async def CheckVcr(self, request, context):
        if self.following is not None:
            with translated("the next one"):
                return await pb_grpc.VcrServiceStub(self.following).CheckVcr(request, timeout=5)
        if self.error is not None:
            raise self.error
        return pb.CheckVcrResponse(valid=True)


class Watched(disk_grpc.DiskServiceServicer):
    """Streams `count` messages, then fails or waits; remembers the trace it ran in."""

    def __init__(self, count=3, error=None, wait=False):
        self.count = count
        self.error = error
        self.wait = wait
        self.seen = []
        self.closed = asyncio.Event()

    async def WatchDisk(self, request, context):
        try:
            for _ in range(self.count):
                self.seen.append(traceparent())
                yield disk_pb.WatchDiskResponse()
            if self.error is not None:
                raise self.error
            if self.wait:
                await asyncio.Event().wait()
        finally:
            self.closed.set()


@pytest.fixture
async def net():
    """Starts servers and opens channels; all are closed at the end."""
    async with AsyncExitStack() as stack:

        class Net:
            async def serve(self, service, *, vcr=None, disk=None, downstream=lambda _machine: ()):
                tracing = Tracing(service, f"{service}-1")
                services = [
                    Service(
                        SERVICE_NAME,
                        lambda it: telemetry_grpc.add_TraceServiceServicer_to_server(
                            TraceServicer(tracing, downstream), it
                        ),
                    )
                ]
                if vcr is not None:
                    services.append(
                        Service(VCR, lambda it: pb_grpc.add_VcrServiceServicer_to_server(vcr, it))
                    )
                if disk is not None:
                    services.append(
                        Service(
                            DISK, lambda it: disk_grpc.add_DiskServiceServicer_to_server(disk, it)
                        )
                    )
                server = RpcServer("127.0.0.1:0", services, tracing)
                await server.start()
                stack.push_async_callback(server.stop, 0)
                return server.address, tracing

            async def channel(self, address, tracing=None):
                return await stack.enter_async_context(open_channel(address, tracing=tracing))

        yield Net()


def traced(tracing, span):
    return {
        (each.name.rpartition("/")[2], each.parent_span_id): each
        for each in tracing.spans(trace_id(span))
    }


def trace_id(span):
    return format(span.get_span_context().trace_id, "032x")


async def eventually(found):
    """The first true answer of `found`; spans of a server may end just after the client's."""
    async with asyncio.timeout(5):
        while not (answer := found()):  # noqa: ASYNC110 - spans have no event to wait for
            await asyncio.sleep(0.005)
    return answer


async def chain(net, error=None):
    """client → first → second; gives a stub, the three tracings, and the first one's channel."""
    second_address, second = await net.serve("second", vcr=Forwarding(error=error))
    tracing = Tracing("first", "first-1")
    onward = await net.channel(second_address, tracing)
    server = RpcServer(
        "127.0.0.1:0",
        [
            Service(
                VCR,
                lambda it: pb_grpc.add_VcrServiceServicer_to_server(Forwarding(onward), it),
            ),
            Service(
                SERVICE_NAME,
                lambda it: telemetry_grpc.add_TraceServiceServicer_to_server(
                    TraceServicer(tracing, lambda _machine: [("second", onward)]), it
                ),
            ),
        ],
        tracing,
    )
    await server.start()
    client = Tracing("client", "here")
    channel = await net.channel(server.address, client)
    return server, channel, client, tracing, second


async def test_a_trace_runs_through_two_servers_and_is_collected_by_one_call(net):
    server, channel, client, first, second = await chain(net)
    with client.tracer.start_as_current_span("root") as root:
        answer = await pb_grpc.VcrServiceStub(channel).CheckVcr(pb.CheckVcrRequest(), timeout=5)
    assert answer.valid
    await eventually(lambda: len(first.spans(trace_id(root))) == 2)
    await eventually(lambda: len(second.spans(trace_id(root))) == 1)
    remote = await collect("first", channel, trace_id(root))
    spans = {each.span_id: each for each in [*remote, *client.spans(trace_id(root))]}
    (leaf,) = [each for each in spans.values() if each.service == "second"]
    path = [leaf]
    while path[-1].parent_span_id:
        path.append(spans[path[-1].parent_span_id])
    assert [(each.service, each.instance) for each in path] == [
        ("second", "second-1"),
        ("first", "first-1"),
        ("first", "first-1"),
        ("client", "here"),
        ("client", "here"),
    ]
    assert path[-1].name == "root"
    assert all(each.name == f"{VCR}/CheckVcr" for each in path[:-1])
    assert leaf.attributes["rpc.system"] == "grpc"
    assert leaf.attributes["rpc.service"] == VCR
    assert leaf.attributes["rpc.method"] == "CheckVcr"
    assert leaf.attributes["rpc.grpc.status_code"] == "0"
    assert {each.status for each in path} == {"UNSET"}
    assert all(each.start_time_unix_nano <= each.end_time_unix_nano for each in path)
    await server.stop(0)


async def test_an_error_marks_every_span_on_its_way(net):
    error = StateError("it is stopped", reason="NOT_RUNNING")
    server, channel, client, first, second = await chain(net, error)
    with client.tracer.start_as_current_span("root") as root:
        with pytest.raises(StateError), translated("first"):
            await pb_grpc.VcrServiceStub(channel).CheckVcr(pb.CheckVcrRequest(), timeout=5)
        # The client's span is finished by the time its caller sees the result.
        (mine,) = client.spans(trace_id(root))
    await eventually(lambda: len(first.spans(trace_id(root))) == 2)
    await eventually(lambda: second.spans(trace_id(root)))
    spans = [mine, *first.spans(trace_id(root)), *second.spans(trace_id(root))]
    assert [each.attributes["rpc.grpc.status_code"] for each in spans] == ["9"] * 4
    assert [(each.status, each.status_message) for each in spans] == [
        ("ERROR", "it is stopped")
    ] * 4
    assert [each.attributes.get("error.type") for each in second.spans(trace_id(root))] == [
        "NOT_RUNNING"
    ]
    await server.stop(0)


async def test_an_unexpected_exception_marks_the_span_and_hides_its_text(net):
    address, tracing = await net.serve("only", vcr=Forwarding(error=RuntimeError("secret")))
    client = Tracing("client", "here")
    channel = await net.channel(address, client)
    stub = pb_grpc.VcrServiceStub(channel)
    root = client.tracer.start_span("root")
    with trace.use_span(root), pytest.raises(grpc.aio.AioRpcError):
        await stub.CheckVcr(pb.CheckVcrRequest(), timeout=5)
    (span,) = await eventually(lambda: tracing.spans(trace_id(root)))
    assert (span.status, span.attributes["rpc.grpc.status_code"]) == ("ERROR", "13")
    assert "secret" not in str(span)


async def test_a_stream_runs_inside_its_span(net):
    servicer = Watched(count=3)
    address, tracing = await net.serve("only", disk=servicer)
    client = Tracing("client", "here")
    channel = await net.channel(address, client)
    with client.tracer.start_as_current_span("root") as root:
        call = disk_grpc.DiskServiceStub(channel).WatchDisk(disk_pb.WatchDiskRequest(), timeout=5)
        assert len([message async for message in call]) == 3
    (span,) = await eventually(lambda: tracing.spans(trace_id(root)))
    assert span.attributes["rpc.grpc.status_code"] == "0"
    assert {each.split("-")[2] for each in servicer.seen} == {span.span_id}
    mine = await eventually(
        lambda: [
            each for each in client.spans(trace_id(root)) if each.span_id == span.parent_span_id
        ]
    )
    assert mine[0].attributes["rpc.grpc.status_code"] == "0"


async def test_a_stream_that_fails_half_way_gives_its_messages_and_its_error(net):
    violation = InvalidRequestError("no such thing", reason="BAD")
    address, tracing = await net.serve("only", disk=Watched(count=2, error=violation))
    client = Tracing("client", "here")
    channel = await net.channel(address, client)
    with client.tracer.start_as_current_span("root") as root:
        call = disk_grpc.DiskServiceStub(channel).WatchDisk(disk_pb.WatchDiskRequest(), timeout=5)
        assert await call.read() is not grpc.aio.EOF
        assert await call.read() is not grpc.aio.EOF
        with pytest.raises(InvalidRequestError), translated("only"):
            await call.read()
    (span,) = await eventually(lambda: tracing.spans(trace_id(root)))
    assert (span.status, span.attributes["rpc.grpc.status_code"]) == ("ERROR", "3")


async def test_a_watch_the_client_gives_up_closes_the_generator_and_is_no_error(net):
    servicer = Watched(count=1, wait=True)
    address, tracing = await net.serve("only", disk=servicer)
    client = Tracing("client", "here")
    channel = await net.channel(address, client)
    with client.tracer.start_as_current_span("root") as root:
        call = disk_grpc.DiskServiceStub(channel).WatchDisk(disk_pb.WatchDiskRequest(), timeout=30)
        await call.read()
        call.cancel()
    await asyncio.wait_for(servicer.closed.wait(), 5)
    (span,) = await eventually(lambda: tracing.spans(trace_id(root)))
    assert (span.status, span.attributes["rpc.grpc.status_code"]) == ("UNSET", "1")
    (mine,) = await eventually(
        lambda: [each for each in client.spans(trace_id(root)) if each.name != "root"]
    )
    assert (mine.status, mine.attributes["rpc.grpc.status_code"]) == ("UNSET", "1")


async def test_a_deadline_is_an_error_on_both_sides(net):
    address, tracing = await net.serve("only", disk=Watched(count=0, wait=True))
    client = Tracing("client", "here")
    channel = await net.channel(address, client)
    with client.tracer.start_as_current_span("root") as root:
        call = disk_grpc.DiskServiceStub(channel).WatchDisk(disk_pb.WatchDiskRequest(), timeout=0.1)
        with pytest.raises(UnavailableError), translated("only"):
            await call.read()
    (span,) = await eventually(lambda: tracing.spans(trace_id(root)))
    assert (span.status, span.attributes["rpc.grpc.status_code"]) == ("ERROR", "4")
    (mine,) = await eventually(
        lambda: [each for each in client.spans(trace_id(root)) if each.name != "root"]
    )
    assert (mine.status, mine.attributes["rpc.grpc.status_code"]) == ("ERROR", "4")


async def test_a_caller_without_a_trace_begins_one(net):
    servicer = Watched(count=1)
    address, tracing = await net.serve("only", disk=servicer)
    channel = await net.channel(address)
    call = disk_grpc.DiskServiceStub(channel).WatchDisk(disk_pb.WatchDiskRequest(), timeout=5)
    assert len([message async for message in call]) == 1
    begun = servicer.seen[0].split("-")[1]
    (span,) = await eventually(lambda: tracing.spans(begun))
    assert span.parent_span_id == ""


async def test_health_and_the_reading_of_traces_leave_no_span(net):
    address, tracing = await net.serve("only")
    client = Tracing("client", "here")
    channel = await net.channel(address, client)
    with client.tracer.start_as_current_span("root") as root:
        assert await health_check.check(address) == "SERVING"
        assert await collect("only", channel, trace_id(root)) == []
    assert [each.name for each in client.spans(trace_id(root))] == ["root"]
    assert tracing.spans(trace_id(root)) == []


async def test_a_peer_that_is_away_costs_only_its_own_spans(net, refusing_port):
    away = await net.channel(f"127.0.0.1:{refusing_port}")
    address, tracing = await net.serve("only", downstream=lambda _machine: [("away", away)])
    with tracing.tracer.start_as_current_span("local") as local:
        pass
    channel = await net.channel(address)
    assert [each.name for each in await collect("only", channel, trace_id(local))] == ["local"]


async def test_a_trace_id_that_is_none_names_its_field(net):
    address, _ = await net.serve("only")
    channel = await net.channel(address)
    with pytest.raises(InvalidRequestError) as raised, translated("only"):
        await telemetry_grpc.TraceServiceStub(channel).CollectTrace(
            telemetry_pb.CollectTraceRequest(trace_id="xyz"), timeout=5
        )
    assert [each.field for each in raised.value.violations] == ["trace_id"]


async def test_a_stored_traceparent_is_continued(net):
    tracing = Tracing("only", "here")
    with tracing.tracer.start_as_current_span("request") as request:
        stored = traceparent()
    with tracing.tracer.start_as_current_span("step", context=context_from(stored)) as step:
        assert trace_id(step) == trace_id(request)
