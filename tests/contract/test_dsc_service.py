"""DscService over real gRPC, with made-up processes in place of downstairs."""

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from downstaird.dsc.command import COMMANDS, Arguments, ask
from downstaird.dsc.core.layout import MemberPlan, plan_members
from downstaird.dsc.core.member import State
from downstaird.dsc.fleet import Fleet
from downstaird.dsc.monitor import Monitor
from downstaird.dsc.servicer import SERVICE_NAME, DscServicer
from stairlib.model.errors import InvalidRequestError, StairwellError, StateError
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.server import RpcServer, Service
from stairlib.telemetry.tracing import Tracing
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from stairwell.downstairs.v1 import region_service_pb2_grpc as region_grpc
from stairwell.dsc.v1 import dsc_service_pb2 as pb
from stairwell.dsc.v1 import dsc_service_pb2_grpc as pb_grpc

DEADLINE = 10


class MadeUpProcess:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ended = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        if not self._ended.done():
            self._ended.set_result(-number if number == signal.SIGKILL else 0)


class MadeUpLauncher:
    read_only = False
    tls = None

    def __init__(self, regions: str) -> None:
        self._regions = regions
        self._pids = iter(range(1000, 2000))

    def address(self, plan: MemberPlan) -> str:
        return self._regions

    async def spawn(self, plan: MemberPlan) -> Any:
        return MadeUpProcess(next(self._pids))

    async def serving(self, plan: MemberPlan) -> None:
        return


class OneRegion(region_grpc.RegionServiceServicer):
    async def GetRegion(self, request: Any, context: Any) -> region_pb.GetRegionResponse:
        geometry = region_pb.Geometry(block_size=4096, extent_size=16, extent_count=8)
        return region_pb.GetRegionResponse(region=region_pb.Region(geometry=geometry))


class Place:
    """A served fleet of three, and a client of it."""

    def __init__(
        self,
        fleet: Fleet,
        stub: Any,
        address: str,
        ended: asyncio.Event,
        reports: asyncio.Queue[Monitor],
    ) -> None:
        self.fleet = fleet
        self.stub = stub
        self.address = address
        self.ended = ended
        self.reports = reports

    async def call(self, method: str, request: Any) -> Any:
        with translated("dsc"):
            return await getattr(self.stub, method)(request, timeout=DEADLINE)

    async def states(self) -> list[int]:
        reply = await self.call("ListRegions", pb.ListRegionsRequest())
        return [region.state for region in reply.regions]

    async def reach(self, cid: int, state: State) -> None:
        async with asyncio.timeout(DEADLINE):
            await self.fleet.monitors[cid].until(lambda member: member.state is state)

    async def command(self, name: str, **arguments: Any) -> object:
        found = next(command for command in COMMANDS if command.name == name)
        return await ask(self.address, found, Arguments(**arguments))


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    tracing = Tracing.configure("dsc", "test")
    regions = RpcServer(
        "127.0.0.1:0",
        [
            Service(
                "stairwell.downstairs.v1.RegionService",
                lambda s: region_grpc.add_RegionServiceServicer_to_server(OneRegion(), s),
            )
        ],
        tracing,
    )
    await regions.start()
    plans = plan_members(
        count=3, port_base=8810, port_step=10, region_dirs=["/nowhere"], output_dir="/nowhere"
    )
    launcher: Any = MadeUpLauncher(regions.address)
    reports: asyncio.Queue[Monitor] = asyncio.Queue()
    fleet = Fleet(plans, launcher, reports.put_nowait)
    ended = asyncio.Event()
    servicer = DscServicer(fleet, ended.set)
    server = RpcServer(
        "127.0.0.1:0",
        [Service(SERVICE_NAME, lambda s: pb_grpc.add_DscServiceServicer_to_server(servicer, s))],
        tracing,
    )
    await server.start()
    channel = open_channel(server.address)
    yield Place(fleet, pb_grpc.DscServiceStub(channel), server.address, ended, reports)
    await channel.close()
    await fleet.close()
    await server.stop(0)
    await regions.stop(0)
    tracing.shutdown()


async def test_orders_wait_for_the_start(place: Place) -> None:
    everybody = pb.Members(all=True)
    for method, request in (
        ("Start", pb.StartRequest(members=everybody)),
        ("Stop", pb.StopRequest(members=everybody)),
        ("SetRestart", pb.SetRestartRequest(members=everybody, enabled=True)),
        ("SetRandomStop", pb.SetRandomStopRequest(enabled=True)),
        ("GetRegionInfo", pb.GetRegionInfoRequest()),
    ):
        with pytest.raises(StateError, match="starting") as caught:
            await place.call(method, request)
        assert caught.value.reason == "NOT_READY"
    assert await place.states() == [pb.REGION_STATE_STOPPED] * 3


async def test_list_tells_all_of_a_member(place: Place) -> None:
    await place.fleet.start()
    reply = await place.call("ListRegions", pb.ListRegionsRequest())
    assert not reply.read_only
    assert reply.regions[1] == pb.Region(
        cid=1,
        id="12345678-0000-0000-0000-000000008820",
        port=8820,
        pid=1001,
        state=pb.REGION_STATE_RUNNING,
        directory="/nowhere/8820",
        output="/nowhere/downstairs-8820.txt",
    )
    info = await place.call("GetRegionInfo", pb.GetRegionInfoRequest())
    assert (info.block_size, info.blocks_per_extent, info.extent_count) == (4096, 16, 8)


async def test_stop_and_start_one(place: Place) -> None:
    await place.fleet.start()
    reply = await place.call("Stop", pb.StopRequest(members=pb.Members(cid=1)))
    assert [region.cid for region in reply.regions] == [1]
    await place.reach(1, State.EXIT)
    running = pb.REGION_STATE_RUNNING
    assert await place.states() == [running, pb.REGION_STATE_EXIT, running]
    await place.call("Start", pb.StartRequest(members=pb.Members(cid=1)))
    await place.reach(1, State.RUNNING)
    await place.call("Stop", pb.StopRequest(members=pb.Members(cid=1), graceful=True))
    await place.reach(1, State.STOPPED)


async def test_restarts_bring_a_killed_member_back(place: Place) -> None:
    await place.fleet.start()
    reply = await place.call(
        "SetRestart", pb.SetRestartRequest(members=pb.Members(all=True), enabled=True)
    )
    assert all(region.restart for region in reply.regions)
    before = place.fleet.monitors[0].pid
    await place.call("Stop", pb.StopRequest(members=pb.Members(cid=0)))
    async with asyncio.timeout(DEADLINE):
        await place.fleet.monitors[0].until(
            lambda member: member.state is State.RUNNING and place.fleet.monitors[0].pid != before
        )


async def test_a_random_member_runs(place: Place) -> None:
    await place.fleet.start()
    for _ in range(3):
        reply = await place.call("Stop", pb.StopRequest(members=pb.Members(random=True)))
        await place.reach(reply.regions[0].cid, State.EXIT)
    assert await place.states() == [pb.REGION_STATE_EXIT] * 3
    with pytest.raises(StateError, match="no member is running"):
        await place.call("Stop", pb.StopRequest(members=pb.Members(random=True)))


async def test_members_that_are_not_there(place: Place) -> None:
    await place.fleet.start()
    with pytest.raises(InvalidRequestError, match="0 to 2") as caught:
        await place.call("Start", pb.StartRequest(members=pb.Members(cid=3)))
    assert caught.value.violations[0].field == "members.cid"
    for members in (pb.Members(), pb.Members(all=False), pb.Members(random=False)):
        with pytest.raises(InvalidRequestError, match="which members"):
            await place.call("Start", pb.StartRequest(members=members))


async def test_random_stops_kill_and_can_be_ended(place: Place) -> None:
    await place.fleet.start()
    reply = await place.call(
        "SetRandomStop", pb.SetRandomStopRequest(enabled=True, min_seconds=1, max_seconds=1)
    )
    assert (reply.enabled, reply.min_seconds, reply.max_seconds) == (True, 1, 1)
    async with asyncio.timeout(DEADLINE):
        while (await place.reports.get()).state is not State.EXIT:
            pass
    reply = await place.call("SetRandomStop", pb.SetRandomStopRequest(enabled=False))
    assert (reply.enabled, reply.min_seconds) == (False, 1)
    with pytest.raises(InvalidRequestError, match="min_seconds"):
        await place.call("SetRandomStop", pb.SetRandomStopRequest(min_seconds=0))


async def test_shutdown_asks_for_the_end(place: Place) -> None:
    await place.call("Shutdown", pb.ShutdownRequest())
    assert place.ended.is_set()


async def test_the_commands_people_type(place: Place) -> None:
    await place.fleet.start()
    assert await place.command("all-running") is True
    assert await place.command("all-stopped") is False
    assert await place.command("pid", cid=2) == 1002
    assert await place.command("port", cid=2) == 8830
    assert await place.command("state", cid=2) == "running"
    assert await place.command("uuid", cid=0) == "12345678-0000-0000-0000-000000008810"
    assert await place.command("region-count") == 3
    assert await place.command("read-only") is False
    assert await place.command("region-info") == {
        "block_size": 4096,
        "blocks_per_extent": 16,
        "extent_count": 8,
    }
    assert await place.command("stop", cid=2) is None
    await place.reach(2, State.EXIT)
    assert await place.command("pid", cid=2) is None
    assert await place.command("start-all") is None
    await place.reach(2, State.RUNNING)
    assert await place.command("enable-random-max", seconds=60) is None
    assert place.fleet.random_stop.max_seconds == 60
    await place.command("stop-all")
    for cid in range(3):
        await place.reach(cid, State.EXIT)
    assert await place.command("all-stopped") is True
    with pytest.raises(InvalidRequestError, match="no member 3"):
        await place.command("state", cid=3)
    await place.command("shutdown")
    assert place.ended.is_set()


async def test_a_member_that_ends_at_once_fails_the_start(place: Place) -> None:
    class Dying(MadeUpLauncher):
        async def spawn(self, plan: MemberPlan) -> Any:
            process = MadeUpProcess(1)
            process._ended.set_result(1)
            return process

        async def serving(self, plan: MemberPlan) -> None:
            await asyncio.Event().wait()

    launcher: Any = Dying("nowhere:1")
    fleet = Fleet([place.fleet.monitors[0].plan], launcher, lambda _: None)
    with pytest.raises(StairwellError, match="port 8810 ended instead of serving"):
        await fleet.start()
    await fleet.close()
