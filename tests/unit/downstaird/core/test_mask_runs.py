"""Runs of a mask are what reading it entry by entry finds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from downstaird.core.mask_runs import true_runs


@pytest.mark.parametrize("length", range(8))
def test_every_mask_of_a_few_entries(length: int) -> None:
    for entries in itertools.product((False, True), repeat=length):
        mask = np.array(entries, dtype=np.bool_)
        runs = true_runs(mask)
        covered = [index for start, stop in runs for index in range(start, stop)]
        assert covered == np.flatnonzero(mask).tolist()
        assert all(before[1] < after[0] for before, after in itertools.pairwise(runs))


def test_a_part_of_a_longer_mask_with_gaps_in_memory() -> None:
    mask = np.array([1, 0, 1, 0, 0, 1, 1], dtype=np.bool_)
    assert true_runs(mask[::2]) == [(0, 2), (3, 4)]
