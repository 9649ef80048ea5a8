"""AgentService over real gRPC: what is refused and how, pages, watches, and what the host tells.

The regions of these tests fail at once, because the program that is to make them is `false`: what
becomes of regions that can be made is in tests/integration/test_agent.py.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import random
import socket
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from downstaird.agent import keeper
from downstaird.agent.core.intent import Intent, Limits, PortRange
from downstaird.agent.host import Host, HostOptions
from downstaird.agent.keeper import Keeper
from downstaird.agent.start import services
from downstaird.launching import Launcher
from stairlib.model.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    StairwellError,
    StateError,
)
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.server import RpcServer
from stairlib.runtime.ports import can_listen
from stairlib.telemetry.tracing import Tracing
from stairwell.agent.v1 import agent_service_pb2 as pb
from stairwell.agent.v1 import agent_service_pb2_grpc as pb_grpc

DEADLINE = 20
PLACES = 5
SHAPE = pb.Geometry(block_size=4096, extent_size=16, extent_count=4)
SIZE = 4096 * 16 * 4


def free_range() -> PortRange:
    """Ports that are free now, below those that the system gives out by itself."""
    while True:
        first = random.randrange(10_000, 30_000, 10)
        if all(can_listen("127.0.0.1", first + n) for n in range(2 * PLACES)):
            return PortRange(first, first + 2 * PLACES - 1)


class Place:
    """A served host and a client of it."""

    def __init__(self, host: Host, stub: Any) -> None:
        self.host = host
        self.stub = stub

    async def call(self, method: str, request: Any) -> Any:
        with translated("the agent"):
            return await getattr(self.stub, method)(request, timeout=DEADLINE)

    async def create(self, region: str = "", **fields: Any) -> pb.Region:
        fields = {"geometry": SHAPE, **fields}
        request = pb.CreateRegionRequest(id=region or str(uuid.uuid4()), **fields)
        answer: pb.CreateRegionResponse = await self.call("CreateRegion", request)
        return answer.region

    async def become(self, region: str, state: int) -> pb.Region:
        watch = self.stub.WatchRegions(pb.WatchRegionsRequest(id=region), timeout=DEADLINE)
        with translated("the agent"):
            async for message in watch:
                if message.region.state == state:
                    watch.cancel()
                    found: pb.Region = message.region
                    return found
        raise AssertionError("the watch ended")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    tracing = Tracing.configure("agent", "test")
    options = HostOptions(
        root=tmp_path / "root",
        limits=Limits(free_range(), 4 * SIZE),
        launcher=Launcher("/bin/false", "127.0.0.1", read_only=False),
        failure_domain="rack 7",
    )
    host = Host(options)
    host.start()
    server = RpcServer("127.0.0.1:0", services(host, tracing), tracing)
    await server.start()
    try:
        async with open_channel(server.address) as channel:
            yield Place(host, pb_grpc.AgentServiceStub(channel))
    finally:
        await server.stop(0)
        await host.close(stop_regions=True)
        tracing.shutdown()


async def test_the_same_again_is_one_region_and_another_of_its_id_is_refused(place: Place) -> None:
    first = await place.create()
    await place.become(first.id, pb.REGION_STATE_FAILED)
    again = await place.create(first.id)
    assert (again.id, again.port, again.state) == (first.id, first.port, pb.REGION_STATE_FAILED)
    with pytest.raises(AlreadyExistsError) as failed:
        await place.create(first.id, cipher="aes-256-gcm")
    assert failed.value.reason == "REGION_DIFFERS"
    assert failed.value.metadata["field"] == "cipher"


async def test_a_failed_region_tells_why_and_can_be_left(place: Place) -> None:
    region = await place.create()
    failed = await place.become(region.id, pb.REGION_STATE_FAILED)
    assert "failed with status 1" in failed.reason
    facts = await place.call("GetHost", pb.GetHostRequest())
    assert (facts.regions, facts.regions_failed) == (1, 1)
    await place.call("DestroyRegion", pb.DestroyRegionRequest(id=region.id))
    gone = await place.become(region.id, pb.REGION_STATE_DESTROYED)
    assert (gone.port, gone.address) == (0, "")
    again = await place.call("DestroyRegion", pb.DestroyRegionRequest(id=region.id))
    assert again.region.state == pb.REGION_STATE_DESTROYED
    with pytest.raises(StateError) as refused:
        await place.create(region.id)
    assert refused.value.reason == "REGION_DESTROYED"
    assert not list((place.host.options.root / "regions").iterdir())


async def test_a_creation_that_fails_leaves_nothing_half_made(place: Place, tmp_path: Path) -> None:
    """As on a disk that fills up meanwhile."""
    program = tmp_path / "downstaird"
    program.write_text(
        "#!/bin/sh\n"
        'mkdir -p "$3"; echo half > "$3/data"\n'
        'echo "downstaird: cannot write $3/data: No space left on device" >&2; exit 1\n'
    )
    program.chmod(0o755)
    launcher = replace(place.host.options.launcher, program=str(program))
    place.host.options = replace(place.host.options, launcher=launcher)
    region = await place.create()
    failed = await place.become(region.id, pb.REGION_STATE_FAILED)
    assert "No space left on device" in failed.reason
    assert not list((place.host.options.root / "regions").iterdir())
    for method, request in (
        ("CreateSnapshot", pb.CreateSnapshotRequest(id=region.id, name="a")),
        ("DeleteSnapshot", pb.DeleteSnapshotRequest(id=region.id, name="a")),
    ):
        with pytest.raises(StateError) as refused:
            await place.call(method, request)
        assert refused.value.reason == "REGION_NOT_CREATED"
    listed = await place.call("ListSnapshots", pb.ListSnapshotsRequest(id=region.id))
    assert not listed.snapshots


async def test_every_wrong_field_is_named(place: Place) -> None:
    with pytest.raises(InvalidRequestError) as failed:
        await place.create(
            geometry=pb.Geometry(block_size=5, extent_size=0, extent_count=1),
            cipher="rot13",
            source="nowhere",
        )
    fields = {violation.field for violation in failed.value.violations}
    assert fields == {"geometry.block_size", "geometry.extent_size", "cipher", "source"}
    for method, request in (
        ("CreateRegion", pb.CreateRegionRequest(geometry=SHAPE)),
        ("GetRegion", pb.GetRegionRequest(id="x")),
        ("DestroyRegion", pb.DestroyRegionRequest()),
        ("CreateSnapshot", pb.CreateSnapshotRequest(id=str(uuid.uuid4()), name="../x")),
        ("CreateSnapshot", pb.CreateSnapshotRequest(id="x", name="x")),
        ("DeleteSnapshot", pb.DeleteSnapshotRequest(id=str(uuid.uuid4()))),
        ("ListRegions", pb.ListRegionsRequest(page_token="?")),
        ("ListRegions", pb.ListRegionsRequest(page_token="eA==")),
    ):
        with pytest.raises(InvalidRequestError):
            await place.call(method, request)
    with pytest.raises(NotFoundError) as missing:
        await place.call("DestroyRegion", pb.DestroyRegionRequest(id=str(uuid.uuid4())))
    assert missing.value.reason == "REGION_NOT_FOUND"
    with pytest.raises(NotFoundError):
        await place.call("ListSnapshots", pb.ListSnapshotsRequest(id=str(uuid.uuid4())))


async def test_the_budget_and_the_ports_are_limits(place: Place) -> None:
    with socket.socket() as taken:
        # Somebody else has a data port of ours: that place is passed over.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        second = place.host.options.limits.ports.ports()[1]
        taken.bind(("127.0.0.1", second + 1))
        taken.listen()
        ports = [(await place.create()).port for _ in range(4)]
    assert second not in ports
    facts = await place.call("GetHost", pb.GetHostRequest())
    assert (facts.provisioned_bytes, facts.capacity_bytes) == (4 * SIZE, 4 * SIZE)
    assert (facts.ports_free, facts.ports_total) == (1, PLACES)
    assert (facts.failure_domain, facts.host_name) == ("rack 7", socket.gethostname())
    assert 0 < facts.free_bytes < facts.total_bytes
    with pytest.raises(LimitError) as failed:
        await place.create()
    assert failed.value.reason == "OVER_CAPACITY"


async def test_pages_go_through_all_regions_once(place: Place) -> None:
    ids = sorted([(await place.create()).id for _ in range(4)])
    seen, page_token = [], ""
    while True:
        request = pb.ListRegionsRequest(page_size=3, page_token=page_token)
        page = await place.call("ListRegions", request)
        seen += [region.id for region in page.regions]
        page_token = page.next_page_token
        if not page_token:
            break
    assert seen == ids
    await place.call("DestroyRegion", pb.DestroyRegionRequest(id=ids[0]))
    await place.become(ids[0], pb.REGION_STATE_DESTROYED)
    left = await place.call("ListRegions", pb.ListRegionsRequest())
    assert [region.id for region in left.regions] == ids[1:]
    everything = await place.call("ListRegions", pb.ListRegionsRequest(include_destroyed=True))
    assert [region.id for region in everything.regions] == ids


async def test_a_watch_tells_what_is_there_and_what_changes_once(place: Place) -> None:
    first = await place.create()
    await place.become(first.id, pb.REGION_STATE_FAILED)
    watch = place.stub.WatchRegions(pb.WatchRegionsRequest(), timeout=DEADLINE)
    told = [(await watch.read()).region]
    second = await place.create()
    while told[-1].id != second.id or told[-1].state != pb.REGION_STATE_FAILED:
        told.append((await watch.read()).region)
    watch.cancel()
    assert [region.id for region in told[:2]] == [first.id, second.id]
    assert all(before != after for before, after in itertools.pairwise(told))


async def test_a_caller_that_goes_away_leaves_no_change_half_made(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    original = place.host._store.store

    def slow(intent: Intent, *, more: bool) -> None:
        loop.call_soon_threadsafe(writing.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(DEADLINE)
        original(intent, more=more)

    monkeypatch.setattr(place.host._store, "store", slow)
    region = str(uuid.uuid4())
    call = place.stub.CreateRegion(pb.CreateRegionRequest(id=region, geometry=SHAPE))
    await writing.wait()
    call.cancel()
    second = asyncio.ensure_future(place.create())
    go_on.set()
    await second
    assert (await place.become(region, pb.REGION_STATE_FAILED)).id == region


async def test_what_cannot_be_stored_is_not_promised(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(intent: Intent, *, more: bool) -> None:
        raise LimitError("no room; make some", reason="NO_SPACE")

    region = str(uuid.uuid4())
    with monkeypatch.context() as patched:
        patched.setattr(place.host._store, "store", full)
        with pytest.raises(LimitError) as failed:
            await place.create(region)
        assert failed.value.reason == "NO_SPACE"
        with pytest.raises(StairwellError):
            await place.call("GetRegion", pb.GetRegionRequest(id=region))
    assert (await place.create(region)).id == region


async def test_a_destruction_that_comes_as_a_keeper_ends_is_carried_out(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = await place.create()
    await place.become(region.id, pb.REGION_STATE_FAILED)
    original, begun = Keeper.run, []

    async def run(one: Keeper) -> None:
        """The first ends as one does that had looked before the destruction was stored."""
        begun.append(one)
        if len(begun) > 1:
            await original(one)

    monkeypatch.setattr(Keeper, "run", run)
    await place.call("DestroyRegion", pb.DestroyRegionRequest(id=region.id))
    await place.become(region.id, pb.REGION_STATE_DESTROYED)
    assert len(begun) == 2


async def test_what_cannot_be_removed_is_told_and_tried_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = await place.create()
    await place.become(region.id, pb.REGION_STATE_FAILED)
    monkeypatch.setattr(keeper, "RETRY_SECONDS", 0.01)
    removed = keeper._remove
    mended = asyncio.Event()

    def remove(directory: Path) -> None:
        if not mended.is_set():
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(directory))
        removed(directory)

    monkeypatch.setattr(keeper, "_remove", remove)
    watch = place.stub.WatchRegions(pb.WatchRegionsRequest(id=region.id), timeout=DEADLINE)
    await place.call("DestroyRegion", pb.DestroyRegionRequest(id=region.id))
    while "cannot remove" not in (told := (await watch.read()).region).process.trouble:
        assert told.state != pb.REGION_STATE_DESTROYED
    mended.set()
    await place.become(region.id, pb.REGION_STATE_DESTROYED)
    watch.cancel()
