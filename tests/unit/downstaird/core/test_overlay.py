"""Small writes before they are home."""

from __future__ import annotations

import numpy as np
import pytest

from downstaird.core.overlay import DISCARDED, HOME, LoggedEpoch, Overlay
from downstaird.store.memory import MemoryDisk
from stairlib.model.context import empty_contexts, plain_contexts
from tests.unit.downstaird.core.region_rig import BLOCK, content


@pytest.fixture
def overlay():
    return Overlay(chunk_blocks=8, block_size=BLOCK, arena_blocks=16)


def put(overlay, chunk, first, data):
    overlay.put(chunk, first, plain_contexts(data, BLOCK), data)


def fetch(overlay, chunk, first, count=1):
    place = int(overlay.tables[chunk][first])
    contexts, data = overlay.fetch(place, count)
    assert (contexts == plain_contexts(data, BLOCK)).all()
    assert (overlay.contexts(place, count) == contexts).all()
    return bytes(data)


def logged(overlay, arena, slots=None):
    """The epoch of a frozen arena as if its live blocks lay in a file."""
    file = MemoryDisk().open("log", create=True)
    chosen = np.arange(arena.used) if slots is None else np.array(slots)
    for rank, slot in enumerate(chosen.tolist()):
        file.pwritev([arena.bytes_of(slot, 1)], 4096 + rank * BLOCK)
    return LoggedEpoch(
        start=arena.start,
        end=arena.start + arena.used,
        log=0,
        file=file,
        data_offset=4096,
        addresses=arena.addresses[chosen],
        contexts=arena.contexts[chosen],
        slots=None if slots is None else chosen,
        discards=np.zeros((0, 2), dtype=np.int64),
        remapped=np.zeros(0, dtype=np.uint32),
    )


def test_blocks_stay_readable_while_they_move_to_the_log(overlay) -> None:
    data = content("a", 3)
    put(overlay, 5, 2, data)
    assert fetch(overlay, 5, 2, 3) == data
    arena = overlay.freeze()
    put(overlay, 5, 3, content("b"))
    assert fetch(overlay, 5, 2) == data[:BLOCK]
    assert fetch(overlay, 5, 3) == content("b")
    overlay.publish(logged(overlay, arena))
    assert fetch(overlay, 5, 2) == data[:BLOCK]
    assert fetch(overlay, 5, 3) == content("b")
    assert fetch(overlay, 5, 4) == data[2 * BLOCK :]


def test_a_block_written_again_in_its_epoch_takes_no_more_room(overlay) -> None:
    put(overlay, 1, 0, content("a", 4))
    room = overlay.room()
    put(overlay, 1, 1, content("b", 2))
    assert overlay.room() == room
    assert fetch(overlay, 1, 1, 2) == content("b", 2)
    assert fetch(overlay, 1, 0) == content("a", 4)[:BLOCK]


def scatter(overlay, addresses, name):
    data = content(name, len(addresses))
    overlay.put_scattered(addresses, plain_contexts(data, BLOCK), data)
    return [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]


def test_blocks_far_apart_are_taken_together(overlay) -> None:
    parts = scatter(overlay, [41, 2, 40, 20], "a")
    assert [fetch(overlay, *divmod(at, 8)) for at in (41, 2, 40, 20)] == parts
    assert overlay.active.addresses[:4].tolist() == [41, 2, 40, 20]
    assert overlay.room() == 12


def test_of_blocks_taken_together_the_later_one_of_a_place_stays(overlay) -> None:
    before = scatter(overlay, [41, 2], "a")
    parts = scatter(overlay, [7, 2, 9, 7], "b")
    assert fetch(overlay, 5, 1) == before[0]
    assert [fetch(overlay, *divmod(at, 8)) for at in (2, 9, 7)] == parts[1:]
    assert overlay.active.addresses[:4].tolist() == [41, 2, 7, 9]
    assert overlay.room() == 12


def test_blocks_taken_together_leave_the_epoch_before_as_it_was(overlay) -> None:
    before = scatter(overlay, [3, 4], "a")
    arena = overlay.freeze()
    scatter(overlay, [4, 5], "b")
    assert arena.used == 2
    assert arena.bytes_of(1, 1) == before[1]


def test_a_discard_before_is_no_more_where_a_block_was_taken(overlay) -> None:
    overlay.discard(0, 2, 4)
    scatter(overlay, [3, 30], "a")
    assert np.flatnonzero(overlay.take_discards()[0]).tolist() == [2, 4, 5]


def test_what_was_given_out_does_not_change_afterwards(overlay) -> None:
    put(overlay, 1, 0, content("a"))
    given = overlay.fetch(int(overlay.tables[1][0]), 1)
    put(overlay, 1, 0, content("b"))
    assert bytes(given[1]) == content("a")
    assert (given[0] == plain_contexts(content("a"), BLOCK)).all()


def test_overlapping_writes_kill_what_they_hide(overlay) -> None:
    put(overlay, 1, 0, content("a", 2))
    put(overlay, 1, 3, content("b", 2))
    put(overlay, 1, 1, content("c", 3))
    live = overlay.active.live()
    assert overlay.active.addresses[: overlay.active.used][live].tolist() == [8, 12, 9, 10, 11]
    assert fetch(overlay, 1, 1, 3) == content("c", 3)
    assert fetch(overlay, 1, 4) == content("b", 2)[BLOCK:]


def test_rows_of_ids_that_only_look_consecutive_are_not_written_in_place(overlay) -> None:
    put(overlay, 1, 0, content("a"))
    put(overlay, 1, 1, content("x"))
    put(overlay, 1, 2, content("b"))
    # Ids 0, 1, 2 now lie at 0, 2, 1 of the chunk: first and last are as far apart as if in a row.
    put(overlay, 2, 0, content("d", 3))
    overlay.tables[2][:3] = [3, 5, 4]
    put(overlay, 2, 0, content("e", 3))
    assert fetch(overlay, 2, 0, 3) == content("e", 3)


def test_an_epoch_without_some_of_its_slots_finds_the_others(overlay) -> None:
    put(overlay, 1, 0, content("a", 5))
    overlay.discard(1, 1, 2)
    arena = overlay.freeze()
    overlay.publish(logged(overlay, arena, slots=[0, 3, 4]))
    assert fetch(overlay, 1, 3, 2) == content("a", 5)[3 * BLOCK :]
    assert overlay.tables[1].tolist() == [0, DISCARDED, DISCARDED, 3, 4, HOME, HOME, HOME]


def test_discards_are_taken_with_the_epoch_and_undone_by_writes(overlay) -> None:
    overlay.discard(2, 0, 4)
    put(overlay, 2, 1, content("a"))
    taken = overlay.take_discards()
    assert np.flatnonzero(taken[2]).tolist() == [0, 2, 3]
    assert overlay.discards == {}


def test_clearing_a_chunk_leaves_nothing_to_log(overlay) -> None:
    put(overlay, 2, 0, content("a", 3))
    overlay.discard(2, 5, 1)
    overlay.clear(2)
    assert not overlay.active.live().any()
    assert overlay.tables == {}
    assert overlay.discards == {}


def test_ids_of_different_epochs_never_touch(overlay) -> None:
    put(overlay, 1, 0, content("a"))
    overlay.publish(logged(overlay, overlay.freeze()))
    put(overlay, 1, 1, content("b"))
    first, second = overlay.tables[1][:2].tolist()
    assert second - first > 1


def test_forgotten_epochs_make_way(overlay) -> None:
    put(overlay, 1, 0, content("a"))
    overlay.publish(logged(overlay, overlay.freeze()))
    put(overlay, 1, 1, content("b"))
    overlay.publish(logged(overlay, overlay.freeze()))
    overlay.drop_logged(1)
    assert fetch(overlay, 1, 1) == content("b")


def test_a_full_arena_has_no_room(overlay) -> None:
    put(overlay, 0, 0, content("a", 8))
    put(overlay, 1, 0, content("b", 8))
    assert overlay.room() == 0
    overlay.freeze()
    assert overlay.room() == 16
    assert empty_contexts(1).shape == (1, 4)
