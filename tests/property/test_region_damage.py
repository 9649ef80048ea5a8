"""Damage anywhere in a region that has a history: bits flipped, sectors zeroed, files cut.

Opening it either refuses with an error that names the file, or serves: every block is then
refused as faulted, or seen to be bad by its own context, or holds what one and the same flush left
there. That flush is the last one, or an earlier one that the stamps admit to. Then each faulted
extent is repaired, and the region is whole.
"""

from __future__ import annotations

import random
import uuid

import numpy as np
import pytest

from downstaird.core.engine import RegionDefinition
from downstaird.core.region import Region
from downstaird.store.memory import MemoryDisk
from stairlib.model.context import mismatches, plain_contexts
from stairlib.model.errors import DataError, StairwellError
from stairlib.wire.frame import FLAG_FAULTED, extent_marks
from tests.property.region_crashes import BLOCK, CHUNK_BYTES, GEOMETRIES, TUNING

SEEDS = 200
DAMAGES = 3


class History:
    """A region with random writes, discards, flushes and checkpoints; what each flush left."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.geometry = rng.choice(GEOMETRIES)
        self.disk = MemoryDisk()
        definition = RegionDefinition(uuid.UUID(int=rng.getrandbits(128)), self.geometry, "", 1)
        region = Region.create(self.disk, definition, tuning=TUNING, chunk_bytes=CHUNK_BYTES)
        self.now = bytearray(self.geometry.total_bytes)
        self.states = [bytes(self.now)]
        for number in range(1, rng.randrange(4, 16)):
            for _ in range(rng.randrange(1, 5)):
                self.change(region)
            work = region.begin_flush(number, 1)
            work.run()
            region.finish_flush(work, None)
            self.states.append(bytes(self.now))
            while region.wants_checkpoint() and rng.random() < 0.8:
                step = region.begin_checkpoint()
                step.run()
                region.finish_checkpoint(step, None)
        region.close()

    def change(self, region: Region) -> None:
        rng = self.rng
        count = rng.choice((1, 1, 2, 5, 16, 32))
        count = min(count, self.geometry.block_count)
        offset = rng.randrange(self.geometry.block_count - count + 1)
        at = slice(offset * BLOCK, (offset + count) * BLOCK)
        if rng.random() < 0.15:
            region.discard(offset, count)
            self.now[at] = bytes(count * BLOCK)
            return
        data = rng.randbytes(count * BLOCK)
        region.write(offset, plain_contexts(data, BLOCK), data)
        self.now[at] = data

    def damage(self) -> str:
        """One stroke; what it was, for people."""
        rng, disk = self.rng, self.disk
        name = rng.choice(sorted(disk._nodes))
        pages = disk.stored_pages(name)
        if not pages:
            return f"nothing in {name}"
        size = disk.open(name).size()
        at = min(rng.choice(pages) + rng.randrange(4096), size - 1)
        kind = rng.choice(("flip", "flip", "zero", "cut"))
        if kind == "flip":
            disk.rot(name, at)
        elif kind == "zero":
            at -= at % 512
            disk.open(name).pwritev([bytes(min(512, size - at))], at)
        else:
            disk.open(name).truncate(at)
        return f"{kind} {name} at {at}"


def named(error: StairwellError) -> None:
    """A refusal says which file it is about."""
    assert error.metadata.get("file") or error.metadata.get("path"), error


def explained(error: DataError) -> None:
    """And a fault also where in it."""
    named(error)
    assert "offset" in error.metadata, error


def check(history: History, region: Region) -> set[int]:
    """The faulted extents; AssertionError for a wrong block."""
    served: dict[int, bytes] = {}
    faulted: set[int] = set()
    size = history.geometry.blocks_per_extent
    for block in range(history.geometry.block_count):
        try:
            contexts, buffers = region.read(block, 1)
        except DataError as error:
            # Part of a chunk may be behind the end of a data file that was cut.
            explained(error)
            if error.reason == "EXTENT_FAULTED":
                faulted.add(block // size)
            continue
        data = b"".join(map(bytes, buffers))
        if not mismatches(data, contexts, BLOCK, encrypted=False):
            served[block] = data
    states = region.extent_states()
    assert faulted == set(np.flatnonzero(states.flags & FLAG_FAULTED).tolist())
    last = len(history.states) - 1
    for number in range(last, -1, -1):
        wanted = history.states[number]
        if all(wanted[at * BLOCK : (at + 1) * BLOCK] == data for at, data in served.items()):
            break
    else:
        raise AssertionError("what is served is what no flush left")
    # An older content than the last is not passed off as the last.
    whole = [extent for extent in range(history.geometry.extent_count) if extent not in faulted]
    assert all(int(states.flushes[extent]) <= number for extent in whole) or number == last
    return faulted


def repair(history: History, region: Region, faulted: set[int]) -> None:
    """From a replica that has all of the last flush."""
    size = history.geometry.extent_bytes
    last = history.states[-1]
    work = region.repair_begin(extent_marks(sorted(faulted)))
    work.run()
    region.finish_flush(work, None)
    for extent in faulted:
        data = last[extent * size : (extent + 1) * size]
        region.repair_merge(
            extent * history.geometry.blocks_per_extent, plain_contexts(data, BLOCK), data
        )
        region.repair_extent_copied(extent, 1, len(history.states) - 1)
    work = region.begin_flush(len(history.states), 2)
    work.run()
    region.finish_flush(work, None)
    region.repair_end()


@pytest.mark.parametrize("first", range(0, SEEDS, 25))
def test_damage_is_refused_or_bounded_and_never_wrong_data(first) -> None:
    for seed in range(first, first + 25):
        rng = random.Random(seed)
        history = History(rng)
        strokes = [history.damage() for _ in range(rng.randrange(1, DAMAGES + 1))]
        try:
            one_region(history)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {strokes}: {error!r}") from error


def one_region(history: History) -> None:
    """Opens, checks, repairs and checks what is repaired."""
    outcomes = []
    for read_only in (True, False, False):
        try:
            region = Region.open(history.disk, read_only=read_only, tuning=TUNING)
        except StairwellError as error:
            named(error)
            outcomes.append(None)
            continue
        faulted = check(history, region)
        outcomes.append(faulted)
        if not read_only and faulted and outcomes[-2] is not None:
            repair(history, region, faulted)
            region.close()
            region = Region.open(history.disk, tuning=TUNING)
            assert not check_extents(history, region, faulted)
            region.close()
            break
        region.close()
    # Looking is not what finds or loses damage.
    assert (outcomes[0] is None) == (outcomes[1] is None)


def check_extents(history: History, region: Region, extents: set[int]) -> list[int]:
    """Those of the extents that are not as the last flush left them."""
    size = history.geometry.extent_bytes
    blocks = history.geometry.blocks_per_extent
    bad = []
    for extent in extents:
        contexts, buffers = region.read(extent * blocks, blocks)
        data = b"".join(map(bytes, buffers))
        if data != history.states[-1][extent * size : (extent + 1) * size]:
            bad.append(extent)
        assert not mismatches(data, contexts, BLOCK, encrypted=False)
    return bad
