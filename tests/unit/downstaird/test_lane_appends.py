"""The lane of a region on a real directory: flushes that go without the interpreter."""

import asyncio
import os
import threading

import pytest

from downstaird.core.region import Region
from downstaird.lane import Lane
from downstaird.store.files import FileDisk
from stairlib import native
from stairlib.model.errors import DataError
from tests.native_forms import needs_compiled
from tests.unit.downstaird.core.region_rig import (
    BLOCK,
    CHUNK_BLOCKS,
    CHUNK_BYTES,
    TUNING,
    content,
    definition_of,
    read,
    write,
)

pytestmark = needs_compiled


class Nobody:
    """No session wants the lane."""

    def wanted(self):
        return False

    def reserved(self):
        return False

    def changed(self, *, free):
        pass


@pytest.fixture
def region(tmp_path):
    disk = FileDisk(tmp_path / "region")
    made = Region.create(disk, definition_of(), tuning=TUNING, chunk_bytes=CHUNK_BYTES)
    yield made
    made.close()


@pytest.fixture
async def lane(region):
    made = Lane(region, Nobody())
    yield made
    await made.close()


@pytest.fixture
def begun(monkeypatch):
    """How often a record was handed over to the thread of compiled code."""
    from downstaird.store.files import DirectoryFile

    counted = []
    begin = DirectoryFile.begin_append

    def counting(self, *arguments):
        counted.append(threading.current_thread().name)
        return begin(self, *arguments)

    monkeypatch.setattr(DirectoryFile, "begin_append", counting)
    return counted


async def flush(lane, region, number):
    while not lane.free:
        await lane.wait_free()
    await lane.begun(region.begin_flush(number, 1))


def opened_again(region, tmp_path):
    region.close()
    return Region.open(FileDisk(tmp_path / "region"), tuning=TUNING)


async def test_small_writes_are_flushed_by_it(region, lane, begun, tmp_path):
    # The first record of a file has zeros ahead of it, which is more than an append.
    write(region, 40, content("zero"))
    await flush(lane, region, 1)
    for number in range(2, 40):
        write(region, number % 16, content(f"flush {number}"))
        await flush(lane, region, number)
    assert len(begun) > 20
    await lane.close()
    again = opened_again(region, tmp_path)
    try:
        for block in range(16):
            number = max(n for n in range(2, 40) if n % 16 == block)
            assert read(again, block, 1) == content(f"flush {number}")
        assert int(again.extent_states().flushes[0]) == 39
    finally:
        again.close()


async def test_what_is_written_meanwhile_belongs_to_the_next(region, lane, begun, tmp_path):
    write(region, 40, content("zero"))
    await flush(lane, region, 1)
    write(region, 3, content("before"))
    outcome = lane.begun(region.begin_flush(2, 1))
    write(region, 3, content("after"))
    assert read(region, 3, 1) == content("after")
    await outcome
    assert begun
    assert read(region, 3, 1) == content("after")
    await lane.close()
    again = opened_again(region, tmp_path)
    try:
        assert read(again, 3, 1) == content("before")
    finally:
        again.close()


@pytest.mark.parametrize("what", ["a chunk", "a discard", "much"])
async def test_any_other_flush_is_run(region, lane, begun, what, monkeypatch):
    monkeypatch.setattr("downstaird.core.region_flush.BEGUN_BYTES_MAX", 4 * BLOCK)
    write(region, 40, content("zero"))
    await flush(lane, region, 1)
    if what == "a chunk":
        write(region, 0, content("chunk", CHUNK_BLOCKS))
    elif what == "a discard":
        write(region, 1, content("one"))
        region.discard(40, 1)
    else:
        write(region, 0, content("five", 5))
    await flush(lane, region, 2)
    assert not begun
    assert int(region.extent_states().flushes[0]) == 2


@pytest.mark.parametrize(
    ("path", "reason", "action"),
    [("/dev/full", "NO_SPACE", "write"), ("/dev/null", "IO_ERROR", "sync")],
)
async def test_a_failure_is_told_and_the_record_is_void(
    region, lane, begun, tmp_path, path, reason, action
):
    write(region, 40, content("zero"))
    await flush(lane, region, 1)
    write(region, 3, content("lost"))
    log = region.log.files[region.log.active]
    kept, instead = os.dup(log.descriptor), os.open(path, os.O_WRONLY)
    os.dup2(instead, log.descriptor)
    sequence = region.log.next_sequence
    with pytest.raises(DataError, match=f"{action} .*log-0") as raised:
        await flush(lane, region, 2)
    os.dup2(kept, log.descriptor)
    os.close(kept)
    os.close(instead)
    assert begun
    assert raised.value.reason == reason
    assert sequence in region.void.records
    with pytest.raises(DataError):
        write(region, 4, content("refused"))
    await asyncio.wait_for(lane.close(), 30)
    again = opened_again(region, tmp_path)
    try:
        assert read(again, 3, 1) == bytes(BLOCK)
        assert read(again, 40, 1) == content("zero")
    finally:
        again.close()


async def test_what_cannot_begin_fails_as_it_would_elsewhere(region, lane, monkeypatch):
    write(region, 40, content("zero"))
    await flush(lane, region, 1)
    write(region, 3, content("three"))

    def broken(*_arguments):
        raise MemoryError

    monkeypatch.setattr(native, "record_front", broken)
    with pytest.raises(DataError, match="the engine failed"):
        await flush(lane, region, 2)
    assert lane.free
