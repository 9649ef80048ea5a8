"""What changed since a flush, by stamps."""

from __future__ import annotations

import numpy as np
import pytest

from downstaird.core.changes import changes_since
from downstaird.core.engine import ExtentStates
from stairlib.wire.frame import FLAG_DIRTY, FLAG_FAULTED, FLAG_INCOMPLETE


def states(stamps, flags=None) -> ExtentStates:
    generations, flushes = np.array(stamps, dtype=np.uint64).reshape(-1, 2).T
    marks = np.zeros(len(generations), dtype=np.uint8)
    for extent, flag in (flags or {}).items():
        marks[extent] = flag
    return ExtentStates(generations, flushes, marks)


FIVE = [(0, 0), (1, 9), (2, 1), (2, 4), (2, 4)]


@pytest.mark.parametrize(
    ("since", "runs"),
    [
        ((0, 0), ((1, 4),)),
        ((1, 8), ((1, 4),)),
        ((1, 9), ((2, 3),)),
        ((2, 1), ((3, 2),)),
        ((2, 4), ()),
        ((3, 0), ()),
    ],
)
def test_later_stamps_are_told(since, runs) -> None:
    found = changes_since(states(FIVE), *since)
    assert found.runs == runs
    assert (found.generation, found.flush) == (2, 4)
    assert found.extents == sum(count for _first, count in runs)


@pytest.mark.parametrize("flag", [FLAG_DIRTY, FLAG_FAULTED, FLAG_INCOMPLETE])
def test_what_is_not_settled_has_changed_whatever_its_stamp(flag) -> None:
    assert changes_since(states(FIVE, {0: flag, 2: flag}), 2, 4).runs == ((0, 1), (2, 1))


def test_nothing_was_ever_written() -> None:
    found = changes_since(states([(0, 0)] * 3), 0, 0)
    assert (found.runs, found.generation, found.flush) == ((), 0, 0)
