"""The sink's side of a repair."""

from __future__ import annotations

import pytest
import xxhash

from downstaird.core.region import Region
from downstaird.core.region_repair import RepairTracker
from downstaird.store.memory import MemoryDisk
from stairlib.model.context import empty_contexts, plain_contexts
from stairlib.model.errors import InvalidRequestError, StateError
from stairlib.wire.frame import FLAG_INCOMPLETE, extent_marks
from tests.unit.downstaird.core.region_rig import (
    BLOCK,
    CHUNK_BLOCKS,
    TUNING,
    content,
    flush,
    new_region,
    read,
    reopened,
    write,
)


@pytest.fixture
def disk():
    return MemoryDisk()


@pytest.fixture
def region(disk):
    region = new_region(disk)
    write(region, 0, content("old", 64))
    flush(region, 4, 2)
    return region


def begin(region, *extents):
    work = region.repair_begin(extent_marks(extents))
    work.run()
    region.finish_flush(work, None)


def merge(region, offset, data):
    return region.repair_merge(offset, plain_contexts(data, BLOCK), data)


def stamps(region):
    states = region.extent_states()
    return list(zip(states.generations.tolist(), states.flushes.tolist(), strict=True))


def test_marks_are_durable_before_anything_is_copied(disk, region) -> None:
    write(region, 0, content("unflushed"))
    begin(region, 1, 3)
    image = disk.image(lambda _name, _sector: False)
    found = Region.open(image, tuning=TUNING)
    assert found.extent_states().flags.tolist() == [0, FLAG_INCOMPLETE, 0, FLAG_INCOMPLETE]
    assert stamps(found) == [(2, 4), (0, 0), (2, 4), (0, 0)]
    # The marks alone: an unflushed write is not carried along.
    assert read(found, 0, 1) == content("old", 64)[:BLOCK]


def test_what_the_session_wrote_is_newer_than_any_copy(region) -> None:
    begin(region, 1)
    write(region, 17, content("new", 2))
    region.discard(20, 1)
    assert merge(region, 16, content("copy", 16)) == 13 * BLOCK
    copy = content("copy", 16)
    wanted = copy[:BLOCK] + content("new", 2) + copy[3 * BLOCK : 4 * BLOCK] + bytes(BLOCK)
    assert read(region, 16, 16) == wanted + copy[5 * BLOCK :]


def test_so_is_what_it_wrote_in_one_go(region) -> None:
    begin(region, 1)
    data = content("session", 3)
    contexts = plain_contexts(data, BLOCK)
    assert region.write_scattered([17, 2, 30], contexts, data)
    assert merge(region, 16, content("copy", 16)) == 14 * BLOCK
    held = read(region, 16, 16)
    assert held[BLOCK : 2 * BLOCK] == data[:BLOCK]
    assert held[14 * BLOCK : 15 * BLOCK] == data[2 * BLOCK :]


def test_what_the_session_wrote_before_the_repair_is_not(region) -> None:
    write(region, 17, content("stale"))
    begin(region, 1)
    assert merge(region, 17, content("copy")) == BLOCK
    assert read(region, 17, 1) == content("copy")


def test_blocks_the_source_never_wrote_become_unwritten(disk, region) -> None:
    begin(region, 1)
    data = content("copy", 3)
    contexts = plain_contexts(data, BLOCK)
    contexts[1] = 0
    assert region.repair_merge(18, contexts, data) == 3 * BLOCK
    assert region.repair_merge(24, empty_contexts(8), bytes(8 * BLOCK)) == 8 * BLOCK
    wanted = data[:BLOCK] + bytes(BLOCK) + data[2 * BLOCK :]
    assert read(region, 18, 3) == wanted
    assert not region.contexts(24, 8).any()
    flush(region, 5, 2)
    assert read(reopened(region, disk), 18, 3) == wanted


def test_a_copied_chunk_keeps_what_the_session_wrote_over_a_crash(disk, region) -> None:
    begin(region, 1)
    write(region, 17, content("flushed"))
    flush(region, 5, 2)
    write(region, 18, content("new"))
    region.discard(19, 1)
    assert merge(region, 16, content("copy", 16)) == 13 * BLOCK
    write(region, 20, content("later"))
    copy = content("copy", 16)
    wanted = (
        copy[:BLOCK]
        + content("flushed")
        + content("new")
        + bytes(BLOCK)
        + content("later")
        + copy[5 * BLOCK :]
    )
    assert read(region, 16, 16) == wanted
    assert not region.contexts(19, 1).any()
    flush(region, 6, 2)
    found = reopened(region, disk)
    assert read(found, 16, 16) == wanted
    assert not found.contexts(19, 1).any()


def test_extents_without_blocks_have_one_digest(region) -> None:
    region.discard(32, 32)
    empty = region.digest(2)
    assert empty == xxhash.xxh3_64_intdigest(bytes(16 * 32)) == region.digest(3)
    write(region, 33, content("new"))
    assert region.digest(2) != empty
    region.discard(32, 16)
    assert region.digest(2) == empty


def test_a_copy_does_not_make_an_extent_dirty(region) -> None:
    begin(region, 1)
    merge(region, 16, content("copy", 16))
    flush(region, 5, 2)
    assert stamps(region)[1] == (0, 0)
    region.repair_extent_copied(1, 2, 4)
    flush(region, 6, 2)
    assert stamps(region)[1] == (2, 4)


def test_a_whole_repair(disk, region) -> None:
    begin(region, 0, 1)
    write(region, 3, content("new"))
    flush(region, 5, 3)
    with pytest.raises(StateError, match="2 extents"):
        region.repair_end()
    merge(region, 0, content("copy", 16))
    region.repair_extent_copied(0, 2, 4)
    merge(region, 16, content("copy", 16))
    region.repair_extent_copied(1, 3, 5)
    with pytest.raises(StateError):
        region.repair_end()
    flush(region, 6, 3)
    region.repair_end()
    region = reopened(region, disk)
    assert stamps(region) == [(3, 5), (3, 5), (2, 4), (2, 4)]
    assert not region.extent_states().flags.any()
    copy = content("copy", 16)
    assert read(region, 0, 16) == copy[: 3 * BLOCK] + content("new") + copy[4 * BLOCK :]


def test_a_repair_begun_again_forgets_the_first(region) -> None:
    begin(region, 1, 2)
    write(region, 16, content("first session"))
    begin(region, 1)
    merge(region, 16, content("copy"))
    assert read(region, 16, 1) == content("copy")
    with pytest.raises(StateError) as refused:
        merge(region, 32, content("copy"))
    assert refused.value.reason == "NOT_UNDER_REPAIR"
    with pytest.raises(StateError):
        region.repair_extent_copied(2, 1, 1)


def test_taking_unwritten_blocks_does_not_outrank_a_copy(region) -> None:
    begin(region, 1)
    region.discard(16, 16)
    begin(region, 1)
    data = content("filled", 2)
    region.write_unwritten(16, plain_contexts(data, BLOCK), data)
    assert read(region, 16, 2) == data
    merge(region, 16, content("copy"))
    assert read(region, 16, 2) == content("copy") + data[BLOCK:]


def test_extents_outside_are_refused(region) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        region.repair_begin(extent_marks([4]))
    assert refused.value.reason == "OUT_OF_RANGE"


def test_the_tracker_takes_memory_only_where_something_is_written() -> None:
    tracker = RepairTracker(16)
    assert not tracker
    tracker.begin([3])
    tracker.note(2, 0, 16)
    assert tracker.tracks(3)
    assert not tracker.tracks(2)
    assert tracker.untouched(3, 0, 4).all()
    tracker.note(3, 1, 2)
    assert tracker.untouched(3, 0, 4).tolist() == [True, False, False, True]
    tracker.end()
    assert not tracker


def test_whole_chunks_of_one_merge_are_written_at_once(disk, region) -> None:
    begin(region, 0, 1)
    writes = []
    disk.observer = lambda action, name: writes.append((action, name))
    data = content("theirs", 4 * CHUNK_BLOCKS)
    # Two chunks of the first extent; of the second one, and the last, which lacks a block.
    assert merge(region, 0, data[:-BLOCK]) == len(data) - BLOCK
    assert writes == [("write", "data")] * 3
    _, buffers = region.read(0, 4 * CHUNK_BLOCKS - 1)
    assert b"".join(buffers) == data[:-BLOCK]
