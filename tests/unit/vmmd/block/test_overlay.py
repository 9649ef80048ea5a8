"""Blocks of a parent behind those of the front: layer by layer, block by block."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.vmmd.block.stores import Store, read, read_owned, submit, write
from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.block.concatenation import Concatenation
from vmmd.block.overlay import Overlay, ReadOnlyView


@pytest.fixture
def parent():
    made = Store(8)
    made.put(0, 11, 12, 13, 14, 15, 16, 17, 18)
    made.info = made.info.__class__(512, 8, read_only=True, supports_discard=False)
    return made


@pytest.fixture
def front():
    return Store(8)


@pytest.fixture
def overlay(front, parent):
    return Overlay(front, parent)


def test_what_was_never_written_comes_from_the_parent(overlay, front):
    front.put(2, 1)
    front.put(5, 2, 3)
    assert read(overlay, 0, 8) == [11, 12, 1, 14, 15, 2, 3, 18]
    assert read(overlay, 3, 2) == [14, 15]


def test_the_parent_is_asked_once_for_what_is_missing_and_no_more(overlay, front, parent):
    front.put(0, 1)
    front.put(7, 1)
    front.put(3, 1)
    read(overlay, 0, 8)
    assert parent.ops(BlockOp.READ) == [(1, 6)]
    parent.seen.clear()
    assert read(overlay, 7, 1) == [1]
    assert not parent.seen


def test_writes_and_flushes_never_reach_the_parent(overlay, front, parent):
    assert write(overlay, 1, 7) is BlockStatus.OK
    assert submit(overlay, Request(BlockOp.FLUSH, "f"))["f"].status is BlockStatus.OK
    assert not parent.seen
    assert front.values()[1] == 7
    assert read(overlay, 0, 3) == [11, 7, 13]


def test_a_block_written_with_zeros_is_the_fronts(overlay):
    write(overlay, 4, 0)
    assert read(overlay, 3, 3) == [14, 0, 16]


def test_ownership_is_of_either_layer(front):
    parent = Store(4)
    parent.put(1, 5)
    front.put(2, 6)
    overlay = Overlay(front, parent)
    assert read_owned(overlay, 0, 5) == ([0, 5, 6, 0, 0], [0, 1, 1, 0, 0])


def test_three_layers(front):
    bottom, middle = Store(8), Store(8)
    bottom.put(0, 1, 2, 3, 4)
    middle.put(1, 20)
    middle.put(6, 21)
    front.put(2, 30)
    overlay = Overlay(front, Overlay(middle, bottom))
    assert read(overlay, 0, 8) == [1, 20, 30, 4, 0, 0, 21, 0]
    assert read_owned(overlay, 0, 8)[1] == [1, 1, 1, 1, 0, 0, 1, 0]


def test_a_parent_smaller_than_the_front(front):
    overlay = Overlay(front, Store(3, b0=1, b1=2, b2=3))
    front.put(1, 9)
    front.put(4, 8)
    assert read(overlay, 0, 8) == [1, 9, 3, 0, 8, 0, 0, 0]
    assert read(overlay, 3, 5) == [0, 8, 0, 0, 0]


def test_a_parent_larger_than_the_front():
    overlay = Overlay(Store(2), Store(8, b0=1, b1=2, b2=3))
    assert overlay.info.block_count == 2
    assert read(overlay, 0, 2) == [1, 2]
    done = submit(overlay, Request(BlockOp.READ, "r", 1, 2))
    assert done["r"].status is BlockStatus.OUT_OF_RANGE


def test_several_sub_volumes_over_one_parent():
    fronts = [Store(4), Store(4)]
    overlay = Overlay(Concatenation(fronts), Store(8, b3=1, b4=2, b6=3))
    write(overlay, 4, 9)
    assert read(overlay, 2, 5) == [0, 1, 9, 0, 3]


def test_a_sub_volume_with_a_parent_of_its_own():
    inner = Overlay(Store(4), Store(4, b0=5))
    overlay = Overlay(Concatenation([inner, Store(4)]), Store(8, b0=1, b1=2, b5=3))
    assert read(overlay, 0, 6) == [5, 2, 0, 0, 0, 3]


def test_discards_are_not_offered_and_do_nothing(overlay, front):
    assert not overlay.info.supports_discard
    front.put(0, 1)
    done = submit(overlay, Request(BlockOp.DISCARD, "d", 0, 1))
    assert done["d"].status is BlockStatus.UNSUPPORTED
    assert read(overlay, 0, 1) == [1]


@pytest.mark.parametrize("layer", ["front", "parent"])
def test_a_layer_that_fails_fails_the_read(overlay, front, parent, layer):
    store = front if layer == "front" else parent
    store.status = {BlockOp.READ: BlockStatus.FAILED, BlockOp.READ_OWNED: BlockStatus.FAILED}
    done = submit(overlay, Request(BlockOp.READ, "r", 0, 2))["r"]
    assert (done.status, done.data) == (BlockStatus.FAILED, None)


def test_requests_of_a_batch_complete_each_for_itself(overlay, front):
    front.put(0, 1)
    done = submit(
        overlay,
        Request(BlockOp.READ, "own", 0, 1),
        Request(BlockOp.READ, "parents", 1, 1),
        Request(BlockOp.WRITE, "write", 5, 1, bytes(512)),
        Request(BlockOp.READ, "outside", 7, 5),
    )
    assert {token: each.status.name for token, each in done.items()} == {
        "own": "OK",
        "parents": "OK",
        "write": "OK",
        "outside": "OUT_OF_RANGE",
    }
    assert done["own"].data[0] == 1
    assert done["parents"].data[0] == 12


async def test_a_parent_is_let_go_when_no_read_needs_it(overlay, parent, front):
    parent.hold = True
    found = []
    overlay.submit([Request(BlockOp.READ, "r", 0, 1)], found.extend)
    dropping = asyncio.create_task(overlay.drop_parent())
    await asyncio.sleep(0)
    assert not dropping.done()
    assert read(overlay, 1, 1) == [0]  # already the front alone
    parent.release()
    await dropping
    assert found[0].data[0] == 11
    assert overlay.parent is None
    parent.seen.clear()
    front.put(3, 4)
    assert read(overlay, 2, 2) == [0, 4]
    assert not parent.seen


def test_failed_flushes_are_counted(overlay, front):
    front.status[BlockOp.FLUSH] = BlockStatus.FAILED
    assert submit(overlay, Request(BlockOp.FLUSH, "f"))["f"].status is BlockStatus.FAILED
    assert overlay.failed_flushes == 1


def test_a_view_takes_no_changes(parent):
    view = ReadOnlyView(parent)
    assert view.info.read_only
    assert read(view, 0, 2) == [11, 12]
    assert read_owned(view, 0, 1) == ([11], [1])
    assert write(view, 0, 1) is BlockStatus.READ_ONLY
    assert write(view, 0, 1, op=BlockOp.WRITE_UNWRITTEN) is BlockStatus.READ_ONLY
    done = submit(view, Request(BlockOp.DISCARD, "d", 0, 1), Request(BlockOp.FLUSH, "f"))
    assert done["d"].status is BlockStatus.READ_ONLY
    assert done["f"].status is BlockStatus.OK
    assert not parent.ops(BlockOp.FLUSH)
