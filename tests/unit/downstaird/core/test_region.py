"""An open region: blocks, refusals, failures, its small costs."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
import xxhash

from downstaird.core.engine import Ownership
from downstaird.core.layout import DEFAULT_TUNING
from downstaird.core.region import Region
from downstaird.store.memory import MemoryDisk
from stairlib.model.cipher import AES_256_GCM
from stairlib.model.context import empty_contexts, plain_contexts, written
from stairlib.model.errors import (
    AlreadyExistsError,
    DataError,
    InvalidRequestError,
    StateError,
)
from stairlib.model.geometry import Geometry
from stairlib.wire.frame import FLAG_FAULTED, extent_marks
from tests.unit.downstaird.core.region_rig import (
    BLOCK,
    CHUNK_BYTES,
    TUNING,
    checkpoint,
    content,
    definition_of,
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


# --- creating and opening


def test_a_new_region_is_empty_and_says_what_it_is(disk) -> None:
    definition = definition_of(cipher=AES_256_GCM, format_version=3)
    region = Region.create(disk, definition)
    assert region.definition == definition
    assert region.ownership == Ownership(None, None, 0)
    assert read(region, 0, 64) == bytes(64 * BLOCK)
    assert not region.contexts(0, 64).any()
    assert not region.extent_states().flags.any()


def test_creating_twice_and_opening_nothing_are_refused(disk) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        Region.open(disk)
    assert refused.value.reason == "NOT_A_REGION"
    new_region(disk).close()
    with pytest.raises(AlreadyExistsError):
        new_region(disk)


def test_an_illegal_geometry_is_refused_by_name(disk) -> None:
    with pytest.raises(InvalidRequestError, match="block_size"):
        new_region(disk, Geometry(1000, 16, 4))


def test_a_region_in_use_cannot_be_opened(disk, region) -> None:
    with pytest.raises(StateError) as refused:
        Region.open(disk)
    assert refused.value.reason == "REGION_LOCKED"
    region.close()
    Region.open(disk).close()


def test_a_large_region_takes_no_memory_and_no_space(disk) -> None:
    region = Region.create(disk, definition_of(Geometry(4096, 16384, 1600)))  # 100 GiB
    # The map: 4 bytes for each 256 KiB.
    assert region.stored_bytes() < 2 << 20
    last = region.definition.geometry.block_count - 1
    write_context = plain_contexts(bytes(4096), 4096)
    region.write(last, write_context, bytes(4096))
    flush(region)
    region = reopened(region, disk, DEFAULT_TUNING)
    assert (region.contexts(last, 1) == write_context).all()


# --- blocks


@pytest.mark.parametrize("count", [1, 5, 8, 9, 24, 64])
@pytest.mark.parametrize("offset", [0, 3])
def test_blocks_can_be_read_at_every_stage(disk, region, offset, count) -> None:
    count = min(count, 64 - offset)
    data = content("a", count)
    write(region, offset, data)
    assert read(region, offset, count) == data
    flush(region)
    assert read(region, offset, count) == data
    checkpoint(region)
    assert read(region, offset, count) == data
    assert read(reopened(region, disk), offset, count) == data


def test_mixed_places_are_read_together(region) -> None:
    write(region, 0, content("home", 24))
    flush(region, 1)
    checkpoint(region)
    write(region, 2, content("logged", 3))
    region.discard(12, 2)
    flush(region, 2)
    write(region, 4, content("new", 2))
    write(region, 16, content("large", 8))
    home, logged, new = content("home", 24), content("logged", 3), content("new", 2)
    wanted = home[: 2 * BLOCK] + logged[: 2 * BLOCK] + new + home[6 * BLOCK : 12 * BLOCK]
    wanted += bytes(2 * BLOCK) + home[14 * BLOCK : 16 * BLOCK] + content("large", 8)
    assert read(region, 0, 24) == wanted


def test_never_written_blocks_of_a_used_place_read_as_zeros(region) -> None:
    write(region, 0, content("old", 8))
    flush(region, 1)
    write(region, 0, content("new", 8))
    flush(region, 2)
    # The place of "old" is free now, and is taken for one block of another chunk.
    write(region, 35, content("small"))
    flush(region, 3)
    checkpoint(region)
    assert region.chunks.live[4] == 1
    assert read(region, 32, 8) == bytes(3 * BLOCK) + content("small") + bytes(4 * BLOCK)


def test_what_was_read_does_not_change_when_blocks_are_written(region) -> None:
    write(region, 0, content("a", 2))
    contexts, buffers = region.read(0, 2)
    before = contexts.copy(), [bytes(part) for part in buffers]
    write(region, 0, content("b", 2))
    assert (contexts == before[0]).all()
    assert [bytes(part) for part in buffers] == before[1]


def test_the_caller_may_reuse_its_buffers(region) -> None:
    for count in (2, 8):
        data = bytearray(content("a", count))
        contexts = plain_contexts(data, BLOCK)
        region.write(0, contexts, memoryview(data))
        data[:] = bytes(len(data))
        contexts[:] = 0
        assert read(region, 0, count) == content("a", count)


def test_blocks_far_apart_can_be_read_at_every_stage(disk, region) -> None:
    offsets = [5, 1, 60, 33, 5]
    data = content("far", len(offsets))
    contexts = plain_contexts(data, BLOCK)
    assert region.write_scattered(offsets, contexts, bytearray(data))
    parts = {at: data[index * BLOCK : (index + 1) * BLOCK] for index, at in enumerate(offsets)}

    def held(region):
        return {at: b"".join(map(bytes, region.read(at, 1)[1])) for at in offsets}

    assert held(region) == parts
    flush(region)
    assert held(region) == parts
    region.checkpoint_now()
    assert held(region) == parts
    states = region.extent_states()
    per_extent = region.definition.geometry.blocks_per_extent
    dirty = {at // per_extent for at in offsets}
    assert set(np.flatnonzero(states.flushes).tolist()) == dirty


def test_blocks_far_apart_are_not_taken_where_one_cannot_be(disk, region) -> None:
    """The caller writes them one by one then, and is told which."""
    data = content("far", 2)
    contexts = plain_contexts(data, BLOCK)
    blocks = region.definition.geometry.block_count
    for offsets, part, rows in (
        ([0, blocks], data, contexts),
        ([-1, 0], data, contexts),
        ([0, 1], data[:BLOCK], contexts),
        ([0, 1], data, contexts[:1]),
        ([0], data, contexts),
    ):
        assert not region.write_scattered(offsets, rows, part)
    region.fault_chunk(2, DataError("made up", reason="IO_ERROR"))
    assert not region.write_scattered([0, 1], contexts, data)
    assert not written(region.contexts(0, 2)).any()


def test_only_unwritten_blocks_are_taken_where_asked(region) -> None:
    write(region, 2, content("a", 2))
    region.discard(3, 1)
    flush(region)
    data = content("b", 6)
    region.write_unwritten(0, plain_contexts(data, BLOCK), data)
    expected = data[: 2 * BLOCK] + content("a", 2)[:BLOCK] + data[3 * BLOCK :]
    assert read(region, 0, 6) == expected
    flush(region, 2)
    region.write_unwritten(0, plain_contexts(data, BLOCK), data)
    assert not region.extent_states().flags.any()


def test_discarded_blocks_are_never_written_again_at_every_stage(disk, region) -> None:
    write(region, 0, content("a", 24))
    flush(region, 1)
    checkpoint(region)
    region.discard(4, 14)

    def check(region):
        assert read(region, 4, 14) == bytes(14 * BLOCK)
        assert not region.contexts(4, 14).any()
        assert read(region, 18, 6) == content("a", 24)[18 * BLOCK :]

    check(region)
    flush(region, 2)
    check(region)
    checkpoint(region)
    check(region)
    check(reopened(region, disk))


def test_a_small_write_into_an_unflushed_large_one_counts(disk, region) -> None:
    write(region, 0, content("large", 8))
    write(region, 3, content("small"))
    region.discard(5, 1)
    flush(region)
    large = content("large", 8)
    wanted = large[: 3 * BLOCK] + content("small") + large[4 * BLOCK : 5 * BLOCK]
    wanted += bytes(BLOCK) + large[6 * BLOCK :]
    assert read(region, 0, 8) == wanted
    assert read(reopened(region, disk), 0, 8) == wanted


def test_a_large_write_over_unflushed_small_ones_counts(disk, region) -> None:
    write(region, 3, content("small"))
    region.discard(5, 1)
    write(region, 0, content("large", 8))
    write(region, 0, content("larger", 8))
    flush(region)
    assert read(region, 0, 8) == content("larger", 8)
    assert read(reopened(region, disk), 0, 8) == content("larger", 8)


def test_more_than_the_arena_holds_is_taken_without_a_flush(disk, region) -> None:
    model = {}
    for mark in range(150):
        block = mark * 7 % 64
        write(region, block, content(mark))
        model[block] = content(mark)
        if mark % 10 == 9:
            region.discard(block, 1)
            model[block] = bytes(BLOCK)
    wanted = b"".join(model[block] for block in range(64))
    assert region.overlay.room() == 0
    assert read(region, 0, 64) == wanted
    flush(region)
    assert read(region, 0, 64) == wanted
    assert read(reopened(region, disk), 0, 64) == wanted


def test_the_digest_is_of_the_contexts_however_they_are_kept(region) -> None:
    other = new_region(MemoryDisk())
    data = content("a", 16)
    write(region, 16, data)
    for index in (5, 0, 15, 3, 4, *range(6, 15), 1, 2):
        write(other, 16 + index, data[index * BLOCK : (index + 1) * BLOCK])
        flush(other, index + 1)
    checkpoint(other)
    wanted = xxhash.xxh3_64_intdigest(plain_contexts(data, BLOCK).tobytes())
    assert region.digest(1) == other.digest(1) == wanted
    assert region.digest(0) == xxhash.xxh3_64_intdigest(empty_contexts(16).tobytes())


# --- refusals


@pytest.mark.parametrize(("offset", "count"), [(60, 5), (64, 1), (-1, 1)])
def test_blocks_outside_are_refused(region, offset, count) -> None:
    data = content("a", count)
    calls = (
        lambda: region.read(offset, count),
        lambda: region.contexts(offset, count),
        lambda: write(region, offset, data),
        lambda: region.write_unwritten(offset, plain_contexts(data, BLOCK), data),
        lambda: region.discard(offset, count),
    )
    for call in calls:
        with pytest.raises(InvalidRequestError) as refused:
            call()
        assert refused.value.reason == "OUT_OF_RANGE"


def test_data_and_contexts_must_be_of_one_length(region) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        region.write(0, empty_contexts(2), bytes(BLOCK))
    assert refused.value.reason == "BAD_LENGTH"


def test_a_read_only_region_can_be_read_and_nothing_else(disk, region) -> None:
    write(region, 0, content("a"))
    flush(region)
    region.close()
    region = Region.open(disk, read_only=True, tuning=TUNING)
    before = disk.written
    assert read(region, 0, 1) == content("a")
    calls = (
        lambda: write(region, 0, content("b")),
        lambda: region.discard(0, 1),
        lambda: region.begin_flush(2, 1),
        lambda: region.begin_checkpoint(),
        lambda: region.repair_begin(extent_marks([0])),
        lambda: region.promote(Ownership(None, None, 1)),
    )
    for call in calls:
        with pytest.raises(StateError) as refused:
            call()
        assert refused.value.reason == "READ_ONLY"
    assert not region.wants_checkpoint()
    assert disk.written == before


def test_only_one_work_at_a_time(region) -> None:
    work = region.begin_flush(1, 1)
    for begin in (lambda: region.begin_flush(2, 1), region.begin_checkpoint):
        with pytest.raises(StateError):
            begin()
    work.run()
    region.finish_flush(work, None)
    flush(region, 2)


def test_a_promotion_is_durable_when_it_returns(disk, region) -> None:
    ownership = Ownership(uuid.uuid4(), uuid.uuid4(), 12)
    region.promote(ownership)
    image = disk.image(lambda _name, _sector: False)
    assert Region.open(image).ownership == ownership


# --- failures


@pytest.mark.parametrize("name", ["log-0", "data"])
def test_a_failed_sync_ends_writing_until_reopened(disk, region, name) -> None:
    write(region, 0, content("flushed", 8))
    flush(region, 1)
    write(region, 0, content("lost", 8))
    write(region, 20, content("lost"))
    disk.fail_sync = lambda each: each == name
    work = region.begin_flush(2, 1)
    with pytest.raises(DataError) as failed:
        work.run()
    region.finish_flush(work, failed.value)
    disk.fail_sync = lambda _: False
    assert read(region, 20, 1) == content("lost")
    assert region.extent_states().flags.tolist() == [FLAG_FAULTED, FLAG_FAULTED, 0, 0]
    assert region.extent_states().flushes.tolist() == [1, 0, 0, 0]
    for call in (lambda: write(region, 40, content("b")), lambda: region.begin_flush(3, 1)):
        with pytest.raises(DataError, match="restarted") as refused:
            call()
        assert refused.value.reason == "IO_ERROR"
    assert not region.wants_checkpoint()
    # The page cache still shows the record; it must not count.
    region = reopened(region, disk)
    assert read(region, 0, 8) == content("flushed", 8)
    assert not region.extent_states().flags.any()
    write(region, 1, content("next"))
    flush(region, 3)
    image = disk.image(lambda _name, _sector: False)
    assert read(Region.open(image, tuning=TUNING), 1, 1) == content("next")


def test_an_error_of_another_kind_ends_writing_too(region) -> None:
    write(region, 0, content("a"))
    work = region.begin_flush(1, 1)
    region.finish_flush(work, RuntimeError("a bug"))
    with pytest.raises(DataError, match="a bug"):
        write(region, 0, content("b"))


def test_no_space_for_a_large_write_fails_that_write_alone(disk, region) -> None:
    write(region, 0, content("a", 8))
    flush(region, 1)
    disk.capacity = disk.written
    with pytest.raises(DataError) as failed:
        write(region, 0, content("b", 8))
    assert failed.value.reason == "NO_SPACE"
    assert read(region, 0, 8) == content("a", 8)
    disk.capacity = None
    write(region, 0, content("c", 8))
    flush(region, 2)
    assert read(reopened(region, disk), 0, 8) == content("c", 8)


def test_no_space_for_a_flush_leaves_the_region_readable(disk, region) -> None:
    write(region, 0, content("a"))
    flush(region, 1)
    write(region, 1, content("b"))
    disk.capacity = disk.written
    work = region.begin_flush(2, 1)
    with pytest.raises(DataError) as failed:
        work.run()
    assert failed.value.reason == "NO_SPACE"
    region.finish_flush(work, failed.value)
    assert read(region, 0, 2) == content("a") + content("b")
    with pytest.raises(DataError) as refused:
        write(region, 2, content("c"))
    assert refused.value.reason == "NO_SPACE"
    disk.capacity = None
    assert read(reopened(region, disk), 0, 2) == content("a") + bytes(BLOCK)


# --- costs


def test_a_flush_costs_one_sync_or_two_with_large_writes(disk, region) -> None:
    disk.syncs.clear()
    for block in range(0, 64, 5):
        write(region, block, content(block))
    flush(region, 1)
    assert disk.syncs == ["log-0"]
    disk.syncs.clear()
    write(region, 0, content("large", 16))
    write(region, 33, content("small"))
    flush(region, 2)
    assert disk.syncs == ["data", "log-0"]
    disk.syncs.clear()
    flush(region, 3)
    assert disk.syncs == []


def test_a_large_write_is_written_once(disk, region) -> None:
    for number in range(1, 4):
        before = disk.written
        write(region, 0, content(number, 64))
        flush(region, number)
        cost = disk.written - before - 64 * BLOCK
        # The record with the contexts, and the zeros ahead of the log.
        assert cost <= CHUNK_BYTES * 4
