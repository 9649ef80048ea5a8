"""A seeded workload on a small region, which notes for every moment what the region may hold.

Writes, whole chunks, discards, flushes, checkpoints in steps, promotions, kills of the daemon with
the page cache intact; further changes while a flush or a checkpoint's step runs, as the daemon's
loop makes them.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass
from typing import Any

from downstaird.core.engine import Ownership, RegionDefinition
from downstaird.core.layout import Tuning
from downstaird.core.region import Region
from stairlib.model.context import plain_contexts
from stairlib.model.errors import InvalidRequestError
from stairlib.model.geometry import Geometry
from tests.crashes.recording import RecordingDisk
from tests.property.region_crashes import (
    BLOCK,
    KilledError,
    State,
    ViolationError,
    difference,
    found_state,
)

CHUNK_BLOCKS = 4
# Small, so that what is between two syncs can be enumerated; the second has a short last chunk.
# With 16 blocks a chunk, in the third, a context block is two sectors and can tear.
GEOMETRIES = ((Geometry(BLOCK, 8, 2), 4), (Geometry(BLOCK, 6, 3), 4), (Geometry(BLOCK, 16, 2), 16))
TUNING = Tuning(
    large_bytes=CHUNK_BLOCKS * BLOCK,
    arena_bytes=12 * BLOCK,
    log_bytes=2 * 4096,
    log_bytes_max=6 * 4096,
    fresh_context_bytes=4 * CHUNK_BLOCKS * 32,
    cached_context_bytes=2 * CHUNK_BLOCKS * 32,
    step_blocks=3,
    step_growth=2,
    log_zero_bytes=4096,
)


@dataclass(frozen=True, slots=True)
class Expected:
    """states: one of these is found. generations: of the owner, one of these. absent: there may be
    no region yet."""

    states: tuple[State, ...]
    generations: tuple[int, ...]
    absent: bool = False
    what: str = ""

    def __str__(self) -> str:
        return self.what

    def check(self, region: Region) -> State:
        """What it holds; ViolationError unless it may."""
        found = found_state(region)
        if found not in self.states:
            raise ViolationError(difference(found, self.states[-1]))
        if region.ownership.generation not in self.generations:
            raise ViolationError(
                f"the owner's generation is {region.ownership.generation}, not one of "
                f"{self.generations}"
            )
        if (region.extent_states().flags != 0).any():
            raise ViolationError("an extent is flagged after a power cut")
        return found


def opened(disk: Any, expected: Expected) -> Region | None:
    """Opens what power loss left. None when there is no region, and need not be."""
    try:
        return Region.open(disk, tuning=TUNING)
    except InvalidRequestError as error:
        if expected.absent and error.reason == "NOT_A_REGION":
            return None
        raise ViolationError(f"cannot be opened: {error}") from error
    except Exception as error:
        raise ViolationError(f"cannot be opened: {error}") from error


class Workload:
    """On an empty disk it makes the region; on another it goes on with what is there."""

    def __init__(
        self, disk: RecordingDisk, seed: object, *, found: tuple[State, int] | None = None
    ) -> None:
        self.rng = random.Random(f"crashes {seed}")
        self.disk = disk
        self.inside = False
        self.generation = 0
        self.in_flight: State | None = None
        if found is None:
            geometry, chunk_blocks = self.rng.choice(GEOMETRIES)
            blank: State = (
                (None,) * geometry.block_count,
                ((0, 0),) * geometry.extent_count,
            )
            self.flushed = blank
            self._expect("a blank region, or none", absent=True)
            definition = RegionDefinition(
                uuid.UUID(int=self.rng.getrandbits(128)), geometry, cipher="", format_version=1
            )
            self.region = Region.create(
                disk, definition, tuning=TUNING, chunk_bytes=chunk_blocks * BLOCK
            )
        else:
            self.flushed, self.generation = found
            self._expect("what was found at first")
            self.region = Region.open(disk, tuning=TUNING)
        self.geometry = self.region.definition.geometry
        self._take(self.flushed)
        self.number = max(flush for _, flush in self.flushed[1])
        self._expect("what is there at the beginning")
        disk.after = self._between

    def _take(self, state: State) -> None:
        self.blocks, self.stamps = list(state[0]), list(state[1])
        self.dirty: set[int] = set()
        # What the stamps of these will be, unless they are written again before the next flush.
        self.put_off: dict[int, tuple[int, int]] = {}
        self.flushed, self.in_flight = state, None

    def _expect(self, what: str, *, absent: bool = False, promoted: int = 0) -> None:
        states = (self.flushed,) if self.in_flight is None else (self.flushed, self.in_flight)
        generations = (self.generation, promoted) if promoted else (self.generation,)
        self.disk.expect(Expected(states, generations, absent, what))

    def run(self, steps: int) -> None:
        """Random steps, and a flush in the end."""
        for _ in range(steps):
            draw = self.rng.random()
            if draw < 0.5:
                self.change()
            elif draw < 0.75:
                self.flush()
            elif draw < 0.95:
                if self.region.wants_checkpoint() or self.rng.random() < 0.3:
                    self._carry(self.region.begin_checkpoint(), self.region.finish_checkpoint)
            else:
                self.promote()
        self.flush()

    def change(self) -> None:
        """One write or discard."""
        rng = self.rng
        total = self.geometry.block_count
        count = rng.choice((1, 1, 1, 2, 3, 4, 4, self.region.layout.chunk_blocks))
        offset = rng.randrange(total - count + 1)
        if count >= CHUNK_BLOCKS:
            within = offset % self.geometry.blocks_per_extent
            offset -= within % self.region.layout.chunk_blocks
        if rng.random() < 0.2:
            self.region.discard(offset, count)
            self.blocks[offset : offset + count] = [None] * count
        else:
            data = rng.randbytes(count * BLOCK)
            self.region.write(offset, plain_contexts(data, BLOCK), data)
            for index in range(count):
                self.blocks[offset + index] = data[index * BLOCK : (index + 1) * BLOCK]
        size = self.geometry.blocks_per_extent
        self.dirty.update(range(offset // size, (offset + count - 1) // size + 1))

    def flush(self) -> None:
        """To its end, unless the daemon is killed in it; or one whose work the next one does."""
        self.number += 1
        if self.rng.random() < 0.2:
            self.region.put_off_flush(self.number, 1)
            self.put_off.update(dict.fromkeys(self.dirty, (1, self.number)))
            self.dirty = set()
            return
        work = self.region.begin_flush(self.number, 1)
        stamps = self.put_off | dict.fromkeys(self.dirty, (1, self.number))
        for extent, stamp in stamps.items():
            self.stamps[extent] = stamp
        self.dirty, self.put_off = set(), {}
        self.in_flight = tuple(self.blocks), tuple(self.stamps)
        self._expect(f"flush {self.number} or the one before")
        if self._carry(work, self.region.finish_flush):
            self.flushed, self.in_flight = self.in_flight, None
            self._expect(f"flush {self.number}")

    def promote(self) -> None:
        """A new owner, with a higher generation."""
        higher = self.generation + 1
        self._expect(f"generation {higher} or the one before", promoted=higher)
        self.inside = True
        owner = uuid.UUID(int=self.rng.getrandbits(128))
        self.region.promote(Ownership(owner, owner, higher))
        self.inside = False
        self.generation = higher
        self._expect(f"generation {higher}")

    def _carry(self, work: Any, finish: Any) -> bool:
        kill = self.rng.randrange(1, 6) if self.rng.random() < 0.08 else 0
        self.calls_to_live = kill
        try:
            work.run()
        except KilledError:
            self._start_again()
            return False
        finally:
            self.calls_to_live = 0
        finish(work, None)
        return True

    calls_to_live = 0

    def _start_again(self) -> None:
        """The daemon was killed and comes back; the page cache is as it was."""
        self.calls_to_live = 0
        self.inside = True
        self.region.close()
        self.region = Region.open(self.disk, tuning=TUNING)
        states = (self.flushed,) if self.in_flight is None else (self.flushed, self.in_flight)
        found = Expected(states, (self.generation,)).check(self.region)
        self._take(found)
        self.inside = False
        self._expect("what the restarted daemon found")

    def _between(self) -> None:
        """Behind each operation."""
        if self.inside:
            return
        if self.calls_to_live:
            self.calls_to_live -= 1
            if not self.calls_to_live:
                raise KilledError
        if self.region._job is not None and self.rng.random() < 0.2:
            self.inside = True
            try:
                self.change()
            finally:
                self.inside = False
