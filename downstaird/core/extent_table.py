"""Per extent: the stamp of the last flush, and its marks.

Two copies: what callers see, and `durable`, which is what the log and the state files say and
what a checkpoint stores. An extent is dirty from its first write after a freeze until the flush
that covers it has succeeded.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from downstaird.core.engine import FLAG_DIRTY, FLAG_FAULTED, FLAG_INCOMPLETE, ExtentStates
from downstaird.core.log_record import EXTENT, ExtentEntries

_DURABLE_FLAGS = FLAG_INCOMPLETE | FLAG_FAULTED


class ExtentTable:
    """Stamps and marks of all extents, in order."""

    def __init__(self, count: int) -> None:
        self.durable: ExtentEntries = np.zeros(count, dtype=EXTENT)
        self.durable["extent"] = np.arange(count, dtype=np.uint32)
        self._generations = np.zeros(count, dtype=np.uint64)
        self._flushes = np.zeros(count, dtype=np.uint64)
        self._marks = np.zeros(count, dtype=np.uint8)
        self._active = np.zeros(count, dtype=np.bool_)
        self._frozen = np.zeros(count, dtype=np.bool_)
        # Copied by a repair: the next flush clears their incomplete mark and stores their stamp.
        self._copied: set[int] = set()
        self._cleared: set[int] = set()
        # Extents whose stored content cannot all be read: neither read nor written until repaired.
        self.damaged: set[int] = set()

    def adopt(self, durable: ExtentEntries) -> None:
        """Takes over what recovery found."""
        self.durable = durable
        self._generations[:] = durable["generation"]
        self._flushes[:] = durable["flush"]
        self._marks[:] = durable["flags"] & _DURABLE_FLAGS
        self.damaged = set(np.flatnonzero(self._marks & FLAG_FAULTED).tolist())

    def states(self) -> ExtentStates:
        """Copies, with the dirty bit put in."""
        flags = self._marks.copy()
        flags[self._active | self._frozen] |= FLAG_DIRTY
        return ExtentStates(self._generations.copy(), self._flushes.copy(), flags)

    def touch(self, extent: int) -> None:
        """The session changed something in the extent."""
        self._active[extent] = True

    def fault(self, extent: int) -> None:
        """Something stored for the extent is damaged."""
        self._marks[extent] |= FLAG_FAULTED
        self.durable["flags"][extent] |= FLAG_FAULTED
        self.damaged.add(extent)

    def is_incomplete(self, extent: int) -> bool:
        """Whether a repair into it has begun and is not flushed to the end."""
        return bool(self._marks[extent] & FLAG_INCOMPLETE)

    def incomplete_count(self) -> int:
        """How many are."""
        return int(np.count_nonzero(self._marks & FLAG_INCOMPLETE))

    def begin_repair(self, extents: npt.NDArray[np.uint32]) -> ExtentEntries:
        """Marks them incomplete and not dirty, stamps reset; returns the entries to store. What is
        not flushed yet of earlier writes to them is not to be stamped: the source decides what
        they hold."""
        self._marks[extents] = FLAG_INCOMPLETE
        self._generations[extents] = 0
        self._flushes[extents] = 0
        self._active[extents] = False
        self._copied.difference_update(extents.tolist())
        self.damaged.difference_update(extents.tolist())
        return self._entries(extents)

    def copied(self, extent: int, generation: int, number: int) -> None:
        """Raises the stamp to (generation, number) if that is later; the next flush clears the
        mark."""
        own = (int(self._generations[extent]), int(self._flushes[extent]))
        stamp = max(own, (generation, number))
        self._generations[extent], self._flushes[extent] = stamp
        self._copied.add(extent)

    def freeze(self, generation: int, number: int) -> ExtentEntries:
        """Begins a flush: the entries it is to store."""
        assert not self._frozen.any()
        self._frozen, self._active = self._active, self._frozen
        self._cleared, self._copied = self._copied, set()
        extents = np.flatnonzero(self._frozen)
        if self._cleared:
            extents = np.union1d(extents, np.fromiter(self._cleared, dtype=np.int64))
        entries = self._entries(extents)
        dirty = self._frozen[extents]
        entries["generation"][dirty] = generation
        entries["flush"][dirty] = number
        if self._cleared:
            done = np.isin(extents, np.fromiter(self._cleared, dtype=np.int64))
            entries["flags"][done] &= np.uint32(~FLAG_INCOMPLETE & 0xFF)
        return entries

    def publish(self, entries: ExtentEntries) -> None:
        """The entries are durable. Stamps that a copy raised meanwhile stay."""
        self.durable[entries["extent"]] = entries
        stamped = entries[self._frozen[entries["extent"]]]
        raised = {
            extent: (int(self._generations[extent]), int(self._flushes[extent]))
            for extent in self._copied
        }
        self._generations[stamped["extent"]] = stamped["generation"]
        self._flushes[stamped["extent"]] = stamped["flush"]
        for extent, stamp in raised.items():
            if stamp > (int(self._generations[extent]), int(self._flushes[extent])):
                self._generations[extent], self._flushes[extent] = stamp
        if self._cleared:
            done = np.fromiter(self._cleared, dtype=np.int64)
            self._marks[done] &= np.uint8(~FLAG_INCOMPLETE & 0xFF)
        self._end_freeze()

    def fail(self) -> None:
        """The flush failed: what it covered is flagged faulted, though it can still be read."""
        self._marks[self._frozen] |= FLAG_FAULTED
        self._end_freeze()

    def _end_freeze(self) -> None:
        self._frozen[:] = False
        self._cleared = set()

    def _entries(self, extents: npt.NDArray[np.integer]) -> ExtentEntries:
        entries = np.zeros(len(extents), dtype=EXTENT)
        entries["extent"] = extents
        entries["flags"] = self._marks[extents]
        entries["generation"] = self._generations[extents]
        entries["flush"] = self._flushes[extents]
        return entries
