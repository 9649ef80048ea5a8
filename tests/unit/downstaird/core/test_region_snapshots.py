"""Snapshots of a region: what they keep, cost and free, and what is refused."""

from __future__ import annotations

import pytest

from downstaird.core import region_snapshots
from downstaird.core.region import Region
from downstaird.core.region_files import read_definition
from downstaird.core.snapshot_entry import SNAPSHOTS_MAX
from downstaird.core.snapshot_reader import open_snapshot
from downstaird.core.state_file import PAGE_BYTES
from downstaird.store.memory import MemoryDisk
from stairlib.model.errors import (
    AlreadyExistsError,
    DataError,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    StateError,
)
from stairlib.wire.frame import extent_marks
from tests.unit.downstaird.core.region_rig import (
    BLOCK,
    CHUNK_BLOCKS,
    CHUNK_BYTES,
    TUNING,
    checkpoint,
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
    return new_region(disk)


def take(region, name, number):
    work = region.begin_flush(number, 1, name)
    work.run()
    region.finish_flush(work, None)


def delete(region, name):
    work = region.begin_delete_snapshot(name)
    work.run()
    region.finish_flush(work, None)


def settled(region):
    region_snapshots.settle(region)
    return region


def of(region, name):
    return next(facts for facts in region.list_snapshots() if facts.name == name)


def test_it_keeps_small_and_large_writes_and_the_stamps_of_its_flush(disk, region) -> None:
    write(region, 1, content("small"))
    write(region, CHUNK_BLOCKS, content("large", CHUNK_BLOCKS))
    take(region, "a", 1)
    write(region, 1, content("later"))
    region.discard(CHUNK_BLOCKS, CHUNK_BLOCKS)
    flush(region, 2)
    settled(region)
    checkpoint(region)
    snapshot = open_snapshot(disk, "a", tuning=TUNING)
    assert read(snapshot, 1, 1) == content("small")
    assert read(snapshot, CHUNK_BLOCKS, CHUNK_BLOCKS) == content("large", CHUNK_BLOCKS)
    assert snapshot.extent_states().flushes.tolist() == [1, 0, 0, 0]
    assert read(region, 1, 1) == content("later")
    with pytest.raises(StateError, match="read-only"):
        write(snapshot, 0, content("x"))


def test_an_unwritten_block_is_unwritten_in_it_whatever_is_written_later(disk, region) -> None:
    write(region, 0, content("a"))
    take(region, "a", 1)
    data = content("b", 2)
    region.write_unwritten(0, *_plain(data))
    flush(region, 2)
    settled(region)
    checkpoint(region)
    assert read(open_snapshot(disk, "a", tuning=TUNING), 0, 2) == content("a") + bytes(BLOCK)
    assert read(region, 0, 2) == content("a") + data[BLOCK:]


def _plain(data):
    from stairlib.model.context import plain_contexts

    return plain_contexts(data, BLOCK), data


def test_it_copies_no_data_and_only_what_is_written_over_costs_space(disk, region) -> None:
    write(region, 0, content("a", 4 * CHUNK_BLOCKS))
    flush(region, 1)
    checkpoint(region)
    stored = disk.open("data").stored_bytes()
    take(region, "a", 2)
    settled(region)
    assert disk.open("data").stored_bytes() == stored
    assert (of(region, "a").unique_bytes, of(region, "a").total_bytes) == (0, 4 * CHUNK_BYTES)
    write(region, 0, content("b"))
    flush(region, 3)
    checkpoint(region)
    assert disk.open("data").stored_bytes() == stored + CHUNK_BYTES
    assert of(region, "a").unique_bytes == CHUNK_BYTES


def test_a_discard_frees_nothing_that_a_snapshot_has_and_a_deletion_does(disk, region) -> None:
    write(region, 0, content("a", 4 * CHUNK_BLOCKS))
    take(region, "a", 1)
    settled(region)
    stored = disk.open("data").stored_bytes()
    region.discard(0, 4 * CHUNK_BLOCKS)
    flush(region, 2)
    checkpoint(region)
    assert disk.open("data").stored_bytes() == stored
    delete(region, "a")
    checkpoint(region)
    assert disk.open("data").stored_bytes() == 0
    assert list(region.list_snapshots()) == []
    assert region.chunks.space.free_count() == 4


def test_space_of_a_deleted_one_is_given_back_also_after_a_restart(disk, region) -> None:
    write(region, 0, content("a", 4 * CHUNK_BLOCKS))
    take(region, "a", 1)
    settled(region)
    region.discard(0, 4 * CHUNK_BLOCKS)
    flush(region, 2)
    checkpoint(region)
    delete(region, "a")
    region = reopened(region, disk)
    # The state lists it still, and somebody may be reading it.
    assert region.chunks.take(1) == [5]
    checkpoint(region)
    assert disk.open("data").stored_bytes() == 0


def test_the_same_flush_takes_it_once_and_another_one_is_refused(disk, region) -> None:
    write(region, 0, content("a"))
    take(region, "a", 1)
    sequence = region.log.next_sequence
    take(region, "a", 1)
    assert region.log.next_sequence == sequence
    for number, generation in ((2, 1), (1, 2)):
        with pytest.raises(AlreadyExistsError) as exists:
            region.begin_flush(number, generation, "a")
        assert exists.value.reason == "SNAPSHOT_EXISTS"
    # Nothing had begun.
    flush(region, 2)
    region = reopened(region, disk)
    take(region, "a", 1)
    assert [facts.flush for facts in region.list_snapshots()] == [1]


@pytest.mark.parametrize("name", [".a", "a/b", "-", "a" * 65, "ä", "a\0", "a b"])
def test_names_are_checked(region, name) -> None:
    with pytest.raises(InvalidRequestError) as wrong:
        region.begin_flush(1, 1, name)
    assert wrong.value.reason == "SNAPSHOT_NAME"
    flush(region, 1)


def test_there_is_a_limit(disk, region) -> None:
    for number in range(SNAPSHOTS_MAX):
        take(region, f"s{number}", number + 1)
    with pytest.raises(LimitError) as many:
        region.begin_flush(100, 1, "more")
    assert many.value.reason == "SNAPSHOT_LIMIT"
    settled(region)
    delete(region, "s0")
    take(region, "more", 100)
    region = reopened(region, disk)
    assert len(list(region.list_snapshots())) == SNAPSHOTS_MAX


def test_none_is_taken_while_extents_are_incomplete(region) -> None:
    work = region.repair_begin(extent_marks([1], 1, 1, told=True))
    work.run()
    region.finish_flush(work, None)
    with pytest.raises(StateError) as refused:
        region.begin_flush(1, 1, "a")
    assert refused.value.reason == "SNAPSHOT_INCOMPLETE"


def test_one_that_is_not_settled_or_is_read_is_not_deleted(disk, region) -> None:
    with pytest.raises(NotFoundError) as missing:
        region.begin_delete_snapshot("a")
    assert missing.value.reason == "SNAPSHOT_NOT_FOUND"
    take(region, "a", 1)
    assert region.wants_checkpoint()
    with pytest.raises(StateError) as early:
        region.begin_delete_snapshot("a")
    assert early.value.reason == "SNAPSHOT_SETTLING"
    with pytest.raises(NotFoundError):
        open_snapshot(disk, "a", tuning=TUNING)
    settled(region)
    reader = open_snapshot(disk, "a", tuning=TUNING)
    with pytest.raises(StateError) as busy:
        region.begin_delete_snapshot("a")
    assert busy.value.reason == "SNAPSHOT_BUSY"
    reader.let_go()
    delete(region, "a")


def test_a_region_is_of_the_newer_version_from_its_first_snapshot_on(disk, region) -> None:
    flush(region, 1)
    assert read_definition(disk)[0].format_version == 1
    take(region, "a", 2)
    assert read_definition(disk)[0].format_version == 5
    settled(region)
    delete(region, "a")
    checkpoint(region)
    assert reopened(region, disk).definition.format_version == 5


def test_it_has_an_id_of_its_own_that_is_always_the_same(disk, region) -> None:
    take(region, "a", 1)
    settled(region)
    ids = {open_snapshot(disk, "a", tuning=TUNING).definition.id for _ in range(2)}
    assert len(ids) == 1
    assert ids != {region.definition.id}


def test_a_damaged_map_costs_the_snapshot_alone(disk, region) -> None:
    write(region, 0, content("a", CHUNK_BLOCKS))
    take(region, "a", 1)
    take(region, "b", 2)
    settled(region)
    # The header of the first, then the map of the second.
    disk.rot("snapshots", 8)
    size = disk.open("snapshots").size() // 2
    disk.rot("snapshots", size + PAGE_BYTES)
    region = reopened(region, disk)
    assert read(region, 0, CHUNK_BLOCKS) == content("a", CHUNK_BLOCKS)
    assert [facts.damaged for facts in region.list_snapshots()] == [True, True]
    with pytest.raises(DataError) as gone:
        open_snapshot(disk, "a", tuning=TUNING)
    assert gone.value.reason == "SNAPSHOT_DAMAGED"

    def read_through(name):
        snapshot = open_snapshot(disk, name, tuning=TUNING)
        snapshot.let_go()
        return snapshot

    with pytest.raises(DataError) as page:
        read_through("b").read(0, 1)
    assert page.value.reason == "EXTENT_FAULTED"
    delete(region, "a")
    delete(region, "b")
    checkpoint(region)
    assert list(reopened(region, disk).list_snapshots()) == []


def test_a_damaged_list_falls_back_to_the_state_before(disk, region) -> None:
    write(region, 0, content("a", CHUNK_BLOCKS))
    take(region, "a", 1)
    settled(region)
    state = region.state_at
    size = disk.open(f"state-{state}").size()
    disk.rot(f"state-{state}", size - PAGE_BYTES)
    region = Region.open(disk, tuning=TUNING) if region.close() is None else region
    assert [facts.name for facts in region.list_snapshots()] == ["a"]
    settled(region)
    assert read(open_snapshot(disk, "a", tuning=TUNING), 0, 1) == content("a", CHUNK_BLOCKS)[:BLOCK]


def test_a_place_that_a_record_had_for_a_while_is_not_its_own_after_a_restart(disk, region) -> None:
    write(region, 0, content("a"))
    take(region, "first", 1)
    work = region.begin_checkpoint()
    work.run()
    region.finish_checkpoint(work, None)
    write(region, 1, content("b"))
    take(region, "second", 2)
    for number in (3, 4):
        write(region, 0, content(number, CHUNK_BLOCKS))
        flush(region, number)
    # The checkpoint takes what the third flush had, for both snapshots.
    assert region.chunks.space.free_count() == 1
    while region.seal is not None:
        work = region.begin_checkpoint()
        work.run()
        region.finish_checkpoint(work, None)
    assert region.chunks.space.free_count() == 0
    region = settled(reopened(region, disk))
    assert read(open_snapshot(disk, "first", tuning=TUNING), 0, 2) == content("a") + bytes(BLOCK)
    assert read(open_snapshot(disk, "second", tuning=TUNING), 0, 2) == content("a") + content("b")
    assert read(region, 0, CHUNK_BLOCKS) == content(4, CHUNK_BLOCKS)
