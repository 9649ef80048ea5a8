"""The compiled form of the log's record and of extents' entries beside the Python form."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downstaird.core.extent_table import ExtentTable
from downstaird.core.log import LOG_NAMES, BlocksToLog, Log, LogPlace, LogReader
from downstaird.core.log_record import EXTENT, Record
from downstaird.store.memory import MemoryDisk
from stairlib import native
from tests.native_forms import in_python, needs_compiled

pytestmark = needs_compiled

TAG = 0x1122334455667788
U64 = st.integers(0, (1 << 64) - 1)


def blocks_of(count: int, extents: int, size: int, seed: int, flush: int, generation: int):
    chance = random.Random(seed)
    entries = np.frombuffer(chance.randbytes(extents * EXTENT.itemsize), dtype=EXTENT)
    addresses = np.frombuffer(chance.randbytes(count * 8), dtype=np.int64)
    contexts = np.frombuffer(chance.randbytes(count * 32), dtype=np.uint64).reshape(-1, 4)
    data = memoryview(chance.randbytes(count * size))
    return BlocksToLog(flush, generation, entries, addresses, contexts, data)


def logs(size: int) -> tuple[MemoryDisk, Log]:
    disk = MemoryDisk()
    files = [disk.open(name, create=True) for name in LOG_NAMES]
    return disk, Log(files, tag=TAG, block_size=size, zero_bytes=4096)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 30), U64, U64), min_size=1, max_size=4),
    st.sampled_from([512, 4096, 16384]),
    st.integers(0, 1 << 30),
)
def test_the_same_bytes_are_written(
    records: list[tuple[int, int, int, int]], size: int, seed: int
) -> None:
    disks: list[MemoryDisk] = []
    places: list[list[LogPlace]] = []
    for compiled in (False, True):
        disk, log = logs(size)
        made = []
        for number, (count, extents, flush, generation) in enumerate(records):
            blocks = blocks_of(count, extents, size, seed + number, flush, generation)
            if compiled:
                made.append(log.append_blocks(blocks))
                continue
            record = Record(
                flush=flush,
                generation=generation,
                extents=blocks.extents,
                addresses=blocks.addresses,
                contexts=blocks.contexts,
            )
            made.append(log.append(record, [blocks.data]))
        disks.append(disk)
        places.append(made)
    assert places[0] == places[1]
    for name in LOG_NAMES:
        files = [disk.open(name) for disk in disks]
        sizes = [file.size() for file in files]
        assert sizes[0] == sizes[1]
        assert files[0].pread(sizes[0], 0) == files[1].pread(sizes[1], 0)
    files = [disks[1].open(name) for name in LOG_NAMES]
    found = LogReader(files, tag=TAG, block_size=size, void=()).replay(0, 1, 0).found
    assert len(found) == len(records)
    assert all(each.whole for each in found)


@given(st.integers(1, 30), st.lists(st.tuples(st.lists(st.integers(0, 29)), U64, U64)))
def test_extents_are_stamped_the_same(
    count: int, flushes: list[tuple[list[int], int, int]]
) -> None:
    tables = ExtentTable(count), ExtentTable(count)
    for touched, generation, number in flushes:
        entries = []
        for compiled, table in enumerate(tables):
            with contextlib.nullcontext() if compiled else in_python():
                table.touch_all(extent % count for extent in touched)
                stored = table.freeze(generation, number)
                entries.append(stored.tobytes())
                table.publish(stored)
        assert entries[0] == entries[1]
    python, compiled_table = tables
    assert python.durable.tobytes() == compiled_table.durable.tobytes()
    for mine, theirs in zip(
        (python.states().generations, python.states().flushes, python.states().flags),
        (
            compiled_table.states().generations,
            compiled_table.states().flushes,
            compiled_table.states().flags,
        ),
        strict=True,
    ):
        assert np.array_equal(mine, theirs)


def test_an_extent_that_is_none_touches_nothing() -> None:
    table = ExtentTable(3).durable
    before = table.tobytes()
    for extent in (3, -1, 1 << 40):
        with pytest.raises(IndexError):
            native.stamped(table, [0, extent], 1, 1)
    entries = table.copy()
    entries["flush"] = 7
    entries["extent"][2] = 3
    with pytest.raises(IndexError):
        native.stored(table, entries)
    assert table.tobytes() == before


@pytest.mark.parametrize("short", ["addresses", "contexts", "data"])
def test_parts_that_do_not_fit_together_are_refused(short: str) -> None:
    blocks = blocks_of(3, 1, 512, 1, 1, 1)
    parts = {"addresses": blocks.addresses, "contexts": blocks.contexts, "data": blocks.data}
    parts[short] = parts[short][:-1]
    with pytest.raises(AssertionError):
        native.record_front(
            TAG,
            1,
            0,
            1,
            1,
            blocks.extents,
            parts["addresses"],
            parts["contexts"],
            parts["data"],
            512,
        )
