"""Filling a volume from its parent: what is copied, what is waited for, what is given up."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tests.unit.vmmd.block.stores import SIZE, Store, read, submit, write
from vmmd.block import scrub as scrub_module
from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.block.overlay import Overlay
from vmmd.block.scrub import Scrub, ScrubState

MIB_BLOCKS = (1 << 20) // SIZE


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(scrub_module, "RETRY_FIRST_SECONDS", 0.001)
    monkeypatch.setattr(scrub_module, "RETRY_MAX_SECONDS", 0.004)


class Watched:
    """A scrub whose changes can be waited for."""

    def __init__(self, overlay, *, rate=0, skip_zeros=True):
        self._changed = asyncio.Event()
        self.seen = []
        self.scrub = Scrub(
            overlay,
            "",
            bytes_per_second_max=rate,
            skip_zeros=skip_zeros,
            changed=self._note,
        )

    def _note(self):
        self.seen.append(self.scrub.status())
        self._changed.set()

    async def until(self, wanted):
        async with asyncio.timeout(20):
            while not wanted(self.scrub.status()):
                self._changed.clear()
                await self._changed.wait()


async def filled(overlay, **options):
    """A scrub run to its end."""
    watched = Watched(overlay, **options)
    async with asyncio.timeout(30):
        assert await watched.scrub.run()
    return watched


async def test_everything_the_parent_has_is_copied_and_flushed():
    front, parent = Store(3 * MIB_BLOCKS + 5), Store(2 * MIB_BLOCKS + 7)
    rng = np.random.default_rng(1)
    parent.data[:] = rng.integers(0, 256, len(parent.data), dtype=np.uint8).tobytes()
    parent.owned[:] = True
    overlay = Overlay(front, parent)
    watched = await filled(overlay)
    assert front.data[: len(parent.data)] == parent.data
    assert front.owned[: parent.info.block_count].all()
    assert not front.owned[parent.info.block_count :].any()
    assert front.seen[-1].op is BlockOp.FLUSH
    status = watched.scrub.status()
    assert (status.bytes_done, status.bytes_total) == (len(parent.data), len(parent.data))
    done = [each.bytes_done for each in watched.seen]
    assert done == sorted(done)
    # All of it only once it is durable.
    assert all(each < len(parent.data) for each in done)


async def test_what_a_guest_wrote_stays():
    front, parent = Store(8), Store(8, b0=1, b1=2, b2=3, b3=4)
    front.put(1, 0)
    front.put(3, 9)
    await filled(Overlay(front, parent))
    assert front.values() == [1, 0, 3, 9, 0, 0, 0, 0]


async def test_a_guest_that_writes_between_the_look_and_the_copy_wins():
    front, parent = Store(4), Store(4, b0=1, b1=2)
    overlay = Overlay(front, parent)

    def meanwhile(_request):
        write(overlay, 1, 7)
        parent.status.clear()
        return BlockStatus.OK

    parent.status[BlockOp.READ_OWNED] = meanwhile
    await filled(overlay)
    assert front.values() == [1, 7, 0, 0]


async def test_sparse_parents_stay_sparse():
    front, parent = Store(4 * MIB_BLOCKS), Store(4 * MIB_BLOCKS)
    for at in (0, MIB_BLOCKS - 1, MIB_BLOCKS, 3 * MIB_BLOCKS + 3):
        parent.put(at, 5)
    await filled(Overlay(front, parent))
    assert np.array_equal(front.owned, parent.owned)
    assert front.data == parent.data


@pytest.mark.parametrize(("skip_zeros", "owned"), [(True, [0, 1, 0]), (False, [1, 1, 0])])
async def test_zeros_are_written_where_something_could_show_through(skip_zeros, owned):
    front, parent = Store(3), Store(3, b0=0, b1=5)
    await filled(Overlay(front, parent), skip_zeros=skip_zeros)
    assert front.owned.astype(int).tolist() == owned
    assert front.values() == [0, 5, 0]


async def test_a_parent_with_nothing_new_is_not_even_read():
    front, parent = Store(4, b0=1, b1=1, b2=1, b3=1), Store(4, b0=2)
    await filled(Overlay(front, parent))
    assert not parent.seen
    assert front.values() == [1, 1, 1, 1]


async def test_a_volume_in_trouble_is_waited_for_and_says_so():
    front, parent = Store(4), Store(4, b0=1)
    front.status[BlockOp.WRITE_UNWRITTEN] = BlockStatus.FAILED
    watched = Watched(Overlay(front, parent))
    run = asyncio.create_task(watched.scrub.run())
    await watched.until(lambda status: "FAILED" in status.reason)
    assert watched.scrub.state is ScrubState.RUNNING
    front.status.clear()
    async with asyncio.timeout(20):
        assert await run
    assert watched.scrub.status().reason == ""
    assert front.values()[0] == 1


async def test_a_parent_that_cannot_be_read_is_given_up_after_some_tries():
    front, parent = Store(4), Store(4, b0=1)
    parent.status[BlockOp.READ_OWNED] = BlockStatus.FAILED
    watched = Watched(Overlay(front, parent))
    assert not await watched.scrub.run()
    status = watched.scrub.status()
    assert status.state is ScrubState.FAILED
    assert "block 0" in status.reason
    assert len(parent.seen) == scrub_module.PARENT_TRIES
    assert front.values() == [0, 0, 0, 0]


async def test_a_parent_that_fails_once_is_read_again():
    front, parent = Store(4), Store(4, b0=1)

    def once(_request):
        parent.status.clear()
        return BlockStatus.FAILED

    parent.status[BlockOp.READ_OWNED] = once
    await filled(Overlay(front, parent))
    assert front.values()[0] == 1


async def test_what_nobody_foresaw_ends_it_with_its_reason():
    parent = Store(4, b0=1)

    def bug(_request):
        raise RuntimeError("a bug in a backend")

    parent.status[BlockOp.READ_OWNED] = bug
    watched = Watched(Overlay(Store(4), parent))
    assert not await watched.scrub.run()
    assert watched.scrub.state is ScrubState.FAILED
    assert "a bug in a backend" in watched.scrub.status().reason


async def test_a_volume_that_may_not_be_written_ends_it():
    watched = Watched(Overlay(Store(4, read_only=True), Store(4, b0=1)))
    assert not await watched.scrub.run()
    assert "READ_ONLY" in watched.scrub.status().reason


@pytest.mark.parametrize("whose", ["guest", "own"])
async def test_after_a_failed_flush_everything_is_looked_at_again(whose):
    """A failed flush may mean that what was acknowledged is gone: with it the copies."""
    front, parent = Store(2 * MIB_BLOCKS), Store(2 * MIB_BLOCKS)
    parent.put(0, 5)
    parent.put(MIB_BLOCKS, 6)
    overlay = Overlay(front, parent)

    def lose(_request):
        front.data[:] = bytes(len(front.data))
        front.owned[:] = False
        front.status.clear()
        return BlockStatus.FAILED

    def guest_flush_fails(request):
        if request.offset >= MIB_BLOCKS:
            front.status[BlockOp.FLUSH] = lose
            submit(overlay, Request(BlockOp.FLUSH, "guest"))
        return BlockStatus.OK

    if whose == "own":
        front.status[BlockOp.FLUSH] = lose
    else:
        front.status[BlockOp.WRITE_UNWRITTEN] = guest_flush_fails
    await filled(overlay)
    assert (front.values()[0], front.values()[MIB_BLOCKS]) == (5, 6)


@pytest.mark.parametrize("dropped", [False, True])
async def test_a_guest_hears_of_the_failed_flush_that_the_scrub_was_told_of(dropped):
    """The upstairs tells once that acknowledged writes are gone: it must not be the scrub alone."""
    front, parent = Store(4), Store(4, b0=5)
    overlay = Overlay(front, parent)

    def once(_request):
        front.status.clear()
        return BlockStatus.FAILED

    front.status[BlockOp.FLUSH] = once
    await filled(overlay)
    if dropped:
        await overlay.drop_parent()
    batch = [Request(BlockOp.READ, "read", 0, 1), Request(BlockOp.FLUSH, "flush")]
    found = [submit(overlay, *batch) for _time in range(2)]
    assert [each["flush"].status for each in found] == [BlockStatus.FAILED, BlockStatus.OK]
    assert [each["read"].data[0] for each in found] == [5, 5]


async def test_the_rate_is_kept_and_can_be_changed():
    front, parent = Store(4 * MIB_BLOCKS), Store(4 * MIB_BLOCKS)
    parent.owned[:] = True
    parent.data[:] = b"\1" * len(parent.data)
    watched = Watched(Overlay(front, parent), rate=1 << 10)
    run = asyncio.create_task(watched.scrub.run())
    await watched.until(lambda status: status.bytes_done > 0)
    # A thousand seconds for the first piece; nothing more moves until the rate is raised.
    assert watched.scrub.status().bytes_done == 1 << 20
    watched.scrub.set_rate(0)
    async with asyncio.timeout(20):
        assert await run
    assert front.data == parent.data


async def test_stopped_it_keeps_what_was_copied():
    front, parent = Store(4 * MIB_BLOCKS), Store(4 * MIB_BLOCKS)
    parent.owned[:] = True
    parent.data[:] = b"\1" * len(parent.data)
    overlay = Overlay(front, parent)
    watched = Watched(overlay, rate=1 << 10)
    run = asyncio.create_task(watched.scrub.run())
    await watched.until(lambda status: status.bytes_done > 0)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    watched.scrub.stopped()
    assert watched.scrub.state is ScrubState.STOPPED
    assert front.owned.sum() == MIB_BLOCKS
    assert read(overlay, 3 * MIB_BLOCKS, 2) == [1, 1]
    await filled(overlay)
    assert front.owned.all()
