"""A region as simple as can be: arrays in memory, flushes that the test finishes."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
import xxhash

from downstaird.core.engine import ExtentStates, Ownership, RegionDefinition
from stairlib.model.errors import DataError, StateError
from stairlib.model.geometry import Geometry
from stairlib.wire.frame import FLAG_DIRTY, FLAG_INCOMPLETE

GEOMETRY = Geometry(block_size=512, blocks_per_extent=16, extent_count=8)


class PlainWork:
    """A flush in progress."""

    def __init__(self, begun):
        self.begun = begun
        self.ran = False

    def begin(self, _appender):
        return False

    def run(self):
        self.ran = True


class PlainEngine:
    """Does what the contract says, slowly and obviously. `calls` lists what was asked in order."""

    def __init__(self, geometry=GEOMETRY, *, cipher=""):
        self.definition = RegionDefinition(uuid.uuid4(), geometry, cipher, 1)
        self.ownership = Ownership(None, None, 0)
        self.data = bytearray(geometry.total_bytes)
        self.kept = np.zeros((geometry.block_count, 4), dtype=np.uint64)
        self.generations = np.zeros(geometry.extent_count, dtype=np.uint64)
        self.flushes = np.zeros(geometry.extent_count, dtype=np.uint64)
        self.flags = np.zeros(geometry.extent_count, dtype=np.uint8)
        self.session_wrote = None
        self.copied = set()
        self.calls = []
        self.snapshots = []
        self.refuses_snapshots = False
        self.fail_with = None
        self.checkpoint_wanted = False
        self.steps_to_home = 0

    def _touch(self, offset, count):
        size = self.definition.geometry.blocks_per_extent
        self.flags[offset // size : -(-(offset + count) // size)] |= FLAG_DIRTY
        if self.session_wrote is not None:
            self.session_wrote[offset : offset + count] = True

    def read(self, offset, count):
        self._maybe_fail()
        self.calls.append(("read", offset, count))
        size = self.definition.geometry.block_size
        return (
            self.kept[offset : offset + count].copy(),
            [bytes(self.data[offset * size : (offset + count) * size])],
        )

    def write(self, offset, contexts, data):
        self._maybe_fail()
        self.calls.append(("write", offset, len(contexts)))
        size = self.definition.geometry.block_size
        self.data[offset * size : offset * size + len(data)] = data
        self.kept[offset : offset + len(contexts)] = contexts
        self._touch(offset, len(contexts))

    def write_scattered(self, offsets, contexts, data):
        blocks = self.definition.geometry.block_count
        if self.fail_with is not None or max(offsets) >= blocks:
            return False
        self.calls.append(("write_scattered", tuple(offsets)))
        size = self.definition.geometry.block_size
        for index, offset in enumerate(offsets):
            self.data[offset * size : (offset + 1) * size] = data[index * size : (index + 1) * size]
            self.kept[offset] = contexts[index]
            self._touch(offset, 1)
        return True

    def write_unwritten(self, offset, contexts, data):
        size = self.definition.geometry.block_size
        for index in range(len(contexts)):
            if not self.kept[offset + index].any():
                self.write(
                    offset + index,
                    contexts[index : index + 1],
                    data[index * size : (index + 1) * size],
                )

    def discard(self, offset, count):
        self.calls.append(("discard", offset, count))
        size = self.definition.geometry.block_size
        self.data[offset * size : (offset + count) * size] = bytes(count * size)
        self.kept[offset : offset + count] = 0
        self._touch(offset, count)

    def contexts(self, offset, count):
        return self.kept[offset : offset + count].copy()

    def digest(self, extent):
        size = self.definition.geometry.blocks_per_extent
        part = self.kept[extent * size : (extent + 1) * size]
        return xxhash.xxh3_64_intdigest(np.ascontiguousarray(part).tobytes())

    def extent_states(self):
        return ExtentStates(self.generations.copy(), self.flushes.copy(), self.flags.copy())

    def promote(self, ownership):
        self.ownership = ownership

    def put_off_flush(self, number, generation):
        self.calls.append(("put_off_flush", number, generation))

    def put_off_no_more(self):
        self.calls.append(("put_off_no_more",))

    def begin_flush(self, number, generation, snapshot=""):
        self._maybe_fail()
        if snapshot:
            if self.refuses_snapshots:
                raise StateError("there is one already", reason="SNAPSHOT_EXISTS")
            self.snapshots.append((snapshot, number))
        self.calls.append(("begin_flush", number, generation))
        dirty = np.flatnonzero(self.flags & FLAG_DIRTY)
        self.flags[dirty] &= ~np.uint8(FLAG_DIRTY)
        return PlainWork((number, generation, dirty, set(self.copied)))

    def finish_flush(self, work, error):
        number, generation, dirty, copied = work.begun
        if error is not None:
            return
        self.flushes[dirty] = number
        self.generations[dirty] = generation
        for extent in copied:
            self.flags[extent] &= ~np.uint8(FLAG_INCOMPLETE)

    def wants_checkpoint(self):
        return self.checkpoint_wanted

    def has_log(self):
        return self.steps_to_home > 0

    def begin_checkpoint(self):
        self.steps_to_home = max(0, self.steps_to_home - 1)
        self.calls.append(("begin_checkpoint",))
        self.checkpoint_wanted = False
        return PlainWork(None)

    def finish_checkpoint(self, work, error):
        self.calls.append(("finish_checkpoint",))

    def repair_begin(self, marks):
        extents = marks["extent"]
        self.calls.append(("repair_begin", extents.tolist()))
        self.flags[extents] |= FLAG_INCOMPLETE
        self.generations[extents], self.flushes[extents] = marks["generation"], marks["flush"]
        self.session_wrote = np.zeros(self.definition.geometry.block_count, dtype=bool)
        return PlainWork((0, 0, np.array([], dtype=int), set()))

    def repair_merge(self, offset, contexts, data):
        size = self.definition.geometry.block_size
        applied = 0
        wrote, self.session_wrote = self.session_wrote, None
        for index in range(len(contexts)):
            if not wrote[offset + index]:
                part = slice(index, index + 1)
                self.write(offset + index, contexts[part], data[index * size : (index + 1) * size])
                applied += size
        self.session_wrote = wrote
        return applied

    def begin_merge(self, offset, contexts, data):
        return None

    def begin_read(self, offset, count):
        return None

    def repair_extent_copied(self, extent, generation, number):
        self.calls.append(("copied", extent, generation, number))
        self.copied.add(extent)
        stamp = (int(self.generations[extent]), int(self.flushes[extent]))
        self.generations[extent], self.flushes[extent] = max(stamp, (generation, number))

    def repair_end(self):
        if (self.flags & FLAG_INCOMPLETE).any():
            raise StateError("an extent is incomplete", reason="REPAIR_INCOMPLETE")
        self.session_wrote = None

    def stored_bytes(self):
        return 0

    def close(self):
        self.calls.append(("close",))

    def _maybe_fail(self):
        if self.fail_with is not None:
            raise DataError("the disk is gone", reason=self.fail_with)


@pytest.fixture
def geometry():
    return GEOMETRY


@pytest.fixture
def engine():
    return PlainEngine()


@pytest.fixture
def make_engine():
    return PlainEngine
