"""Backends one after another: cutting, joining, refusing."""

from __future__ import annotations

import pytest

from tests.unit.vmmd.block.stores import SIZE, Store, blocks, read, read_owned, submit, write
from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.block.concatenation import Concatenation


@pytest.fixture
def stores():
    return [Store(8), Store(8), Store(8)]


@pytest.fixture
def whole(stores):
    return Concatenation(stores)


def test_children_follow_each_other(whole, stores):
    assert whole.info.block_count == 24
    assert write(whole, 2, *range(1, 21)) is BlockStatus.OK
    assert read(whole, 2, 20) == list(range(1, 21))
    assert [s.values() for s in stores] == [
        [0, 0, 1, 2, 3, 4, 5, 6],
        [7, 8, 9, 10, 11, 12, 13, 14],
        [15, 16, 17, 18, 19, 20, 0, 0],
    ]


def test_a_request_within_one_child_keeps_its_token_and_buffer(whole, stores):
    data = blocks(1, 2)
    submit(whole, Request(BlockOp.WRITE, "w", 9, 2, data))
    [seen] = stores[1].seen
    assert (seen.token, seen.offset) == ("w", 1)
    assert seen.data is data


def test_ownership_is_joined(whole, stores):
    stores[0].put(7, 5)
    stores[1].put(1, 6)
    assert read_owned(whole, 6, 4) == ([0, 5, 0, 6], [0, 1, 0, 1])


def test_unwritten_writes_are_cut_like_writes(whole, stores):
    stores[1].put(0, 9)
    assert write(whole, 7, 1, 2, 3, op=BlockOp.WRITE_UNWRITTEN) is BlockStatus.OK
    assert read(whole, 7, 3) == [1, 9, 3]


def test_a_flush_goes_to_every_child_and_fails_with_any(whole, stores):
    assert submit(whole, Request(BlockOp.FLUSH, "f"))["f"].status is BlockStatus.OK
    stores[1].status[BlockOp.FLUSH] = BlockStatus.FAILED
    assert submit(whole, Request(BlockOp.FLUSH, "f"))["f"].status is BlockStatus.FAILED
    assert [len(one.ops(BlockOp.FLUSH)) for one in stores] == [2, 2, 2]


@pytest.mark.parametrize("op", [BlockOp.WRITE, BlockOp.READ, BlockOp.DISCARD])
def test_what_passes_the_end_is_refused_whole(whole, stores, op):
    data = bytes(5 * SIZE) if op is BlockOp.WRITE else None
    assert submit(whole, Request(op, "x", 20, 5, data))["x"].status is BlockStatus.OUT_OF_RANGE
    assert not any(one.seen for one in stores)


def test_a_part_that_fails_fails_the_whole_without_data(whole, stores):
    stores[1].status[BlockOp.READ] = BlockStatus.FAILED
    done = submit(whole, Request(BlockOp.READ, "r", 6, 4))["r"]
    assert (done.status, done.data) == (BlockStatus.FAILED, None)


def test_a_write_that_reaches_a_read_only_child_changes_nothing():
    stores = [Store(8), Store(8, read_only=True)]
    whole = Concatenation(stores)
    assert not whole.info.read_only
    assert write(whole, 6, 1, 2, 3, 4) is BlockStatus.READ_ONLY
    assert not stores[0].seen
    assert write(whole, 6, 1, 2) is BlockStatus.OK


def test_what_all_children_are_the_whole_is():
    assert Concatenation([Store(1, read_only=True), Store(1, read_only=True)]).info.read_only
    mixed = Concatenation([Store(1), Store(1, supports_discard=False)])
    assert not mixed.info.supports_discard
    assert Concatenation([Store(1), Store(1)]).info.supports_discard


def test_parts_that_complete_one_after_another_are_one_completion(whole, stores):
    stores[0].hold = stores[1].hold = True
    found = []
    whole.submit([Request(BlockOp.READ, "r", 7, 2)], found.extend)
    stores[1].release()
    assert not found
    stores[0].release()
    assert [each.token for each in found] == ["r"]


def test_concatenations_nest():
    inner = Concatenation([Store(4), Store(4)])
    outer = Concatenation([Store(4), inner, Store(4)])
    assert write(outer, 2, *range(1, 13)) is BlockStatus.OK
    assert read(outer, 0, 16) == [0, 0, *range(1, 13), 0, 0]


def test_a_zero_length_request_succeeds_and_does_nothing(whole):
    assert submit(whole, Request(BlockOp.READ, "r", 8, 0))["r"].status is BlockStatus.OK
    assert submit(whole, Request(BlockOp.READ, "r", 24, 0))["r"].status is BlockStatus.OK
