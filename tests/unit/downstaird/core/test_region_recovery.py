"""Opening damaged regions: what is lost, and how it is said."""

from __future__ import annotations

import uuid

import pytest

from downstaird.core.engine import Ownership
from downstaird.core.region import Region
from downstaird.store.memory import MemoryDisk
from stairlib.model.context import plain_contexts
from stairlib.model.errors import DataError
from stairlib.wire.frame import FLAG_FAULTED, FLAG_INCOMPLETE, extent_marks
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


def logged_over_extents(region):
    """Three records: a block in extent 1, two in extent 2, one in extent 3. Their places."""
    for number, (first, count) in enumerate(((17, 1), (33, 2), (50, 1)), start=2):
        write(region, first, content(number, count))
        flush(region, number)
    return [(epoch.log, epoch.data_offset) for epoch in region.overlay.logged[-3:]]


def test_a_damaged_block_in_the_log_faults_its_extent_alone(disk, region) -> None:
    log, place = logged_over_extents(region)[1]
    region.close()
    damage(disk, f"log-{log}", place + BLOCK)
    region = Region.open(disk, tuning=TUNING)
    assert region.extent_states().flags.tolist() == [0, 0, FLAG_FAULTED, 0]
    assert read(region, 17, 1) == content(2)
    assert read(region, 50, 1) == content(4)
    with pytest.raises(DataError, match=f"log-{log} at byte {place + BLOCK}") as refused:
        read(region, 33, 1)
    assert refused.value.reason == "EXTENT_FAULTED"
    assert refused.value.metadata["offset"] == str(place + BLOCK)
    # The mark outlasts the log, and the others go on.
    write(region, 18, content("n"))
    flush(region, 5)
    checkpoint(region)
    region = reopened(region, disk)
    assert region.extent_states().flags.tolist() == [0, 0, FLAG_FAULTED, 0]
    assert read(region, 17, 2) == content(2) + content("n")


def test_a_damaged_block_that_was_written_again_costs_nothing(disk, region) -> None:
    log, place = logged_over_extents(region)[1]
    write(region, 33, content("n", 2))
    flush(region, 5)
    region.close()
    damage(disk, f"log-{log}", place)
    region = Region.open(disk, tuning=TUNING)
    assert not region.extent_states().flags.any()
    assert read(region, 33, 2) == content("n", 2)


def refill(region, extent, data, number):
    """A repair of one extent, flushed."""
    work = region.repair_begin(extent_marks([extent]))
    work.run()
    region.finish_flush(work, None)
    size = len(data) // BLOCK
    region.repair_merge(extent * size, plain_contexts(data, BLOCK), data)
    region.repair_extent_copied(extent, 1, number)
    flush(region, number)


@pytest.mark.parametrize("at", ["header", "table"])
def test_a_lost_record_faults_all_extents_and_all_can_be_repaired(disk, region, at) -> None:
    log, place = logged_over_extents(region)[1]
    record = place - place % 4096
    owner = Ownership(uuid.UUID(int=1), uuid.UUID(int=2), 7)
    region.promote(owner)
    region.close()
    damage(disk, f"log-{log}", record + {"header": 17, "table": 130}[at])
    looked_at = Region.open(disk, read_only=True, tuning=TUNING)
    assert (looked_at.extent_states().flags == FLAG_FAULTED).all()
    looked_at.close()
    region = Region.open(disk, tuning=TUNING)
    assert region.ownership == owner
    for _ in range(2):
        assert (region.extent_states().flags == FLAG_FAULTED).all()
        with pytest.raises(DataError, match="waits for repair"):
            read(region, 0, 1)
        with pytest.raises(DataError, match="waits for repair"):
            write(region, 63, content("b"))
        region = reopened(region, disk)
    data = content("r", 64)
    for extent in range(4):
        refill(region, extent, data[extent * 16 * BLOCK : (extent + 1) * 16 * BLOCK], 10 + extent)
        if extent % 2:
            region = reopened(region, disk)
            done = [0] * (extent + 1) + [FLAG_FAULTED] * (3 - extent)
            assert region.extent_states().flags.tolist() == done
    assert read(region, 0, 64) == data
    checkpoint(region)
    assert read(reopened(region, disk), 0, 64) == data


def test_what_a_lost_record_says_names_the_file_and_the_place(disk, region) -> None:
    log, place = logged_over_extents(region)[0]
    record = place - place % 4096
    region.close()
    damage(disk, f"log-{log}", record)
    region = Region.open(disk, tuning=TUNING)
    with pytest.raises(DataError, match=f"log-{log} is damaged at byte {record}") as refused:
        read(region, 0, 1)
    assert refused.value.metadata["file"] == f"memory/log-{log}"


def test_a_record_on_a_damaged_map_page_does_not_make_its_extent_whole(disk, region) -> None:
    """The record's entry for the extent has no mark: it was made before the damage."""
    logged_over_extents(region)
    region.close()
    damage(disk, f"state-{region.state_at}", 4096 + 9)
    region = Region.open(disk, tuning=TUNING)
    assert (region.extent_states().flags & FLAG_FAULTED).all()
    with pytest.raises(DataError, match=r"state-[01] at byte 4096"):
        read(region, 16, 1)


def test_extents_behind_the_end_of_the_data_are_faulted(disk, region) -> None:
    places = region.chunks.durable * region.layout.chunk_bytes
    region.close()
    disk.open("data").truncate(int(places[5]))
    region = Region.open(disk, tuning=TUNING)
    assert region.extent_states().flags.tolist() == [0, 0, FLAG_FAULTED, FLAG_FAULTED]
    assert read(region, 0, 32) == content("a", 64)[: 32 * BLOCK]
    with pytest.raises(DataError, match="data ends at byte"):
        read(region, 40, 1)


def test_damage_found_during_a_flush_is_not_forgotten_by_it(disk, region) -> None:
    stride = region.chunks.context_files.stride
    side = region.chunks.sides[3]
    write(region, 24, content("b"))
    region = reopened(region, disk)
    write(region, 24, content("b"))
    damage(disk, f"contexts-{side}", 3 * stride)
    work = region.begin_flush(2, 1)
    with pytest.raises(DataError):
        read(region, 16, 1)
    work.run()
    region.finish_flush(work, None)
    assert region.extent_states().flags.tolist() == [0, FLAG_FAULTED, 0, 0]
    checkpoint(region)
    assert reopened(region, disk).extent_states().flags.tolist() == [0, FLAG_FAULTED, 0, 0]


@pytest.mark.parametrize("zero", [False, True])
def test_with_a_damaged_state_header_the_older_state_and_its_log_say_the_same(
    disk, region, zero
) -> None:
    for number in range(2, 9):
        write(region, number * 7, content(number, 2))
        flush(region, number)
    before = read(region, 0, 64)
    checkpoint(region)
    newest = region.state_at
    region.close()
    damage(disk, f"state-{newest}", 0, bytes(512) if zero else b"\xff\xff")
    region = Region.open(disk, tuning=TUNING)
    assert read(region, 0, 64) == before
    assert not region.extent_states().flags.any()


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


def test_a_power_cut_while_a_lost_record_is_dealt_with_changes_nothing(disk, region) -> None:
    log, place = logged_over_extents(region)[1]
    region.close()
    damage(disk, f"log-{log}", place - place % 4096)
    for name in (f"log-{log}", "state-0", "state-1"):
        disk.open(name).datasync()
    images = []

    def observed(_action, _name):
        images.append(disk.image(lambda _file, _sector: False))
        images.append(disk.image(lambda _file, _sector: True))

    disk.observer = observed
    Region.open(disk, tuning=TUNING).close()
    disk.observer = lambda _action, _name: None
    assert len(images) > 4
    for image in images:
        after = Region.open(image, tuning=TUNING)
        assert (after.extent_states().flags == FLAG_FAULTED).all()
        refill(after, 0, content("r", 16), 9)
        assert read(reopened(after, image), 0, 16) == content("r", 16)
