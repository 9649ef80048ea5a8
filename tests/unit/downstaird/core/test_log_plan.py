"""What logged epochs come to in the end."""

from __future__ import annotations

import random

import numpy as np

from downstaird.core.log_plan import plan_of
from downstaird.core.overlay import DISCARDED, LoggedEpoch

CHUNK_BLOCKS = 4
SIZE = 512


def epoch(start, addresses=(), *, discards=(), remapped=(), slots=None, data_offset=0):
    count = len(addresses)
    return LoggedEpoch(
        start=start,
        end=start + (count if slots is None else max(slots) + 1),
        log=0,
        file=None,
        data_offset=data_offset,
        addresses=np.array(addresses, dtype=np.int64),
        contexts=np.full((count, 4), start + 1, dtype=np.uint64),
        slots=None if slots is None else np.array(slots, dtype=np.int64),
        discards=np.array(discards, dtype=np.int64).reshape(-1, 2),
        remapped=np.array(remapped, dtype=np.uint32),
    )


def entries(*epochs):
    plan = plan_of(epochs, CHUNK_BLOCKS, SIZE)
    return dict(zip(plan.addresses.tolist(), plan.ids.tolist(), strict=True))


def test_the_last_entry_of_a_block_counts() -> None:
    assert entries(epoch(0, [5, 9]), epoch(10, [9, 2])) == {2: 11, 5: 0, 9: 10}


def test_a_block_after_a_discard_of_the_same_record_counts() -> None:
    assert entries(epoch(0, [6], discards=[(5, 3)])) == {5: DISCARDED, 6: 0, 7: DISCARDED}


def test_a_remap_hides_what_came_before_but_not_what_came_with_it() -> None:
    found = entries(epoch(0, [4, 5, 8]), epoch(10, [5], discards=[(6, 1)], remapped=[1]))
    assert found == {5: 10, 6: DISCARDED, 8: 2}


def test_chunks_have_their_entries_and_remapped_ones_may_have_none() -> None:
    plan = plan_of([epoch(0, [9, 1, 2], data_offset=4096), epoch(5, remapped=[1])], 4, SIZE)
    assert plan.chunks.tolist() == [0, 1, 2]
    assert plan.bounds.tolist() == [0, 2, 2, 3]
    assert plan.offsets.tolist() == [4096 + SIZE, 4096 + 2 * SIZE, 4096]


def test_nothing_comes_to_nothing() -> None:
    plan = plan_of([], 4, SIZE)
    assert plan.chunks.tolist() == []
    assert plan.bounds.tolist() == [0]
    assert plan_of([epoch(0, remapped=[3, 2])], 4, SIZE).chunks.tolist() == [2, 3]


def test_dead_slots_are_left_out() -> None:
    plan = plan_of([epoch(100, [7, 3], slots=[1, 4], data_offset=512)], 4, SIZE)
    assert plan.ids.tolist() == [104, 101]
    assert plan.offsets.tolist() == [1024, 512]


def test_it_agrees_with_going_through_them_one_by_one() -> None:
    rng = random.Random(3)
    for _ in range(200):
        epochs = []
        wanted: dict[int, int] = {}
        for number in range(rng.randrange(1, 6)):
            start = number * 50
            addresses = rng.sample(range(24), rng.randrange(6))
            discards = [(rng.randrange(20), rng.randrange(1, 4)) for _ in range(rng.randrange(3))]
            remapped = rng.sample(range(6), rng.randrange(3))
            epochs.append(epoch(start, addresses, discards=discards, remapped=remapped))
            wanted = {at: each for at, each in wanted.items() if at // 4 not in remapped}
            for first, count in discards:
                wanted.update(dict.fromkeys(range(first, first + count), DISCARDED))
            wanted.update({address: start + index for index, address in enumerate(addresses)})
        assert entries(*epochs) == wanted
