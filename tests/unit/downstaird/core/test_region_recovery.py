"""Opening damaged regions: what is lost, and how it is said."""

from __future__ import annotations

import uuid

import pytest

from downstaird.core.engine import FLAG_FAULTED, FLAG_INCOMPLETE, Ownership
from downstaird.core.region import Region
from downstaird.store.memory import MemoryDisk
from stairlib.model.context import plain_contexts
from stairlib.model.errors import DataError
from stairlib.wire.frame import extent_marks
from tests.unit.downstaird.core.region_rig import (
    BLOCK,
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
    """Everything written and home."""
    region = new_region(disk)
    write(region, 0, content("a", 64))
    flush(region, 1)
    checkpoint(region)
    return region


def damage(disk, name, offset, data=b"\xde\xad"):
    disk.open(name).pwritev([data], offset)


def test_a_damaged_context_block_faults_its_extent_alone(disk, region) -> None:
    stride = region.chunks.context_files.stride
    side = region.chunks.sides[3]
    region.close()
    damage(disk, f"contexts-{side}", 3 * stride + 40)
    region = Region.open(disk, tuning=TUNING)
    # Physical chunk 3 is logical chunk 2: extent 1.
    with pytest.raises(DataError) as damaged:
        read(region, 16, 1)
    assert damaged.value.reason == "EXTENT_FAULTED"
    assert damaged.value.metadata["offset"] == str(3 * stride)
    assert region.extent_states().flags.tolist() == [0, FLAG_FAULTED, 0, 0]
    for call in (
        lambda: read(region, 24, 1),
        lambda: write(region, 24, content("b")),
        lambda: region.discard(15, 2),
        lambda: region.digest(1),
    ):
        with pytest.raises(DataError) as refused:
            call()
        assert refused.value.reason == "EXTENT_FAULTED"
    assert read(region, 0, 16) == content("a", 64)[: 16 * BLOCK]
    assert read(region, 32, 32) == content("a", 64)[32 * BLOCK :]
    write(region, 40, content("b"))
    flush(region, 2)
    checkpoint(region)
    region = reopened(region, disk)
    assert region.extent_states().flags.tolist() == [0, FLAG_FAULTED, 0, 0]


def test_a_checkpoint_that_meets_damage_goes_on(disk, region) -> None:
    stride = region.chunks.context_files.stride
    side = region.chunks.sides[3]
    region.close()
    damage(disk, f"contexts-{side}", 3 * stride)
    region = Region.open(disk, tuning=TUNING)
    write(region, 17, content("b"))
    write(region, 50, content("c"))
    flush(region, 2)
    checkpoint(region)
    assert region.extent_states().flags.tolist() == [0, FLAG_FAULTED, 0, 0]
    assert read(reopened(region, disk), 50, 1) == content("c")


def test_a_repair_brings_a_damaged_extent_back(disk, region) -> None:
    stride = region.chunks.context_files.stride
    side = region.chunks.sides[3]
    region.close()
    damage(disk, f"contexts-{side}", 3 * stride)
    region = Region.open(disk, tuning=TUNING)
    with pytest.raises(DataError):
        read(region, 16, 1)
    work = region.repair_begin(extent_marks([1]))
    work.run()
    region.finish_flush(work, None)
    assert region.extent_states().flags.tolist() == [0, FLAG_INCOMPLETE, 0, 0]
    assert read(region, 16, 16) == bytes(16 * BLOCK)
    data = content("a", 64)[16 * BLOCK : 32 * BLOCK]
    region.repair_merge(16, plain_contexts(data, BLOCK), data)
    region.repair_extent_copied(1, 1, 1)
    flush(region, 2)
    region.repair_end()
    checkpoint(region)
    region = reopened(region, disk)
    assert read(region, 0, 64) == content("a", 64)
    assert not region.extent_states().flags.any()


def test_a_damaged_map_page_faults_what_it_maps(disk, region) -> None:
    region.close()
    damage(disk, f"state-{region.state_at}", 4096 + 9)
    region = Region.open(disk, tuning=TUNING)
    assert (region.extent_states().flags & FLAG_FAULTED).all()
    with pytest.raises(DataError) as refused:
        read(region, 0, 1)
    assert refused.value.reason == "EXTENT_FAULTED"


def test_damaged_data_is_given_out_with_its_context_for_the_reader_to_find(disk, region) -> None:
    place = int(region.chunks.live[0]) * region.layout.chunk_bytes
    damage(disk, "data", place)
    contexts, buffers = region.read(0, 1)
    assert (contexts == plain_contexts(content("a", 64)[:BLOCK], BLOCK)).all()
    assert bytes(buffers[0]) != content("a", 64)[:BLOCK]


def test_a_log_damaged_in_the_middle_is_said_at_opening(disk, region) -> None:
    for number in (2, 3, 4):
        write(region, number, content(number))
        flush(region, number)
    log, place = region.log.active, region.overlay.logged[1].data_offset
    region.close()
    damage(disk, f"log-{log}", place)
    with pytest.raises(DataError) as damaged:
        Region.open(disk, tuning=TUNING)
    assert damaged.value.metadata["file"] == f"memory/log-{log}"
    # The lock is given back.
    disk.lock(shared=False)


def test_a_missing_file_is_named(disk, region) -> None:
    region.close()
    disk.rename("data", "elsewhere")
    with pytest.raises(DataError, match="data") as missing:
        Region.open(disk, tuning=TUNING)
    assert missing.value.metadata["file"] == "memory/data"


def test_a_record_naming_what_is_outside_is_refused(disk, region) -> None:
    # A record of a larger region that somehow has this one's id.
    write(region, 1, content("b"))
    region.overlay.active.addresses[0] = 1 << 40
    flush(region, 2)
    region.close()
    with pytest.raises(DataError, match="outside the region"):
        Region.open(disk, tuning=TUNING)


def test_what_does_not_count_is_made_durable_when_its_own_sync_failed_too() -> None:
    """The simulator's seed 10: the sync of a record failed, and the one of the void file after it;
    the daemon was started again, and flushed; then power was lost."""
    disk = MemoryDisk()
    region = new_region(disk)
    write(region, 0, content("old"))
    disk.fail_sync = lambda name: name.startswith(("log", "void"))
    work = region.begin_flush(1, 1)
    with pytest.raises(DataError):
        work.run()
    disk.fail_sync = lambda _name: False
    region = reopened(region, disk)
    write(region, 0, content("new"))
    flush(region, 2)
    after = Region.open(disk.image(lambda _name, _sector: False), tuning=TUNING)
    assert read(after, 0, 1) == content("new")


def test_an_owner_whose_sync_failed_is_durable_once_the_region_is_open_again() -> None:
    disk = MemoryDisk()
    region = new_region(disk)
    owner = Ownership(uuid.UUID(int=1), uuid.UUID(int=2), 7)
    disk.fail_sync = lambda name: name == "owner"
    with pytest.raises(DataError):
        region.promote(owner)
    disk.fail_sync = lambda _name: False
    region = reopened(region, disk)
    assert region.ownership == owner
    after = Region.open(disk.image(lambda _name, _sector: False), tuning=TUNING)
    assert after.ownership == owner
