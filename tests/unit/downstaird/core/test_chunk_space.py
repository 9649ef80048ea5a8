"""Handing out physical chunks."""

from __future__ import annotations

import random

import numpy as np
import pytest

from downstaird.core.chunk_space import ChunkSpace


def test_new_chunks_follow_each_other_from_one() -> None:
    space = ChunkSpace()
    assert space.take(3) == [1, 2, 3]
    assert space.take(2) == [4, 5]
    assert space.end == 6


def test_used_chunks_come_before_new_ones_and_together_where_they_can() -> None:
    space = ChunkSpace()
    space.take(10)
    for physical in (2, 5, 6, 7):
        space.release(physical)
    assert space.take(3) == [5, 6, 7]
    assert space.take(2) == [2, 11]


def test_neighbours_grow_together() -> None:
    space = ChunkSpace()
    space.take(6)
    for physical in (2, 4, 3, 1, 5):
        space.release(physical)
    assert space.take(5) == [1, 2, 3, 4, 5]
    assert space.free_count() == 0


def test_a_chunk_cannot_be_released_twice() -> None:
    space = ChunkSpace()
    space.take(2)
    space.release(1)
    with pytest.raises(AssertionError):
        space.release(1)


def test_what_is_not_used_is_free() -> None:
    space = ChunkSpace.around(np.array([0, 7, 2, 0, 3], dtype=np.uint32))
    assert space.end == 8
    assert space.free_count() == 4
    assert space.take(3) == [4, 5, 6]
    assert space.take(2) == [1, 8]
    assert ChunkSpace.around(np.zeros(4, dtype=np.uint32)).take(1) == [1]


def test_no_chunk_is_ever_with_two_owners() -> None:
    rng = random.Random(5)
    space = ChunkSpace()
    owned: set[int] = set()
    for _ in range(2000):
        if rng.random() < 0.5 or not owned:
            taken = space.take(rng.randrange(1, 9))
            assert not owned & set(taken)
            owned.update(taken)
        else:
            physical = rng.choice(sorted(owned))
            owned.remove(physical)
            space.release(physical)
        assert space.free_count() + len(owned) == space.end - 1
