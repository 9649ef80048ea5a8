"""The text that tells of the extents of a member."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairlib.model.errors import InvalidRequestError
from stairlib.model.extents import ExtentState, as_text, from_text, runs


def test_runs_are_told_with_their_length_unless_that_is_one():
    states = np.array([0, 0, 0, 1, 3, 3, 5, 2, 4], dtype=np.uint8)
    assert as_text(states) == "3sc2wudx"
    assert runs("5000c4wx") == [
        (ExtentState.COPIED, 5000),
        (ExtentState.COPYING, 4),
        (ExtentState.DIFFERS, 1),
    ]


@given(st.lists(st.sampled_from(sorted(ExtentState)), max_size=40))
def test_what_was_told_is_read_again(states):
    found = from_text(as_text(np.array(states, dtype=np.uint8)))
    assert found.tolist() == states


@pytest.mark.parametrize("text", ["5", "0s", "-3s", "3q", "s5", "05s", "3s 4x", "٣s"])
def test_other_texts_are_refused(text):
    with pytest.raises(InvalidRequestError, match="no run of extents"):
        runs(text)


def test_a_repair_of_a_large_region_takes_little():
    states = np.full(12_800, ExtentState.DIFFERS, dtype=np.uint8)
    states[:5000] = ExtentState.COPIED
    states[5000:5004] = ExtentState.COPYING
    assert len(as_text(states)) < 32
    scattered = np.random.default_rng(1).integers(0, 64, 12_800) == 0
    states = scattered.astype(np.uint8) * ExtentState.DIRTY
    assert len(as_text(states.astype(np.uint8))) < 2048
