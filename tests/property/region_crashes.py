"""Power cuts under a region: a seeded world that writes, discards, flushes and checkpoints on a
MemoryDisk, and looks at what any write or sync could leave behind.

At chosen moments the disk is rebuilt as a power cut could leave it: what was synced, plus any
subset of the unsynced 512-byte sectors. The region must open there, and hold exactly the state
of the last flush that was acknowledged or of the one in progress, block for block, context for
context, stamp for stamp. While a flush or checkpoint step runs, more writes are made in between,
as the daemon's loop does.
"""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

from downstaird.core.engine import FlushWork, RegionDefinition
from downstaird.core.layout import Tuning
from downstaird.core.region import Region
from downstaird.core.region_checkpoint import CommitJob
from downstaird.store.memory import MemoryDisk
from stairlib.model.context import block_hashes, plain_contexts
from stairlib.model.errors import DataError
from stairlib.model.geometry import Geometry

BLOCK = 512
# A context block is then two sectors, so that it can tear.
CHUNK_BLOCKS = 16
CHUNK_BYTES = CHUNK_BLOCKS * BLOCK
TUNING = Tuning(
    large_bytes=CHUNK_BYTES,
    arena_bytes=40 * BLOCK,
    log_bytes=7 * 4096,
    log_bytes_max=20 * 4096,
    fresh_context_bytes=12 * CHUNK_BLOCKS * 32,
    cached_context_bytes=3 * CHUNK_BLOCKS * 32,
    step_blocks=6,
    step_growth=2,
    log_zero_bytes=4096,
)
# Uneven: the last chunk of an extent is short; even; and an extent smaller than a chunk.
GEOMETRIES = (Geometry(BLOCK, 40, 3), Geometry(BLOCK, 32, 4), Geometry(BLOCK, 10, 9))

# Per block its content, None = never written; and (generation, flush) per extent.
State = tuple[tuple[bytes | None, ...], tuple[tuple[int, int], ...]]


class ViolationError(AssertionError):
    """The region broke its promise."""


class KilledError(Exception):
    """The daemon is killed in the middle of what it does."""


class CrashWorld:
    """One seeded run. `disk_type` and what the caller patches make mutants."""

    def __init__(self, seed: int, disk_type: Callable[[], MemoryDisk] = MemoryDisk) -> None:
        self.rng = random.Random(seed)
        self.geometry = self.rng.choice(GEOMETRIES)
        self.disk = disk_type()
        definition = RegionDefinition(
            uuid.UUID(int=self.rng.getrandbits(128)),
            self.geometry,
            cipher="",
            format_version=1,
        )
        self.region = Region.create(self.disk, definition, tuning=TUNING, chunk_bytes=CHUNK_BYTES)
        self.blocks: list[bytes | None] = [None] * self.geometry.block_count
        self.dirty: set[int] = set()
        # What the stamps of these will be, unless they are written again before the next flush.
        self.put_off: dict[int, tuple[int, int]] = {}
        self.stamps = [(0, 0)] * self.geometry.extent_count
        self.flushed: State = self.state()
        self.in_flight: State | None = None
        self.number = 0
        self.crashes = 0
        self.cut_chance = self.rng.choice((0.02, 0.1, 0.3))
        self.inside = False
        # Counts down to a kill; 0 = none is due.
        self.calls_to_live = 0
        self.disk.observer = self.observed

    def state(self) -> State:
        """As it would be if everything so far were flushed now, stamps as they are."""
        return tuple(self.blocks), tuple(self.stamps)

    # --- what happens

    def run(self, steps: int) -> None:
        """Random steps; ViolationError at the first broken promise."""
        for _ in range(steps):
            action = self.rng.random()
            if action < 0.55:
                self.change()
            elif action < 0.75:
                self.flush()
            elif action < 0.93:
                if self.region.wants_checkpoint() or self.rng.random() < 0.1:
                    self.checkpoint_step()
            elif action < 0.97:
                self.check_reads()
            else:
                self.go_on_after_a_cut()

    def change(self) -> None:
        """One write or discard, or several writes of one block in one go."""
        rng = self.rng
        total = self.geometry.block_count
        if rng.random() < 0.15:
            self.scatter([rng.randrange(total) for _ in range(rng.choice((1, 3, 8)))])
            return
        count = rng.choice((1, 1, 1, 2, 3, 10, 16, 16, 24, 40))
        offset = rng.randrange(max(1, total - count + 1))
        if count >= 10 and rng.random() < 0.7:
            offset -= offset % min(CHUNK_BLOCKS, self.geometry.blocks_per_extent)
        count = min(count, total - offset)
        if rng.random() < 0.18:
            self.region.discard(offset, count)
            self.blocks[offset : offset + count] = [None] * count
        else:
            data = rng.randbytes(count * BLOCK)
            self.region.write(offset, plain_contexts(data, BLOCK), data)
            for index in range(count):
                self.blocks[offset + index] = data[index * BLOCK : (index + 1) * BLOCK]
        size = self.geometry.blocks_per_extent
        self.dirty.update(range(offset // size, (offset + count - 1) // size + 1))

    def scatter(self, offsets: list[int]) -> None:
        """Writes of one block, in this order, in one go where the region takes them so."""
        data = self.rng.randbytes(len(offsets) * BLOCK)
        contexts = plain_contexts(data, BLOCK)
        at_once = self.region.write_scattered(offsets, contexts, data)
        for index, offset in enumerate(offsets):
            part = data[index * BLOCK : (index + 1) * BLOCK]
            if not at_once:
                self.region.write(offset, contexts[index : index + 1], part)
            self.blocks[offset] = part
            self.dirty.add(offset // self.geometry.blocks_per_extent)

    def flush(self) -> None:
        """A whole flush, with changes in between; now and then one that fails or ends in a kill."""
        self.number += 1
        if self.rng.random() < 0.2:
            self.put_off_flush()
            return
        # A checkpoint that the log's size forces happens within begin_flush, before the freeze.
        work = self.begin_flush()
        stamps = self.put_off | dict.fromkeys(self.dirty, (1, self.number))
        for extent, stamp in stamps.items():
            self.stamps[extent] = stamp
        self.dirty, self.put_off = set(), {}
        self.in_flight = self.state()
        if self.carried_through(work, self.region.finish_flush):
            self.flushed = self.in_flight
            self.in_flight = None

    def put_off_flush(self) -> None:
        """One whose work the next one does."""
        self.region.put_off_flush(self.number, 1)
        self.put_off.update(dict.fromkeys(self.dirty, (1, self.number)))
        self.dirty = set()

    def begin_flush(self) -> FlushWork:
        """The flush with that number."""
        return self.region.begin_flush(self.number, 1)

    def checkpoint_step(self) -> None:
        """One step, with changes in between; now and then one that fails or ends in a kill."""
        work = self.region.begin_checkpoint()
        self.carried_through(work, self.region.finish_checkpoint)

    def carried_through(self, work: Any, finish: Callable[[Any, Exception | None], None]) -> bool:
        """Runs and finishes it. False when the daemon had to be started again over it."""
        # A commit is rare, and the sync that matters most is its last.
        doom = self.rng.random() * (0.3 if isinstance(work, CommitJob) else 1.0)
        if doom < 0.04:
            self.calls_to_live = self.rng.randrange(1, 12)
        elif doom < 0.08:
            countdown = itertools.count(self.rng.randrange(0, 5), -1)
            self.disk.fail_sync = lambda _name: next(countdown) == 0
        try:
            work.run()
        except KilledError:
            self.start_again([self.flushed] + ([self.in_flight] if self.in_flight else []))
            return False
        except DataError as error:
            self.disk.fail_sync = lambda _name: False
            finish(work, error)
            self.check_refusal()
            self.start_again([self.flushed])
            return False
        finally:
            self.calls_to_live = 0
            self.disk.fail_sync = lambda _name: False
        finish(work, None)
        return True

    def check_refusal(self) -> None:
        """After a failure blocks can be read, and neither written nor flushed."""
        found_blocks(self.region)
        for change in (
            lambda: self.region.discard(0, 1),
            lambda: self.region.begin_flush(self.number, 1),
        ):
            try:
                change()
            except DataError:
                continue
            raise ViolationError("a failed sync was followed by a change")

    def start_again(self, allowed: list[State]) -> None:
        """The daemon ends and comes back; the page cache is as it was."""
        self.region.close()
        disk = self.disk
        disk.observer = lambda _action, _name: None
        try:
            region = Region.open(disk, tuning=TUNING)
        except Exception as error:
            raise ViolationError(f"cannot be opened: {error}") from error
        self.take_over(disk, region, self.checked(disk, region, allowed))

    def take_over(self, disk: MemoryDisk, region: Region, found: State) -> None:
        """Goes on with another region."""
        self.disk.observer = lambda _action, _name: None
        self.disk, self.region = disk, region
        disk.observer = self.observed
        self.blocks, self.stamps = list(found[0]), list(found[1])
        self.dirty, self.put_off = set(), {}
        self.flushed, self.in_flight = found, None

    def observed(self, _action: str, _name: str) -> None:
        """After each write, before each sync."""
        if self.inside:
            return
        if self.calls_to_live:
            self.calls_to_live -= 1
            if not self.calls_to_live:
                raise KilledError
        self.inside = True
        try:
            if self.rng.random() < self.cut_chance:
                self.cut()
            if self.region_is_working() and self.rng.random() < 0.15:
                self.change()
        finally:
            self.inside = False

    def region_is_working(self) -> bool:
        """Whether a flush or checkpoint step runs, so that the loop may change blocks meanwhile."""
        return self.region._job is not None

    # --- power cuts

    def image(self) -> MemoryDisk:
        """The disk as a power cut may leave it."""
        rng = self.rng
        chance = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        # Often only one file's writes get out, which is what hurts where an order matters.
        only = rng.choice((None, None, "log", "data", "contexts", "state"))

        def survives(name: str, _sector: int) -> bool:
            if only is not None and not name.startswith(only):
                return False
            return rng.random() < chance

        return self.disk.image(survives)

    def cut(self) -> tuple[MemoryDisk, Region, State]:
        """Opens what is left, and checks it."""
        self.crashes += 1
        disk = self.image()
        try:
            region = Region.open(disk, tuning=TUNING)
        except Exception as error:
            raise ViolationError(f"cannot be opened: {error}") from error
        allowed = [self.flushed] if self.in_flight is None else [self.flushed, self.in_flight]
        return disk, region, self.checked(disk, region, allowed)

    def checked(self, _disk: MemoryDisk, region: Region, allowed: list[State]) -> State:
        """What an opened region holds; see the function."""
        return checked(region, allowed)

    def go_on_after_a_cut(self) -> None:
        """The power cut happens; the region found is used from now on."""
        self.take_over(*self.cut())

    def check_reads(self) -> None:
        """What the session reads is what it wrote."""
        found = found_blocks(self.region)
        if found != self.blocks:
            raise ViolationError("a read differs from what was written")
        live, durable = self.region.chunks.live, self.region.chunks.durable
        apart = set(np.flatnonzero(live != durable).tolist())
        if not apart <= set(self.region.chunks.active_remaps):
            raise ViolationError("the maps differ in a chunk that was not remapped")


def found_blocks(region: Region) -> list[bytes | None]:
    """Every block's content, checked against its context."""
    count = region.definition.geometry.block_count
    contexts, buffers = region.read(0, count)
    data = b"".join(bytes(part) for part in buffers)
    hashes = block_hashes(data, BLOCK)
    found: list[bytes | None] = []
    for index in range(count):
        block = data[index * BLOCK : (index + 1) * BLOCK]
        if contexts[index].any():
            if int(contexts[index, 0]) != hashes[index]:
                raise ViolationError(f"block {index} does not match its context")
            found.append(block)
        else:
            if any(block):
                raise ViolationError(f"block {index} is not zero though never written")
            found.append(None)
    return found


def checked(region: Region, allowed: list[State]) -> State:
    """What an opened region holds; ViolationError unless that is one of the allowed states."""
    found = found_state(region)
    if found not in allowed:
        raise ViolationError(difference(found, allowed[-1]))
    if (region.extent_states().flags != 0).any():
        raise ViolationError("an extent is flagged after a power cut")
    return found


def found_state(region: Region) -> State:
    """What an opened region holds."""
    states = region.extent_states()
    stamps = zip(states.generations.tolist(), states.flushes.tolist(), strict=True)
    return tuple(found_blocks(region)), tuple(stamps)


def difference(found: State, wanted: State) -> str:
    """For people: which blocks and stamps are not as in the newest allowed state."""
    blocks = [
        index
        for index, pair in enumerate(zip(found[0], wanted[0], strict=True))
        if pair[0] != pair[1]
    ]
    stamps = [
        index
        for index, pair in enumerate(zip(found[1], wanted[1], strict=True))
        if pair[0] != pair[1]
    ]
    return f"blocks {blocks} and stamps {stamps} are those of no allowed state"
