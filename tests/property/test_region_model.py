"""A Region against a model of a few dicts, whatever the order of writes, flushes, checkpoints,
repairs and reopenings that hypothesis comes up with."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from downstaird.core.engine import Ownership, RegionDefinition
from downstaird.core.layout import Tuning
from downstaird.core.region import Region
from downstaird.core.snapshot_reader import open_snapshot
from downstaird.store.memory import MemoryDisk
from stairlib.model.context import plain_contexts
from stairlib.model.errors import StateError
from stairlib.model.geometry import Geometry
from stairlib.wire.frame import FLAG_DIRTY, FLAG_INCOMPLETE, FLAG_TOWARDS, extent_marks
from tests.property.region_crashes import BLOCK, found_blocks, found_state

CHUNK_BLOCKS = 4
TUNING = Tuning(
    large_bytes=CHUNK_BLOCKS * BLOCK,
    arena_bytes=7 * BLOCK,
    log_bytes=3 * 4096,
    log_bytes_max=8 * 4096,
    fresh_context_bytes=6 * CHUNK_BLOCKS * 32,
    cached_context_bytes=2 * CHUNK_BLOCKS * 32,
    step_blocks=3,
    log_zero_bytes=4096,
)
GEOMETRIES = st.sampled_from(
    [Geometry(BLOCK, 10, 4), Geometry(BLOCK, 8, 4), Geometry(BLOCK, 3, 12)]
)
OFFSETS = st.integers(0, 39)
COUNTS = st.integers(1, 14)
EXTENTS = st.sets(st.integers(0, 3), min_size=1)


class RegionMachine(RuleBasedStateMachine):
    """`blocks`, `stamps`, `incomplete` are as callers must see them; `durable` as a reopening must
    find them."""

    @initialize(geometry=GEOMETRIES)
    def create(self, geometry):
        self.geometry = geometry
        self.disk = MemoryDisk()
        definition = RegionDefinition(uuid.uuid4(), geometry, cipher="", format_version=1)
        chunk_bytes = CHUNK_BLOCKS * BLOCK
        self.region = Region.create(self.disk, definition, tuning=TUNING, chunk_bytes=chunk_bytes)
        self.blocks = [None] * geometry.block_count
        self.stamps = [(0, 0)] * geometry.extent_count
        # Told (generation, flush, whether they were told) of those that are incomplete.
        self.incomplete = {}
        self.dirty = set()
        # What the stamps of these will be, unless they are written again before the next flush.
        self.put_off = {}
        self.frozen = set()
        self.copied = set()
        self.clearing = set()
        self.tracked = None
        self.work = None
        self.on_success = None
        self.number = 0
        # By name, blocks and stamps.
        self.snapshots = {}
        self.taking = ""
        self.deleting = ""
        self.ownership = Ownership(None, None, 0)
        self.count = 0
        self.durable = self.snapshot()

    def snapshot(self):
        return list(self.blocks), list(self.stamps), dict(self.incomplete)

    def span(self, offset, count):
        offset %= self.geometry.block_count
        return offset, min(count, self.geometry.block_count - offset)

    def content(self, count):
        self.count += 1
        data = b"".join(
            f"{self.count}/{index}".encode().ljust(BLOCK, b".") for index in range(count)
        )
        return data, plain_contexts(data, BLOCK)

    def note(self, offset, count):
        size = self.geometry.blocks_per_extent
        for block in range(offset, offset + count):
            self.dirty.add(block // size)
            self.put_off.pop(block // size, None)
            if self.tracked is not None and block // size in self.tracked:
                self.tracked[block // size].add(block)

    # --- blocks

    @rule(offset=OFFSETS, count=COUNTS, aligned=st.booleans())
    def write(self, offset, count, aligned):
        if aligned:
            offset -= offset % CHUNK_BLOCKS
        offset, count = self.span(offset, count)
        data, contexts = self.content(count)
        self.region.write(offset, contexts, data)
        for index in range(count):
            self.blocks[offset + index] = data[index * BLOCK : (index + 1) * BLOCK]
        self.note(offset, count)

    @rule(offsets=st.lists(OFFSETS, min_size=1, max_size=12))
    def write_scattered(self, offsets):
        offsets = [offset % self.geometry.block_count for offset in offsets]
        data, contexts = self.content(len(offsets))
        at_once = self.region.write_scattered(offsets, contexts, data)
        for index, offset in enumerate(offsets):
            part = data[index * BLOCK : (index + 1) * BLOCK]
            if not at_once:
                self.region.write(offset, contexts[index : index + 1], part)
            self.blocks[offset] = part
            self.note(offset, 1)

    @rule(offset=OFFSETS, count=COUNTS)
    def write_unwritten(self, offset, count):
        offset, count = self.span(offset, count)
        data, contexts = self.content(count)
        self.region.write_unwritten(offset, contexts, data)
        for index in range(count):
            if self.blocks[offset + index] is None:
                self.blocks[offset + index] = data[index * BLOCK : (index + 1) * BLOCK]
                self.dirty.add((offset + index) // self.geometry.blocks_per_extent)
                self.put_off.pop((offset + index) // self.geometry.blocks_per_extent, None)

    @rule(offset=OFFSETS, count=COUNTS)
    def discard(self, offset, count):
        offset, count = self.span(offset, count)
        self.region.discard(offset, count)
        self.blocks[offset : offset + count] = [None] * count
        self.note(offset, count)

    @rule(offset=OFFSETS, count=COUNTS)
    def read(self, offset, count):
        offset, count = self.span(offset, count)
        contexts, buffers = self.region.read(offset, count)
        wanted = b"".join(block or bytes(BLOCK) for block in self.blocks[offset : offset + count])
        assert b"".join(map(bytes, buffers)) == wanted
        assert (contexts == self.region.contexts(offset, count)).all()

    @rule(extent=st.integers(0, 3))
    def digest(self, extent):
        size = self.geometry.blocks_per_extent
        contexts = np.zeros((size, 4), dtype=np.uint64)
        for index, block in enumerate(self.blocks[extent * size : (extent + 1) * size]):
            if block is not None:
                contexts[index] = plain_contexts(block, BLOCK)[0]
        assert self.region.digest(extent) == xxhash.xxh3_64_intdigest(contexts.tobytes())

    # --- flushes and checkpoints, in two halves

    @rule()
    def put_off_flush(self):
        self.number += 1
        self.region.put_off_flush(self.number, 1)
        self.put_off.update(dict.fromkeys(self.dirty, (1, self.number)))
        self.dirty = set()

    @rule()
    def put_off_no_more(self):
        self.region.put_off_no_more()
        self.dirty.update(self.put_off)
        self.put_off = {}

    @precondition(lambda self: self.work is None)
    @rule(named=st.sampled_from([False, False, True]))
    def begin_flush(self, named):
        self.number += 1
        self.taking = f"s{self.number}" if named and not self.incomplete else ""
        self.work = self.region.begin_flush(self.number, 1, self.taking)
        later = self.put_off | dict.fromkeys(self.dirty, (1, self.number))
        self.frozen, self.dirty, self.put_off = set(later), set(), {}
        self.clearing, self.copied = self.copied, set()
        blocks, stamps, incomplete = self.snapshot()
        for extent in self.frozen:
            stamps[extent] = later[extent]
        left = {e: mark for e, mark in incomplete.items() if e not in self.clearing}
        self.ahead = (blocks, stamps, left)
        self.on_success = self.end_flush

    def end_flush(self):
        for extent in self.frozen:
            own = self.stamps[extent] if extent in self.copied else (0, 0)
            self.stamps[extent] = max(own, self.ahead[1][extent])
        for extent in self.clearing:
            self.incomplete.pop(extent, None)
        self.frozen = set()

    @precondition(lambda self: self.work is None and self.region.wants_checkpoint())
    @rule()
    def checkpoint_step(self):
        work = self.region.begin_checkpoint()
        work.run()
        self.region.finish_checkpoint(work, None)

    @precondition(lambda self: self.work is None)
    @rule()
    def begin_checkpoint(self):
        self.work = self.region.begin_checkpoint()
        self.ahead = self.durable
        self.on_success = None

    @precondition(lambda self: self.work is None and self.snapshots)
    @rule(which=st.integers(0, 9))
    def delete_snapshot(self, which):
        name = sorted(self.snapshots)[which % len(self.snapshots)]
        try:
            self.work = self.region.begin_delete_snapshot(name)
        except StateError as error:
            if error.reason != "SNAPSHOT_SETTLING":
                raise
            return
        self.deleting = name
        self.ahead = self.durable
        self.on_success = lambda: None

    @precondition(lambda self: self.snapshots)
    @rule(which=st.integers(0, 9))
    def read_snapshot(self, which):
        name = sorted(self.snapshots)[which % len(self.snapshots)]
        if not {facts.name: facts.settled for facts in self.region.list_snapshots()}[name]:
            return
        if name == self.deleting:
            return
        opened = open_snapshot(self.disk, name, tuning=TUNING)
        opened.let_go()
        assert found_state(opened) == self.snapshots[name]

    @precondition(lambda self: self.work is not None)
    @rule(reopen_instead=st.sampled_from([False, False, False, True]))
    def finish(self, reopen_instead):
        self.work.run()
        self.durable = self.ahead
        if self.taking:
            self.snapshots[self.taking] = (tuple(self.durable[0]), tuple(self.durable[1]))
        self.snapshots.pop(self.deleting, None)
        self.taking = self.deleting = ""
        if reopen_instead:
            self.reopen()
            return
        if self.on_success is None:
            self.region.finish_checkpoint(self.work, None)
        else:
            self.region.finish_flush(self.work, None)
            self.on_success()
        self.work = None

    @rule()
    def reopen(self):
        self.region.close()
        self.region = Region.open(self.disk, tuning=TUNING)
        self.blocks, self.stamps, self.incomplete = (
            list(self.durable[0]),
            list(self.durable[1]),
            dict(self.durable[2]),
        )
        for extent, mark in self.incomplete.items():
            self.stamps[extent] = mark[:2]
        self.dirty, self.frozen, self.copied, self.clearing = set(), set(), set(), set()
        self.put_off = {}
        self.tracked = None
        self.work = None
        self.taking = self.deleting = ""

    @rule(generation=st.integers(0, 9))
    def promote(self, generation):
        self.ownership = Ownership(uuid.uuid4(), uuid.uuid4(), generation)
        self.region.promote(self.ownership)

    # --- repair

    @precondition(lambda self: self.work is None)
    @rule(extents=EXTENTS, told=st.booleans(), flush=st.integers(0, 9))
    def repair_begin(self, extents, told, flush):
        mark = (1, flush, told)
        self.work = self.region.repair_begin(extent_marks(sorted(extents), *mark))
        self.tracked = {extent: set() for extent in extents}
        self.incomplete.update(dict.fromkeys(extents, mark))
        self.dirty -= extents
        self.put_off = {e: stamp for e, stamp in self.put_off.items() if e not in extents}
        self.copied -= extents
        for extent in extents:
            self.stamps[extent] = mark[:2]
        blocks, stamps, incomplete = (
            list(self.durable[0]),
            list(self.durable[1]),
            dict(self.durable[2]),
        )
        self.ahead = (blocks, stamps, incomplete | dict.fromkeys(extents, mark))
        self.on_success = lambda: None

    @precondition(lambda self: self.tracked is not None)
    @rule(offset=OFFSETS, count=COUNTS, holes=st.integers(0, 2**14 - 1), whole=st.booleans())
    def merge(self, offset, count, holes, whole):
        size = self.geometry.blocks_per_extent
        extent = sorted(self.tracked)[offset % len(self.tracked)]
        first = extent * size + (0 if whole else offset % size)
        count = min(size if whole else count, (extent + 1) * size - first)
        data, contexts = self.content(count)
        mutable = bytearray(data)
        for index in range(count):
            if holes >> index & 1 and not whole:
                contexts[index] = 0
                mutable[index * BLOCK : (index + 1) * BLOCK] = bytes(BLOCK)
        applied = self.region.repair_merge(first, contexts, bytes(mutable))
        expected = 0
        for index in range(count):
            if first + index not in self.tracked[extent]:
                expected += BLOCK
                there = contexts[index].any()
                block = bytes(mutable[index * BLOCK : (index + 1) * BLOCK])
                self.blocks[first + index] = block if there else None
        assert applied == expected

    @precondition(lambda self: self.tracked is not None)
    @rule(which=st.integers(0, 3), number=st.integers(0, 12))
    def extent_copied(self, which, number):
        extent = sorted(self.tracked)[which % len(self.tracked)]
        self.region.repair_extent_copied(extent, 1, number)
        self.stamps[extent] = max(self.stamps[extent], (1, number))
        self.copied.add(extent)

    @rule()
    def repair_end(self):
        if self.incomplete:
            with pytest.raises(StateError, match="still incomplete"):
                self.region.repair_end()
        else:
            self.region.repair_end()
            self.tracked = None

    # --- what always holds

    @invariant()
    def everything_is_as_it_should_be(self):
        if not hasattr(self, "region"):
            return
        assert found_blocks(self.region) == self.blocks
        states = self.region.extent_states()
        stamps = list(zip(states.generations.tolist(), states.flushes.tolist(), strict=True))
        told = list(self.stamps)
        for extent, mark in self.incomplete.items():
            told[extent] = mark[:2]
        assert stamps == told
        assert set(np.flatnonzero(states.flags & FLAG_TOWARDS).tolist()) == {
            extent for extent, mark in self.incomplete.items() if mark[2]
        }
        dirty = set(np.flatnonzero(states.flags & FLAG_DIRTY).tolist())
        assert dirty == self.dirty | self.frozen | set(self.put_off)
        assert set(np.flatnonzero(states.flags & FLAG_INCOMPLETE).tolist()) == set(self.incomplete)
        assert self.region.ownership == self.ownership
        assert {facts.name for facts in self.region.list_snapshots()} == set(self.snapshots)

    def teardown(self):
        if hasattr(self, "region"):
            self.region.close()


TestRegion = RegionMachine.TestCase
TestRegion.settings = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
