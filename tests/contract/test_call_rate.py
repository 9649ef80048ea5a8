"""A caller who calls too often, over real gRPC in plain text: what it is told, and spared."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from controlplane.cli.patience import SPREAD, Patience
from controlplane.cli.session import Session
from controlplane.cli.settings import Settings
from stairlib.model.call_rate import CallRate
from stairlib.model.errors import CallRateError, UnavailableError
from stairlib.rpc import health_check
from stairlib.rpc.call_guard import CallGuard
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.server import RpcServer, Service
from stairlib.telemetry.metrics import Metrics
from stairlib.telemetry.tracing import Tracing
from stairwell.controlplane.v1 import disk_service_pb2 as pb
from stairwell.controlplane.v1 import disk_service_pb2_grpc as pb_grpc
from tests.contract.test_controlplane_metrics import labelled, scraped

NAME = "stairwell.controlplane.v1.DiskService"


class Disks(pb_grpc.DiskServiceServicer):
    """Counts what was begun; raises `error` where there is one."""

    def __init__(self):
        self.begun = 0
        self.error = None

    async def ListDisks(self, request, context):
        self.begun += 1
        if self.error is not None:
            raise self.error
        return pb.ListDisksResponse()

    async def WatchDisk(self, request, context):
        self.begun += 1
        yield pb.WatchDiskResponse()


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Served:
    """A server with a rate, its clock and a client's stub."""

    def __init__(self, rate, *, real_time=False):
        self.disks, self.clock = Disks(), Clock()
        clock = {} if real_time else {"clock": self.clock}
        self.guard = CallGuard(rate, spares_daemons=False, **clock)
        self.server = RpcServer(
            "127.0.0.1:0",
            [Service(NAME, lambda it: pb_grpc.add_DiskServiceServicer_to_server(self.disks, it))],
            Tracing("test", "here"),
            guard=self.guard,
        )

    async def __aenter__(self):
        await self.server.start()
        self.channel = open_channel(self.server.address)
        self.stub = pb_grpc.DiskServiceStub(self.channel)
        return self

    async def __aexit__(self, *_):
        await self.channel.close()
        await self.server.stop(0)

    async def ask(self):
        with translated("the control plane"):
            return await self.stub.ListDisks(pb.ListDisksRequest(), timeout=5)


async def test_beyond_the_rate_it_is_told_when_to_come_back_and_nothing_is_begun():
    async with Served(CallRate(4, 3)) as served:
        for _ in range(3):
            await served.ask()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await served.stub.ListDisks(pb.ListDisksRequest(), timeout=5)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        details = {}
        for packed in rpc_status.from_call(raised.value).details:
            for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo):
                if packed.Is(kind.DESCRIPTOR):
                    details[kind] = kind.FromString(packed.value)
        assert details[error_details_pb2.ErrorInfo].reason == "CALL_RATE"
        assert details[error_details_pb2.RetryInfo].retry_delay.ToMilliseconds() == 250
        with pytest.raises(CallRateError) as refused:
            await served.ask()
        assert refused.value.retry_seconds == 0.25
        assert served.disks.begun == 3
        served.clock.now += refused.value.retry_seconds
        await served.ask()
        assert served.disks.begun == 4


async def test_a_stream_is_refused_before_it_begins():
    async with Served(CallRate(1, 1)) as served:
        await served.ask()
        with pytest.raises(CallRateError), translated("it"):
            async for _ in served.stub.WatchDisk(pb.WatchDiskRequest(), timeout=5):
                pass
        assert served.disks.begun == 1


async def test_health_answers_whoever_asks_and_reflection_counts():
    async with Served(CallRate(1, 1)) as served:
        await served.ask()
        for _ in range(5):
            assert await health_check.check(served.server.address) == "SERVING"
        call = served.channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(CallRateError), translated("it"):
            async for _ in call(iter([asked]), timeout=5):
                pass
        served.clock.now += 1
        assert [answer async for answer in call(iter([asked]), timeout=5)]


async def test_what_is_refused_is_counted_and_told_once(capfd):
    from stairlib.telemetry import logs

    logs.configure("test", level="info", json=True)
    metrics = Metrics.configure("test", "here", "127.0.0.1:0")
    try:
        async with Served(CallRate(1, 1)) as served:
            served.guard.observe(metrics)
            await served.ask()
            for _ in range(20):
                with pytest.raises(CallRateError):
                    await served.ask()
            found = await scraped(metrics.address)
        assert found["stairwell_rpc_refused_total", labelled(by="address")] == 20
        assert found["stairwell_rpc_refused_total", labelled(by="token")] == 0
    finally:
        metrics.shutdown()
        logs.flush()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if "{" in line]
    told = [line for line in lines if "refused" in line["event"]]
    assert [(line["caller"], line["by"], line["refused"]) for line in told] == [
        ("127.0.0.1", "address", 1)
    ]


async def test_a_peer_that_refuses_us_is_away_for_our_caller():
    """Who is told to come back might have half of its call done twice."""
    async with Served(CallRate(100, 100)) as served:
        served.disks.error = CallRateError("vmmd says so", 0.1, caller="controlplane")
        with pytest.raises(UnavailableError) as refused:
            await served.ask()
        assert refused.value.reason == "PEER_CALL_RATE"
        assert served.disks.begun == 1


def session(served, **settings):
    host, _, port = served.server.address.rpartition(":")
    return Session(Settings(host, int(port), **settings), Tracing("cli", "here"))


async def test_our_client_waits_as_long_as_it_is_told():
    async with Served(CallRate(50, 1), real_time=True) as served, session(served) as client:

        async def call():
            stub = client.disks
            await client.call(stub.ListDisks, pb.ListDisksRequest(), pb.ListDisksResponse)

        await asyncio.gather(*(call() for _ in range(10)))
        watched = client.stream(
            client.disks.WatchDisk, pb.WatchDiskRequest(), pb.WatchDiskResponse
        )  # fmt: skip
        assert len([each async for each in watched]) == 1
        assert served.disks.begun == 11
        assert sum(served.guard.refused.values()) > 0


async def test_our_client_does_not_wait_beyond_its_deadline():
    async with Served(CallRate(0.1, 1), real_time=True) as served:
        async with session(served, timeout=2.0) as client:
            stub = client.disks
            await client.call(stub.ListDisks, pb.ListDisksRequest(), pb.ListDisksResponse)
            with pytest.raises(CallRateError, match=r"makes more than 0\.1 calls a second"):
                await client.call(stub.ListDisks, pb.ListDisksRequest(), pb.ListDisksResponse)
        assert served.disks.begun == 1


async def test_patience_spreads_who_was_refused_together_and_never_comes_early():
    clock, slept = Clock(), []

    async def sleep(seconds):
        slept.append(seconds)

    for chance in (0.0, 1.0):
        patience = Patience(10.0, clock=clock, sleep=sleep, chance=lambda chance=chance: chance)
        await patience.wait(CallRateError("", 2.0))
    assert slept == [2.0, 2.0 * (1 + SPREAD)]
    late = Patience(1.0, clock=clock, sleep=sleep)
    with pytest.raises(CallRateError):
        await late.wait(CallRateError("", 1.0))
