"""The snapshots of one region, and how many of them hold each physical chunk.

A snapshot begins *unsettled*: its map is in memory and leads to homes that the log's blocks have
not reached yet. The checkpoint of its log writes those home, and the map to the file `snapshots`;
from then on it is settled, and nothing that it holds is ever written again.

Invariants: `held` counts every snapshot, `fixed` the ones whose homes are final; a physical chunk
with a `held` count is never given out; one with a `fixed` count is never written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from downstaird.core.log_record import ExtentEntries
from downstaird.core.snapshot_entry import SNAPSHOT, SNAPSHOTS_MAX, SnapshotEntries, no_snapshots
from stairlib.model.errors import AlreadyExistsError, LimitError, NotFoundError

U32Array = npt.NDArray[np.uint32]
U16Array = npt.NDArray[np.uint16]
# More places than snapshots: one is used again only after no state file names its last user.
_PLACES = 3 * SNAPSHOTS_MAX


@dataclass(slots=True)
class Unsettled:
    """What a snapshot has until its checkpoint. sequence: of its record. before: ids of logged
    blocks below it belong to the snapshot. chunks, extents: its map and stamps."""

    sequence: int
    before: int
    chunks: U32Array
    extents: ExtentEntries


@dataclass(slots=True)
class Snapshot:
    """One snapshot. place: where in `snapshots` its map is, or will be."""

    id: int
    name: str
    place: int
    generation: int
    flush: int
    unsettled: Unsettled | None = None


class SnapshotTable:
    """All snapshots of a region by name. For the loop's thread."""

    def __init__(self) -> None:
        self.all: dict[str, Snapshot] = {}
        self.held: U16Array = np.zeros(1, dtype=np.uint16)
        self.fixed: U16Array = np.zeros(1, dtype=np.uint16)
        self.next_id = 1
        # Places that a state file which may still be read names.
        self._named: set[int] = set()
        self._named_before: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self.all)

    def ordered(self) -> list[Snapshot]:
        """In the order they were taken."""
        return sorted(self.all.values(), key=lambda snapshot: snapshot.id)

    def unsettled(self) -> list[tuple[Snapshot, Unsettled]]:
        """Those that wait for a checkpoint, oldest first."""
        return [
            (snapshot, snapshot.unsettled)
            for snapshot in self.ordered()
            if snapshot.unsettled is not None
        ]

    def named(self, name: str) -> Snapshot:
        """NotFoundError SNAPSHOT_NOT_FOUND."""
        snapshot = self.all.get(name)
        if snapshot is None:
            there = ", ".join(each.name for each in self.ordered()[:10]) or "none"
            raise NotFoundError(
                "snapshot",
                name[:100],
                f"the region has no snapshot {name[:100]!r} (it has {there}): 'downstaird snapshot "
                "list' names all",
            )
        return snapshot

    def is_there(self, name: str, generation: int, flush: int) -> bool:
        """Whether this very snapshot was taken already. AlreadyExistsError SNAPSHOT_EXISTS when
        another one has the name."""
        found = self.all.get(name)
        if found is None:
            return False
        if (found.generation, found.flush) == (generation, flush):
            return True
        raise AlreadyExistsError(
            f"there is a snapshot {name!r} already, of flush {found.flush} in generation "
            f"{found.generation}: choose another name, or delete that one",
            reason="SNAPSHOT_EXISTS",
            flush=str(found.flush),
            generation=str(found.generation),
        )

    def entry_for(self, name: str, generation: int, flush: int) -> SnapshotEntries:
        """What a new one is recorded as. LimitError SNAPSHOT_LIMIT."""
        if len(self.all) >= SNAPSHOTS_MAX:
            raise LimitError(
                f"the region has {len(self.all)} snapshots, and {SNAPSHOTS_MAX} is the most: "
                "delete one with 'downstaird snapshot delete'",
                reason="SNAPSHOT_LIMIT",
                limit=str(SNAPSHOTS_MAX),
            )
        used = {snapshot.place for snapshot in self.all.values()}
        used |= self._named | self._named_before
        place = next(place for place in range(_PLACES) if place not in used)
        entry: SnapshotEntries = np.zeros(1, dtype=SNAPSHOT)
        entry[0] = (self.next_id, place, 0, generation, flush, name.encode())
        return entry

    def entries(self, snapshots: Iterable[Snapshot]) -> SnapshotEntries:
        """As a state lists them."""
        rows = [
            (each.id, each.place, 0, each.generation, each.flush, each.name.encode())
            for each in snapshots
        ]
        return np.array(rows, dtype=SNAPSHOT) if rows else no_snapshots()

    def add(self, snapshot: Snapshot, chunks: U32Array) -> None:
        """Takes a snapshot in; what its map leads to is held from now on."""
        self.all[snapshot.name] = snapshot
        self.next_id = max(self.next_id, snapshot.id + 1)
        self._named.add(snapshot.place)
        self.count("held", chunks, 1)
        if snapshot.unsettled is None:
            self.count("fixed", chunks, 1)

    def settle(self, snapshot: Snapshot) -> None:
        """All of its homes are as they will stay."""
        assert snapshot.unsettled is not None
        self.count("fixed", snapshot.unsettled.chunks, 1)

    def remove(self, snapshot: Snapshot, chunks: U32Array) -> U32Array:
        """Lets go of a snapshot; the physical chunks that no other one holds."""
        del self.all[snapshot.name]
        self.count("held", chunks, -1)
        if snapshot.unsettled is None:
            self.count("fixed", chunks, -1)
        there = chunks[chunks != 0]
        free: U32Array = there[self.held[there] == 0]
        return free

    def count(self, which: str, chunks: U32Array, change: int) -> None:
        """Changes one of the two counts of each physical chunk by `change`."""
        top = int(chunks.max(initial=0)) + 1
        if top > len(self.held):
            room = np.zeros(top + top // 2 - len(self.held), dtype=np.uint16)
            self.held = np.concatenate((self.held, room))
            self.fixed = np.concatenate((self.fixed, room))
        counts = self.held if which == "held" else self.fixed
        there = chunks[chunks != 0]
        # Within one map no physical chunk is named twice.
        if change > 0:
            counts[there] += 1
        else:
            counts[there] -= 1

    def is_held(self, physical: int) -> bool:
        """Whether a snapshot needs the chunk."""
        return physical < len(self.held) and bool(self.held[physical])

    def is_fixed(self, physical: int) -> bool:
        """Whether the chunk must not be written."""
        return physical < len(self.fixed) and bool(self.fixed[physical])

    def state_stored(self, stored: Iterable[Snapshot]) -> None:
        """A new state file is durable; the one before it may be read once more, should that one be
        damaged."""
        self._named_before = self._named
        self._named = {snapshot.place for snapshot in stored}
        self._named |= {snapshot.place for snapshot in self.all.values()}
