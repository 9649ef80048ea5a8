"""The journal against a list, with the process gone at any time."""

from __future__ import annotations

from operator import itemgetter

from hypothesis import given, settings
from hypothesis import strategies as st

from vmmd.block.backend import BlockOp
from vmmd.hw.virtio_blk.core import Change
from vmmd.vhost_user.core.journal import ChangeJournal

BLOCK = 64
SIZE = 64 + 16 * 64


def change(number: int, blocks: int = 1) -> Change:
    half = bytes([number]) * (blocks * BLOCK // 2)
    return Change(BlockOp.WRITE, number, blocks, [memoryview(half), memoryview(half)])


def plain(found: list[Change]) -> list[tuple[BlockOp, int, int, bytes]]:
    return [(one.op, one.first, one.blocks, b"".join(map(bytes, one.data))) for one in found]


def test_what_is_held_is_there_for_the_next_process() -> None:
    view = memoryview(bytearray(SIZE))
    journal = ChangeJournal(view, BLOCK)
    kept = journal.hold([change(1)])
    assert kept is not None
    assert bytes(kept) == b"\1" * BLOCK
    journal.hold([Change(BlockOp.DISCARD, 7, 9), Change(BlockOp.WRITE, 8, 3)])
    expected = [
        (BlockOp.WRITE, 1, 1, b"\1" * BLOCK),
        (BlockOp.DISCARD, 7, 9, b""),
        (BlockOp.WRITE, 8, 3, b""),
    ]
    assert plain(ChangeJournal(view, BLOCK).changes()) == expected


def test_it_is_full_and_has_room_again() -> None:
    journal = ChangeJournal(memoryview(bytearray(SIZE)), BLOCK)
    number = 0
    while journal.hold([change(number)]) is not None:
        number += 1
    assert number == 8
    assert journal.half_full()
    mark = journal.mark()
    journal.let_go(mark)
    assert not journal.half_full()
    assert journal.hold([change(1)]) is not None


def test_a_record_whose_last_word_is_missing_ends_it() -> None:
    """As when the process was killed while it wrote it."""
    view = memoryview(bytearray(SIZE))
    journal = ChangeJournal(view, BLOCK)
    journal.hold([change(1)])
    place = journal.mark()
    journal.hold([change(2)])
    at = 64 + place % (SIZE - 64)
    view[at : at + 8] = bytes(8)
    again = ChangeJournal(view, BLOCK)
    assert [one.first for one in again.changes()] == [1]
    again.hold([change(3)])
    assert [one.first for one in ChangeJournal(view, BLOCK).changes()] == [1, 3]


def test_what_an_earlier_round_left_is_not_taken_for_new() -> None:
    view = memoryview(bytearray(SIZE))
    journal = ChangeJournal(view, BLOCK)
    for number in range(40):
        assert journal.hold([change(number)]) is not None
        if number % 3 == 2:
            journal.let_go(journal.mark())
    assert [one.first for one in ChangeJournal(view, BLOCK).changes()] == [39]


@settings(max_examples=60)
@given(st.data())
def test_it_holds_what_a_list_would(data) -> None:
    view = memoryview(bytearray(SIZE))
    journal = ChangeJournal(view, BLOCK)
    model: list[tuple[int, Change]] = []
    for number in range(data.draw(st.integers(1, 40))):
        step = data.draw(st.sampled_from(["hold", "hold", "hold", "let go", "die"]))
        if step == "hold":
            wanted = [
                change(number, blocks) if blocks else Change(BlockOp.DISCARD, number, 5)
                for blocks in data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
            ]
            if journal.hold(wanted) is None:
                # What is held, what was to be, and what cannot be used before the end.
                held = sum(
                    64 + sum(map(len, one.data)) for one in (*map(itemgetter(1), model), *wanted)
                )
                assert held + 64 + 3 * BLOCK > SIZE - 64
            else:
                model += [(journal.mark(), one) for one in wanted]
        elif step == "let go" and model:
            mark, _one = data.draw(st.sampled_from(model))
            journal.let_go(mark)
            model = [(place, one) for place, one in model if place > mark]
        elif step == "die":
            journal = ChangeJournal(view, BLOCK)
        expected = [one for _place, one in model]
        assert plain(ChangeJournal(view, BLOCK).changes()) == plain(expected)
