"""Which copy of an extent wins, and who is filled from it."""

from __future__ import annotations

import numpy as np
import pytest

from stairlib.model.errors import DataError
from stairlib.wire.frame import FLAG_DIRTY, FLAG_FAULTED, FLAG_INCOMPLETE, FLAG_TOWARDS
from vmmd.upstairs.core.events import ExtentStamps
from vmmd.upstairs.core.reconcile_plan import plan, trust_regions
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.slot_states import SlotMode


def member(slot, *extents, owned=True):
    """One member; an extent is (generation, flush, flags)."""
    made = Member(slot, slot, f"d{slot}:1", SlotMode.NEW)
    made.region_id = f"region-{slot}"
    made.owned_before = owned
    table = np.array(extents, dtype=np.uint64)
    made.stamps = ExtentStamps(table[:, 0], table[:, 1], table[:, 2].astype(np.uint8))
    return made


# A mark that tells what it is filled towards.
MARK = FLAG_INCOMPLETE | FLAG_TOWARDS
# Beside the extent looked at, so that the members count as written.
WRITTEN = (1, 1, 0)


def work(*extents_of_members):
    members = [member(slot, *extents) for slot, extents in enumerate(extents_of_members)]
    trust_regions(members)
    found = plan(members, len(extents_of_members[0]))
    return found.source.tolist(), [extents.tolist() for extents in found.extents]


@pytest.mark.parametrize(
    ("copies", "source", "filled"),
    [
        ([(1, 5, 0), (1, 5, 0), (1, 5, 0)], 0, []),
        ([(1, 5, 0), (1, 6, 0), (1, 5, 0)], 1, [0, 2]),
        ([(1, 9, 0), (1, 9, 0), (2, 1, 0)], 2, [0, 1]),
        ([(2, 1, 0), (1, 9, 0), (2, 1, 0)], 0, [1]),
        ([(1, 5, 0), (1, 5, FLAG_DIRTY), (1, 5, 0)], 1, [0, 2]),
        ([(1, 5, FLAG_DIRTY), (1, 5, FLAG_DIRTY), (1, 5, FLAG_DIRTY)], 0, [1, 2]),
        ([(3, 9, FLAG_INCOMPLETE), (1, 5, 0), (1, 5, 0)], 1, [0]),
        ([(3, 9, FLAG_FAULTED), (1, 5, 0), (1, 6, 0)], 2, [0, 1]),
        ([(1, 5, FLAG_DIRTY), (1, 6, 0), (1, 6, 0)], 1, [0]),
    ],
)
def test_the_best_copy_wins(copies, source, filled):
    sources, extents = work(*([copy] for copy in copies))
    assert sources == [source]
    assert [slot for slot, needed in enumerate(extents) if needed] == filled


def test_an_extent_without_a_whole_copy_is_an_error_that_names_it():
    whole, bad = (1, 1, 0), (0, 0, FLAG_INCOMPLETE)
    with pytest.raises(DataError, match="extent 1"):
        work([whole, bad], [whole, bad], [whole, bad])


def test_an_extent_with_a_failed_write_is_a_source_only_when_nothing_better_is_left():
    members = [member(slot, (1, 5, 0)) for slot in range(3)]
    trust_regions(members)
    members[0].suspect_extents.add(0)
    found = plan(members, 1)
    assert found.source.tolist() == [1]
    assert [len(extents) for extents in found.extents] == [1, 0, 0]
    for one in members:
        one.suspect_extents.add(0)
    found = plan(members, 1)
    assert [len(extents) for extents in found.extents] == [0, 1, 1]


def test_a_failed_write_does_not_make_an_older_copy_the_better_one():
    """Its daemon lets no later flush succeed: the stamp is of one before the write."""
    members = [member(0, (1, 65, 0)), member(1, (1, 105, 0)), member(2, (1, 61, 0))]
    trust_regions(members)
    for one in members[:2]:
        one.suspect_extents.add(0)
    found = plan(members, 1)
    assert found.source.tolist() == [1]
    assert [len(extents) for extents in found.extents] == [1, 0, 1]


def test_a_region_from_elsewhere_is_no_source_whatever_its_stamps_say():
    members = [member(0, (1, 5, 0)), member(1, (1, 5, 0)), member(2, (9, 9, 0), owned=False)]
    trust_regions(members)
    found = plan(members, 1)
    assert found.source.tolist() == [0]
    assert [len(extents) for extents in found.extents] == [0, 0, 1]
    assert found.generation_max == 1


def test_a_blank_region_does_not_win_over_incomplete_extents():
    stamped = [(2, 5, 0), (0, 0, FLAG_INCOMPLETE)]
    members = [member(0, *stamped), member(1, *stamped), member(2, (0, 0, 0), (0, 0, 0))]
    trust_regions(members)
    with pytest.raises(DataError, match="no whole copy"):
        plan(members, 2)


def test_a_new_set_is_believed():
    members = [member(slot, (0, 0, 0), owned=False) for slot in range(3)]
    trust_regions(members)
    assert plan(members, 1).empty


@pytest.mark.parametrize(
    ("copies", "source", "filled"),
    [
        # The source is there, or something newer.
        ([(2, 5, 0), (2, 5, MARK), (1, 9, 0)], 0, [1, 2]),
        ([(2, 6, 0), (2, 5, MARK), (2, 5, MARK)], 0, [1, 2]),
        ([(2, 5, FLAG_DIRTY), (2, 5, MARK), (2, 5, MARK)], 0, [1, 2]),
        # Of several marks the latest counts, in whatever order they come.
        ([(2, 4, MARK), (2, 5, MARK), (2, 5, 0)], 2, [0, 1]),
        # A mark of another time does not tell, as before.
        ([(9, 9, FLAG_INCOMPLETE), (1, 5, 0), (1, 5, 0)], 1, [0]),
        # Nothing was ever flushed: the source lost what it had, and nobody misses it.
        ([(0, 0, MARK), (0, 0, MARK), (0, 0, 0)], 2, [0, 1]),
    ],
)
def test_what_a_mark_was_filled_towards_is_there(copies, source, filled):
    sources, extents = work(*([copy, WRITTEN] for copy in copies))
    assert sources[0] == source
    assert [slot for slot, needed in enumerate(extents) if 0 in needed] == filled


@pytest.mark.parametrize(
    "copies",
    [
        [(2, 5, MARK), (2, 4, 0), (2, 4, 0)],
        [(2, 5, MARK), (1, 9, 0), (2, 4, FLAG_DIRTY)],
        [(2, 5, MARK), (2, 4, MARK), (2, 4, 0)],
        [(1, 7, MARK), (0, 0, 0), (1, 6, 0)],
    ],
)
def test_an_older_copy_does_not_stand_in_for_a_lost_source(copies):
    with pytest.raises(DataError, match="older") as caught:
        work(*([copy, WRITTEN] for copy in copies))
    assert caught.value.reason == "NO_WHOLE_COPY"
    generation, flush, _ = copies[0]
    assert caught.value.metadata["needed_generation"] == str(generation)
    assert caught.value.metadata["needed_flush"] == str(flush)
    assert f"generation {generation}, flush {flush}" in caught.value.message


@pytest.mark.parametrize("owned", [True, False])
def test_a_blank_region_stands_in_where_nothing_was_ever_flushed(owned):
    def members(mark):
        stamped = [(2, 5, 0), mark]
        blank = member(2, (0, 0, 0), (0, 0, 0), owned=owned)
        return [member(0, *stamped), member(1, *stamped), blank]

    found = members((0, 0, MARK))
    trust_regions(found)
    drawn = plan(found, 2)
    assert drawn.source.tolist() == [0, 2]
    assert [extents.tolist() for extents in drawn.extents] == [[1], [1], [0]]
    for wrong in ((0, 0, FLAG_INCOMPLETE), (1, 1, MARK), (0, 0, MARK | FLAG_FAULTED)):
        found = members(wrong)
        trust_regions(found)
        with pytest.raises(DataError):
            plan(found, 2)


def test_a_blank_region_does_not_stand_in_while_a_member_is_away():
    members = [member(0, (2, 5, 0), (0, 0, MARK)), member(2, (0, 0, 0), (0, 0, 0))]
    trust_regions(members)
    with pytest.raises(DataError, match="no whole copy"):
        plan(members, 2)


def test_what_is_copied_is_marked_with_the_sources_stamp():
    members = [member(0, (2, 5, 0), (1, 1, 0)), member(1, (1, 9, 0), (2, 7, 0))]
    trust_regions(members)
    generations, flushes = plan(members, 2).stamps
    assert (generations.tolist(), flushes.tolist()) == ([2, 2], [5, 7])
