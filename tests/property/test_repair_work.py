"""The bytes of a repair moved on other threads, while the session changes blocks, flushes and
checkpoints run: at the end, and in each read that counts, every block is what it must be."""

from __future__ import annotations

import random

import numpy as np
import pytest

from downstaird.core.region import Region
from downstaird.store.memory import MemoryDisk
from stairlib.model.context import plain_contexts
from stairlib.wire.frame import extent_marks
from tests.unit.downstaird.core.region_rig import (
    BLOCK,
    CHUNK_BLOCKS,
    GEOMETRY,
    TUNING,
    checkpoint,
    content,
    new_region,
    read,
)

SEEDS = 200
STEPS = 120
BLOCKS = GEOMETRY.block_count


class Repaired:
    """A region under repair, what each of its blocks must be, and what runs."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.disk = MemoryDisk()
        self.region = new_region(self.disk)
        self.number = 0
        self.serial = 0
        self.now = [bytes(BLOCK)] * BLOCKS
        self.change(0, BLOCKS)
        self.flush()
        self.source = [content(f"copy{block}") for block in range(BLOCKS)]
        self.merges = []
        self.reads = []
        self.changed = set()
        self.lane = None
        self.kept = self.held = 0
        work = self.region.repair_begin(extent_marks(list(range(GEOMETRY.extent_count))))
        work.run()
        self.region.finish_flush(work, None)

    def change(self, first, count):
        self.serial += 1
        blocks = [content(f"{self.serial}/{block}") for block in range(count)]
        data = b"".join(blocks)
        self.region.write(first, plain_contexts(data, BLOCK), data)
        self.now[first : first + count] = blocks

    def flush(self):
        self.number += 1
        work = self.region.begin_flush(self.number, 1)
        work.run()
        self.region.finish_flush(work, None)

    def session(self):
        first = self.rng.randrange(BLOCKS)
        count = min(self.rng.choice((1, 2, CHUNK_BLOCKS, 2 * CHUNK_BLOCKS)), BLOCKS - first)
        if self.rng.random() < 0.2:
            self.region.discard(first, count)
            self.now[first : first + count] = [bytes(BLOCK)] * count
        else:
            self.change(first, count)
        self.changed.update(range(first, first + count))

    def merge(self):
        chunks = self.rng.choice((1, 2))
        first = self.rng.randrange(BLOCKS // CHUNK_BLOCKS - chunks + 1) * CHUNK_BLOCKS
        data = b"".join(self.source[first : first + chunks * CHUNK_BLOCKS])
        work = self.region.begin_merge(first, plain_contexts(data, BLOCK), data)
        if work is not None:
            self.merges.append((first, chunks * CHUNK_BLOCKS, work))

    def merged(self):
        first, count, work = self.merges.pop(self.rng.randrange(len(self.merges)))
        work.run()
        if self.rng.random() < 0.2:
            assert self.region.finish_merge(work, keep=False) == 0
            return
        wanted = [block for block in range(first, first + count) if block not in self.changed]
        assert self.region.finish_merge(work, keep=True) == len(wanted) * BLOCK
        self.kept += 1
        for block in wanted:
            self.now[block] = self.source[block]

    def look(self):
        first = self.rng.randrange(BLOCKS)
        count = self.rng.randrange(1, min(2 * CHUNK_BLOCKS, BLOCKS - first) + 1)
        work = self.region.begin_read(first, count)
        if work is not None:
            self.reads.append((first, count, work, b"".join(self.now[first : first + count])))

    def looked(self):
        first, count, work, was = self.reads.pop(self.rng.randrange(len(self.reads)))
        data = b"".join(work.run())
        if self.region.read_holds(work):
            assert data == was == b"".join(self.now[first : first + count])
            assert (work.contexts == plain_contexts(data, BLOCK)).all()
            self.held += 1

    def checkpoint(self):
        if self.lane is not None:
            self.region.finish_checkpoint(self.lane, None)
            self.lane = None
        elif self.region.has_log():
            self.lane = self.region.begin_checkpoint()
            self.lane.run()

    def step(self):
        ways = [self.session, self.merge, self.merge, self.look, self.look, self.checkpoint]
        ways += [self.checkpoint] * 3
        if self.lane is None:
            ways.append(self.flush)
        ways += [self.merged] * min(2, len(self.merges)) + [self.looked] * min(2, len(self.reads))
        self.rng.choice(ways)()

    def end(self):
        while self.merges:
            self.merged()
        while self.lane is not None:
            self.checkpoint()
        assert read(self.region, 0, BLOCKS) == b"".join(self.now)
        self.flush()
        checkpoint(self.region)
        chunks = self.region.chunks
        used = np.count_nonzero(chunks.live) + len(chunks.to_punch) + 1
        assert chunks.space.free_count() + used == chunks.space.end, "a chunk was lost"
        self.region.close()
        found = Region.open(self.disk, tuning=TUNING)
        assert read(found, 0, BLOCKS) == b"".join(self.now)
        found.close()


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_what_moves_beside_the_loop_is_as_if_it_had_moved_on_it(first) -> None:
    kept = held = 0
    for seed in range(first, first + 50):
        repaired = Repaired(random.Random(seed))
        try:
            for _ in range(STEPS):
                repaired.step()
            repaired.end()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        kept += repaired.kept
        held += repaired.held
    assert kept
    assert held
