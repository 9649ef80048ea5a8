"""Stamps and marks."""

from __future__ import annotations

import pytest

from downstaird.core.extent_table import ExtentTable
from stairlib.wire.frame import (
    FLAG_DIRTY,
    FLAG_FAULTED,
    FLAG_INCOMPLETE,
    FLAG_TOWARDS,
    extent_marks,
)


@pytest.fixture
def table():
    return ExtentTable(4)


def stamps(table):
    states = table.states()
    return list(zip(states.generations.tolist(), states.flushes.tolist(), strict=True))


def flags(table):
    return table.states().flags.tolist()


def flush(table, generation, number):
    entries = table.freeze(generation, number)
    table.publish(entries)
    return entries


def extents(*numbers):
    return extent_marks(numbers)


def test_a_flush_stamps_what_was_dirty_and_only_that(table) -> None:
    table.touch(1)
    entries = table.freeze(3, 8)
    table.touch(2)
    assert flags(table) == [0, FLAG_DIRTY, FLAG_DIRTY, 0]
    assert stamps(table) == [(0, 0)] * 4
    table.publish(entries)
    assert stamps(table) == [(0, 0), (3, 8), (0, 0), (0, 0)]
    assert flags(table) == [0, 0, FLAG_DIRTY, 0]
    assert entries["extent"].tolist() == [1]
    assert table.durable["flush"].tolist() == [0, 8, 0, 0]


def test_written_again_during_the_flush_stays_dirty(table) -> None:
    table.touch(1)
    entries = table.freeze(1, 1)
    table.touch(1)
    table.publish(entries)
    assert flags(table)[1] == FLAG_DIRTY
    assert stamps(table)[1] == (1, 1)


def test_a_flush_with_nothing_dirty_stores_nothing(table) -> None:
    assert len(flush(table, 1, 1)) == 0


def test_a_failed_flush_faults_what_it_covered(table) -> None:
    table.touch(2)
    table.freeze(1, 1)
    table.fail()
    assert flags(table) == [0, 0, FLAG_FAULTED, 0]
    assert stamps(table)[2] == (0, 0)
    assert not table.damaged


def test_a_repair_marks_resets_and_forgets_dirt(table) -> None:
    for extent in (0, 1):
        table.touch(extent)
    flush(table, 5, 5)
    table.touch(1)
    table.publish(table.begin_repair(extents(1, 2)))
    assert flags(table) == [0, FLAG_INCOMPLETE, FLAG_INCOMPLETE, 0]
    assert stamps(table) == [(5, 5), (0, 0), (0, 0), (0, 0)]
    assert table.durable["flags"].tolist() == [0, FLAG_INCOMPLETE, FLAG_INCOMPLETE, 0]
    assert len(flush(table, 5, 6)) == 0


def test_copied_extents_are_complete_after_the_next_flush(table) -> None:
    table.publish(table.begin_repair(extents(1, 2)))
    table.copied(1, 4, 9)
    assert flags(table)[1] == FLAG_INCOMPLETE
    entries = flush(table, 5, 10)
    assert entries["extent"].tolist() == [1]
    assert flags(table) == [0, 0, FLAG_INCOMPLETE, 0]
    assert stamps(table)[1] == (4, 9)
    assert tuple(table.durable[1]) == (1, 0, 4, 9)


def test_the_later_of_both_stamps_counts(table) -> None:
    table.publish(table.begin_repair(extents(0, 1)))
    table.touch(0)
    table.touch(1)
    flush(table, 5, 10)
    table.copied(0, 5, 9)
    table.copied(1, 5, 11)
    assert stamps(table)[:2] == [(0, 0), (0, 0)]
    flush(table, 5, 12)
    assert stamps(table)[:2] == [(5, 10), (5, 11)]


def test_a_copy_that_ends_during_a_flush_waits_for_the_next(table) -> None:
    table.publish(table.begin_repair(extents(0)))
    table.touch(0)
    entries = table.freeze(5, 10)
    table.copied(0, 5, 12)
    table.publish(entries)
    assert flags(table)[0] == FLAG_INCOMPLETE
    flush(table, 5, 13)
    assert flags(table)[0] == 0
    assert tuple(table.durable[0]) == (0, 0, 5, 12)


def test_a_mark_keeps_the_stamp_it_is_filled_towards(table) -> None:
    told = extent_marks([1, 2], [4, 3], [7, 9], told=[1, 0])
    table.publish(table.begin_repair(told))
    marked = [0, FLAG_INCOMPLETE | FLAG_TOWARDS, FLAG_INCOMPLETE, 0]
    assert flags(table) == marked
    table.touch(1)
    # Whether this flush ends well elsewhere is not known here: the mark stays as it was.
    flush(table, 5, 10)
    again = ExtentTable(4)
    again.adopt(table.durable)
    for one in (table, again):
        assert flags(one) == marked
        assert stamps(one) == [(0, 0), (4, 7), (3, 9), (0, 0)]
    table.copied(1, 4, 8)
    flush(table, 5, 11)
    assert flags(table)[1] == 0
    assert stamps(table)[1] == (5, 10)
    assert tuple(table.durable[1]) == (1, 0, 5, 10)


def test_damage_of_a_marked_extent_is_told(table) -> None:
    table.publish(table.begin_repair(extent_marks([1], [4], [7], told=True)))
    table.fault(1)
    table.touch(1)
    flush(table, 5, 10)
    assert table.durable["flags"][1] == FLAG_INCOMPLETE | FLAG_TOWARDS | FLAG_FAULTED


def test_a_second_repair_takes_back_a_copy(table) -> None:
    table.publish(table.begin_repair(extents(0)))
    table.copied(0, 5, 12)
    table.publish(table.begin_repair(extents(0)))
    flush(table, 5, 13)
    assert flags(table)[0] == FLAG_INCOMPLETE
    assert table.incomplete_count() == 1


def test_damage_lasts_until_a_repair(table) -> None:
    table.fault(3)
    assert table.damaged == {3}
    again = ExtentTable(4)
    again.adopt(table.durable)
    assert again.damaged == {3}
    again.publish(again.begin_repair(extents(3)))
    assert not again.damaged
    assert flags(again)[3] == FLAG_INCOMPLETE


def test_half_a_mark_of_a_program_that_knows_only_the_other_half_is_none(table) -> None:
    durable = table.durable.copy()
    durable["flags"] = [
        FLAG_TOWARDS,
        FLAG_TOWARDS | FLAG_FAULTED,
        FLAG_INCOMPLETE | FLAG_TOWARDS,
        0,
    ]
    table.adopt(durable)
    assert flags(table) == [0, FLAG_FAULTED, FLAG_INCOMPLETE | FLAG_TOWARDS, 0]


def test_a_flush_that_is_put_off_stamps_with_the_next_one(table) -> None:
    table.touch_all((0, 1, 2))
    table.put_off(1, 5)
    table.touch_all((1, 3))
    table.put_off(1, 6)
    table.touch(2)
    assert flags(table) == [FLAG_DIRTY] * 4
    assert stamps(table) == [(0, 0)] * 4
    entries = flush(table, 1, 7)
    assert entries["extent"].tolist() == [0, 1, 2, 3]
    # Each holds what it held at the flush that it is stamped with.
    assert stamps(table) == [(1, 5), (1, 6), (1, 7), (1, 6)]
    assert table.durable["flush"].tolist() == [5, 6, 7, 6]
    assert flags(table) == [0] * 4
    flush(table, 1, 8)
    assert stamps(table) == [(1, 5), (1, 6), (1, 7), (1, 6)]


def test_what_is_written_while_the_next_one_runs_is_dirty(table) -> None:
    table.touch(0)
    table.put_off(1, 5)
    entries = table.freeze(1, 6)
    table.touch(0)
    table.put_off(1, 7)
    table.publish(entries)
    assert stamps(table)[0] == (1, 5)
    assert flags(table)[0] == FLAG_DIRTY
    flush(table, 1, 8)
    assert stamps(table)[0] == (1, 7)


def test_an_extent_that_a_repair_begins_to_fill_is_not_stamped_for_one_put_off(table) -> None:
    table.touch_all((0, 1))
    table.put_off(1, 5)
    entries = table.begin_repair(extents(0))
    table.publish(entries)
    flush(table, 1, 6)
    assert stamps(table)[1] == (1, 5)
    assert flags(table)[0] & FLAG_INCOMPLETE
    assert not flags(table)[0] & FLAG_DIRTY


def test_one_put_off_fails_with_the_next(table) -> None:
    table.touch(0)
    table.put_off(1, 5)
    table.freeze(1, 6)
    table.fail()
    assert flags(table)[0] & FLAG_FAULTED


def test_who_comes_next_does_not_get_the_stamps_of_what_was_put_off(table) -> None:
    table.touch_all((0, 1))
    table.put_off(1, 5)
    table.touch(1)
    table.put_off_no_more()
    assert flags(table)[:2] == [FLAG_DIRTY] * 2
    flush(table, 1, 3)
    assert stamps(table)[:2] == [(1, 3)] * 2
