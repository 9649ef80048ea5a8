"""Checkpoints: steps, what goes on meanwhile, space given back."""

from __future__ import annotations

import pytest

from downstaird.core.layout import Tuning
from downstaird.core.region import Region
from downstaird.core.region_checkpoint import CommitJob, MoveJob, PlanJob
from downstaird.store.memory import MemoryDisk
from stairlib.model.errors import DataError
from tests.unit.downstaird.core.region_rig import (
    BLOCK,
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


def step(region):
    work = region.begin_checkpoint()
    work.run()
    region.finish_checkpoint(work, None)
    return work


def test_it_is_wanted_when_the_log_is_full_and_until_it_is_done(region) -> None:
    number = 0
    while not region.wants_checkpoint():
        number += 1
        write(region, number % 64, content(number))
        flush(region, number)
    assert region.log.active_bytes >= TUNING.log_bytes
    while region.wants_checkpoint():
        step(region)
    assert region.log.active_bytes == 0
    assert region.overlay.tables == {}
    assert region.overlay.logged == []


def test_it_is_wanted_when_contexts_of_large_writes_pile_up(disk) -> None:
    tuning = Tuning(large_bytes=CHUNK_BYTES, fresh_context_bytes=4 * 8 * 32)
    region = new_region(disk, tuning=tuning)
    write(region, 0, content("a", 24))
    flush(region)
    assert not region.wants_checkpoint()
    write(region, 32, content("a", 8))
    flush(region, 2)
    assert region.wants_checkpoint()
    checkpoint(region)
    assert not region.wants_checkpoint()


def test_it_is_wanted_when_the_tables_of_scattered_writes_pile_up(disk) -> None:
    tuning = Tuning(large_bytes=CHUNK_BYTES, table_bytes=3 * 8 * 8)
    region = new_region(disk, tuning=tuning)
    for block in (0, 8, 16):
        write(region, block, content(block))
    # Nothing of that could go home yet.
    assert not region.wants_checkpoint()
    flush(region)
    assert region.wants_checkpoint()
    checkpoint(region)
    assert not region.wants_checkpoint()


def test_steps_grow_when_the_log_grows_faster(disk) -> None:
    tuning = Tuning(large_bytes=CHUNK_BYTES, log_bytes=4 * 4096, log_zero_bytes=4096, step_blocks=9)
    moves = []
    for behind in (False, True):
        region = new_region(MemoryDisk(), tuning=tuning)
        for block in range(64):
            write(region, block, content(block))
        flush(region, 1)
        step(region)
        if behind:
            for number in range(2, 6):
                write(region, number, content(number))
                flush(region, number)
        work = step(region)
        assert isinstance(work, MoveJob)
        moves.append(sum(len(move.indexes) for move in work.moves))
    assert moves[1] > moves[0]


def test_it_goes_in_short_steps_with_flushes_in_between(disk, region) -> None:
    for block in range(0, 64, 2):
        write(region, block, content("first", 1))
    flush(region, 1)
    kinds = []
    number = 1
    while True:
        kinds.append(type(step(region)))
        if region.seal is None:
            break
        number += 1
        write(region, number, content("between"))
        flush(region, number)
    assert kinds[0] is PlanJob
    assert kinds[-1] is CommitJob
    assert kinds.count(MoveJob) == len(kinds) - 2 > 3
    wanted = b"".join(
        content("between") if 2 <= block <= number
        else content("first") if block % 2 == 0 else bytes(BLOCK)
        for block in range(64)
    )  # fmt: skip
    assert read(region, 0, 64) == wanted
    assert read(reopened(region, disk), 0, 64) == wanted


def test_one_that_was_not_finished_goes_on_after_a_reopening(disk, region) -> None:
    for block in range(0, 64, 2):
        write(region, block, content("first"))
    flush(region, 1)
    for _ in range(3):
        step(region)
    write(region, 1, content("second"))
    flush(region, 2)
    region = reopened(region, disk)
    assert region.wants_checkpoint()
    while region.wants_checkpoint():
        step(region)
    region = reopened(region, disk)
    assert not region.wants_checkpoint()
    assert read(region, 0, 3) == content("first") + content("second") + content("first")
    assert region.overlay.logged != []


def test_a_flushed_block_under_an_unflushed_large_write_gets_home(disk, region) -> None:
    write(region, 3, content("flushed"))
    flush(region, 1)
    write(region, 0, content("unflushed", 8))
    checkpoint(region)
    assert read(region, 0, 8) == content("unflushed", 8)
    assert read(reopened(region, disk), 0, 8) == bytes(3 * BLOCK) + content("flushed") + bytes(
        4 * BLOCK
    )


def test_a_discard_in_an_unflushed_large_write_outlives_a_sealed_one(disk, region) -> None:
    write(region, 0, content("a", 8))
    flush(region, 1)
    region.discard(3, 1)
    flush(region, 2)
    step(region)
    write(region, 0, content("b", 8))
    region.discard(3, 1)
    while region.seal is not None:
        step(region)
    assert read(region, 3, 1) == bytes(BLOCK)
    flush(region, 3)
    assert read(region, 3, 1) == bytes(BLOCK)
    assert (
        read(reopened(region, disk), 2, 3)
        == content("b", 8)[2 * BLOCK : 3 * BLOCK]
        + bytes(BLOCK)
        + content("b", 8)[4 * BLOCK : 5 * BLOCK]
    )


def test_space_of_discards_is_given_back(region) -> None:
    empty = region.stored_bytes()
    write(region, 0, content("a", 64))
    flush(region, 1)
    checkpoint(region)
    full = region.chunks.data.stored_bytes()
    assert full == 64 * BLOCK
    region.discard(0, 32)
    flush(region, 2)
    assert region.chunks.data.stored_bytes() == full
    checkpoint(region)
    assert region.chunks.data.stored_bytes() == full // 2
    region.discard(33, 5)
    for block in (32, 38, 39):
        region.discard(block, 1)
    flush(region, 3)
    checkpoint(region)
    assert region.chunks.live[4] == 0
    region.discard(40, 24)
    flush(region, 4)
    checkpoint(region)
    assert region.chunks.data.stored_bytes() == 0
    assert region.chunks.space.free_count() == region.chunks.space.end - 1
    assert region.stored_bytes() <= empty + 2 * 64 * 4096


def test_overwriting_takes_no_more_space_for_ever(region) -> None:
    for number in range(1, 30):
        write(region, 0, content(number, 64))
        flush(region, number)
    assert region.chunks.space.end <= 2 * 8 + 1


def test_a_log_that_grew_far_is_emptied_before_the_next_flush(disk) -> None:
    tuning = Tuning(
        large_bytes=CHUNK_BYTES, log_bytes=4096, log_bytes_max=5 * 4096, log_zero_bytes=4096
    )
    region = new_region(disk, tuning=tuning)
    for number in range(1, 40):
        write(region, number, content(number))
        flush(region, number)
        assert region.log.active_bytes <= 6 * 4096
    assert read(region, 1, 39) == b"".join(content(number) for number in range(1, 40))


@pytest.mark.parametrize("name", ["data", "contexts-0", "state-1"])
def test_a_checkpoint_that_cannot_be_synced_ends_writing_and_loses_nothing(
    disk, region, name
) -> None:
    for block in range(0, 64, 3):
        write(region, block, content(block))
    flush(region)
    wanted = read(region, 0, 64)
    disk.fail_sync = lambda each: each == name
    with pytest.raises(DataError):
        checkpoint_with_failure(region)
    disk.fail_sync = lambda _: False
    with pytest.raises(DataError):
        write(region, 0, content("b"))
    assert read(region, 0, 64) == wanted
    image = disk.image(lambda _name, _sector: False)
    assert read(Region.open(image, tuning=TUNING), 0, 64) == wanted
    region = reopened(region, disk)
    assert read(region, 0, 64) == wanted
    checkpoint(region)
    image = disk.image(lambda _name, _sector: False)
    assert read(Region.open(image, tuning=TUNING), 0, 64) == wanted


def checkpoint_with_failure(region):
    while True:
        work = region.begin_checkpoint()
        try:
            work.run()
        except DataError as error:
            region.finish_checkpoint(work, error)
            raise
        region.finish_checkpoint(work, None)


def test_a_discard_that_is_newer_than_a_checkpoint_is_not_taken_for_an_older_one(region) -> None:
    """The block is discarded, flushed and sealed; then written, flushed, and discarded again: the
    first discard going home must leave the second one's mark."""
    write(region, 0, content("a"))
    flush(region, 1)
    region.discard(0, 1)
    flush(region, 2)
    step(region)
    write(region, 0, content("b"))
    flush(region, 3)
    region.discard(0, 1)
    while region.seal is not None:
        step(region)
    checkpoint(region)
    assert read(region, 0, 1) == bytes(BLOCK)
    flush(region, 4)
    assert read(region, 0, 1) == bytes(BLOCK)
