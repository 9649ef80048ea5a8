"""A volume as a backend and as what is operated: counting, refusing, scrubbing, telling."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from stairlib.model.construction import RegionOptions, RegionSpec, VolumeSpec
from stairlib.model.errors import ConflictError, NotFoundError, StateError
from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from tests.unit.vmmd.block.stores import SIZE, Store, read, submit, write
from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.block.overlay import Overlay, ReadOnlyView
from vmmd.block.scrub import ScrubState
from vmmd.block.tree import Tree
from vmmd.block.volume import Volume
from vmmd.upstairs.core.events import ReplaceResult
from vmmd.upstairs.core.upstairs_states import UpstairsState


def volume_over(front, parent=None, *, path="", read_only=False):
    """A volume whose tree has no region sets: one store over another."""
    tree = Tree()
    tree._root = front
    if parent is not None:
        tree._root = tree.overlays[path] = Overlay(front, parent)
    return Volume(uuid.uuid4(), tree, Tracing("vmmd", "test"), read_only=read_only)


async def until(volume, wanted):
    """The first status of the volume that is wanted."""
    async with asyncio.timeout(20):
        async for status in volume.watch():
            if wanted(status):
                return status
    raise AssertionError("the volume was closed")


async def test_requests_are_counted_when_they_come_and_failures_when_they_end():
    store = Store(8)
    volume = volume_over(store)
    write(volume, 0, 1, 2)
    assert read(volume, 0, 2) == [1, 2]
    submit(volume, Request(BlockOp.FLUSH, "f"), Request(BlockOp.DISCARD, "d", 0, 1))
    store.status[BlockOp.READ] = BlockStatus.FAILED
    submit(volume, Request(BlockOp.READ, "r", 0, 1))
    counters = volume.counters
    assert (counters.reads, counters.read_bytes) == (2, 3 * SIZE)
    assert (counters.writes, counters.write_bytes) == (1, 2 * SIZE)
    assert (counters.flushes, counters.discards, counters.failed) == (1, 1, 1)


async def test_a_read_only_volume_takes_no_changes():
    store = Store(8)
    volume = volume_over(store, read_only=True)
    assert volume.info.read_only
    assert not volume.info.supports_discard
    assert write(volume, 0, 1) is BlockStatus.READ_ONLY
    assert not store.seen
    done = submit(volume, Request(BlockOp.READ, "r", 0, 1), Request(BlockOp.DISCARD, "d", 0, 1))
    assert {each.status for each in done.values()} == {BlockStatus.OK, BlockStatus.READ_ONLY}
    assert [each for each in volume.figures.failures() if each[2]] == [
        ("write", "read_only", 1),
        ("discard", "read_only", 1),
    ]


async def test_a_volume_of_a_view_says_that_it_is_read_only():
    assert volume_over(ReadOnlyView(Store(1))).info.read_only


async def test_a_volume_without_regions_is_active_once_it_was_activated():
    volume = volume_over(Store(1))
    assert volume.status().state is UpstairsState.INITIALIZING
    await volume.activate()
    assert volume.status().state is UpstairsState.ACTIVE


async def test_a_scrub_fills_the_volume_and_lets_the_parent_go():
    front, parent = Store(8), Store(4, b0=1, b2=3)
    volume = volume_over(front, parent)
    assert read(volume, 0, 4) == [1, 0, 3, 0]
    status = volume.start_scrub("")
    assert status.state is ScrubState.RUNNING
    await until(volume, lambda s: s.scrubs and s.scrubs[0].state is ScrubState.DONE)
    parent.seen.clear()
    assert read(volume, 0, 4) == [1, 0, 3, 0]
    assert not parent.seen
    again = volume.start_scrub("")
    assert (again.state, again.bytes_done) == (ScrubState.DONE, 4 * SIZE)
    await volume.close()


async def test_a_scrub_that_was_stopped_is_begun_again():
    front, parent = Store(4), Store(4, b0=1)
    front.status[BlockOp.WRITE_UNWRITTEN] = BlockStatus.FAILED
    volume = volume_over(front, parent)
    volume.start_scrub("", 10)
    assert volume.start_scrub("", 20).bytes_per_second_max == 20
    await until(volume, lambda s: s.scrubs[0].reason)
    assert (await volume.stop_scrub("")).state is ScrubState.STOPPED
    assert (await volume.stop_scrub("")).state is ScrubState.STOPPED
    front.status.clear()
    volume.start_scrub("")
    await until(volume, lambda s: s.scrubs[0].state is ScrubState.DONE)
    await volume.close()


async def test_a_stuck_scrub_ends_with_the_volume():
    front = Store(4)
    front.status[BlockOp.WRITE_UNWRITTEN] = BlockStatus.FAILED
    volume = volume_over(front, Store(4, b0=1))
    volume.start_scrub("")
    async with asyncio.timeout(20):
        await volume.deactivate()
        await volume.close()
    assert volume.status().scrubs[0].state is ScrubState.STOPPED


async def test_what_cannot_be_scrubbed_is_said():
    volume = volume_over(Store(4), Store(4))
    with pytest.raises(NotFoundError, match=r"sub_volumes\[0\]"):
        volume.start_scrub("sub_volumes[0]")
    with pytest.raises(NotFoundError, match="no scrub was started"):
        await volume.stop_scrub("")
    for refusing, path in (
        (volume_over(Store(4), Store(4), read_only=True), ""),
        (volume_over(Store(4, read_only=True), Store(4)), ""),
        (volume_over(Store(4), Store(4), path="read_only_parent"), "read_only_parent"),
    ):
        with pytest.raises(StateError, match="read-only") as refused:
            refusing.start_scrub(path)
        assert refused.value.reason == "SCRUB_READ_ONLY"


@pytest.fixture
def tracing():
    found = Tracing("machine", "test")
    yield found
    found.shutdown()


def region(first_port):
    targets = tuple(f"127.0.0.1:{first_port + number}" for number in range(3))
    return RegionSpec(Geometry(512, 8, 1), RegionOptions(uuid.uuid4(), targets), 1)


async def test_a_late_request_does_not_undo_a_newer_one(tracing):
    """Replaced, and later back again in the same slot: the addresses are those of the first."""
    spec = region(1000)
    volume = await Volume.open(spec, tracing=tracing)
    one, other = "127.0.0.1:1001", "127.0.0.1:1009"
    assert (await volume.replace("", one, other, "first", 4)).result is ReplaceResult.STARTED
    assert (await volume.replace("", other, one, "second", 4)).result is ReplaceResult.STARTED
    with pytest.raises(ConflictError) as refused:
        await volume.replace("", one, other, "first", 4)
    assert refused.value.reason == "REPLACEMENT_OVERTAKEN"
    again = await volume.replace("", other, one, "second", 4)
    assert again.result in (ReplaceResult.STARTED_ALREADY, ReplaceResult.COMPLETED_ALREADY)
    with pytest.raises(StateError) as low:
        await volume.replace("", one, other, "never seen", 3)
    assert low.value.reason == "GENERATION_TOO_LOW"
    assert [slot.address for slot in volume.status().regions[0][1].slots][1] == one
    await volume.close()


async def test_a_target_is_replaced_in_the_region_it_is_of(tracing):
    spec = VolumeSpec(
        uuid.uuid4(), 512, (region(1000), region(2000)), VolumeSpec(
            uuid.uuid4(), 512, (region(3000),), region(4000)
        )
    )  # fmt: skip
    volume = await Volume.open(spec, tracing=tracing)
    path = "read_only_parent.read_only_parent"
    outcome = await volume.replace(path, "127.0.0.1:4001", "127.0.0.1:4009")
    assert (outcome.result, outcome.slot) == (ReplaceResult.STARTED, 1)
    again = await volume.replace(path, "127.0.0.1:4001", "127.0.0.1:4009")
    assert again.result is ReplaceResult.STARTED_ALREADY
    addresses = {at: [s.address for s in part.slots] for at, part in volume.status().regions}
    assert addresses[path] == ["127.0.0.1:4000", "127.0.0.1:4009", "127.0.0.1:4002"]
    assert addresses["sub_volumes[1]"][1] == "127.0.0.1:2001"
    missing = await volume.replace("sub_volumes[0]", "127.0.0.1:4001", "127.0.0.1:4010")
    assert missing.result is ReplaceResult.MISSING
    gone = await volume.replace("sub_volumes[7]", "127.0.0.1:1001", "127.0.0.1:4010")
    assert (gone.result, gone.slot) == (ReplaceResult.MISSING, -1)
    with pytest.raises(StateError, match=r"member of sub_volumes\[1\]") as refused:
        await volume.replace("sub_volumes[0]", "127.0.0.1:1001", "127.0.0.1:2000")
    assert refused.value.reason == "TARGET_IN_USE"
    assert "127.0.0.1:4009" in {peer.address for peer in volume.peers()}
    await volume.close()


async def test_a_bare_region_is_a_volume_with_its_identity(tracing):
    spec = region(1000)
    volume = await Volume.open(spec, tracing=tracing)
    assert volume.id == spec.options.id
    assert [at for at, _ in volume.status().regions] == [""]
    await volume.close()


async def test_watchers_are_told_the_end(tracing):
    volume = await Volume.open(region(1000), tracing=tracing)
    watch = volume.watch()
    assert (await anext(watch)).state is UpstairsState.INITIALIZING
    next_one = asyncio.ensure_future(anext(watch, None))
    await volume.close()
    async with asyncio.timeout(20):
        while await next_one is not None:
            next_one = asyncio.ensure_future(anext(watch, None))
