"""Per extent: the stamp of the last flush, and its marks.

Two copies: what callers see, and `durable`, which is what the log and the state files say and
what a checkpoint stores. An extent is dirty from its first write after a freeze until the flush
that covers it has succeeded.

An incomplete extent is told and stored with the stamp it is being filled towards; that of its own
flushes is kept in memory until it is whole, since a flush that came here may be missing elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from downstaird.core.engine import ExtentStates, Marks
from downstaird.core.log_record import EXTENT, ExtentEntries
from stairlib import native
from stairlib.model.errors import DataError
from stairlib.wire.frame import FLAG_DIRTY, FLAG_FAULTED, FLAG_INCOMPLETE, FLAG_TOWARDS

_UNMARKED = np.uint32(0xFFFFFFFF ^ (FLAG_INCOMPLETE | FLAG_TOWARDS))


def _stamped(
    table: ExtentEntries, extents: list[int], generation: int, number: int
) -> ExtentEntries:
    """Copies of those entries, with that stamp."""
    if native.compiled:
        return np.frombuffer(native.stamped(table, extents, generation, number), dtype=EXTENT)
    entries = table.take(extents)
    entries["generation"] = generation
    entries["flush"] = number
    return entries


def _store(table: ExtentEntries, entries: ExtentEntries) -> None:
    """Puts entries in their places."""
    if native.compiled:
        native.stored(table, entries)
    else:
        table.put(entries["extent"], entries)


class ExtentTable:
    """Stamps and marks of all extents, in order."""

    def __init__(self, count: int) -> None:
        self.durable: ExtentEntries = np.zeros(count, dtype=EXTENT)
        self.durable["extent"] = np.arange(count, dtype=np.uint32)
        self._seen: ExtentEntries = self.durable.copy()
        # As `begin_repair` made them, of the extents that are incomplete.
        self._marks: ExtentEntries = self.durable.copy()
        # What the flush in progress makes of `_seen`.
        self._stamped: ExtentEntries = self.durable[:0]
        self._active: set[int] = set()
        # Touched before a flush that was put off, and not since: the stamps these are to get.
        self._put_off: dict[int, tuple[int, int]] = {}
        self._frozen: set[int] = set()
        # Copied by a repair: the next flush clears their incomplete mark and stores their stamp.
        self._copied: set[int] = set()
        self._cleared: set[int] = set()
        # Whether there may be incomplete ones.
        self._filling = False
        # Extents whose stored content cannot all be read: neither read nor written until repaired.
        self.damaged: set[int] = set()
        # What was found, of those of them where it was found since the region was opened.
        self._found: dict[int, DataError] = {}

    def adopt(self, durable: ExtentEntries) -> None:
        """Takes over what recovery found."""
        # A program that knows no such mark clears the other bit alone when the extent is whole.
        whole = (durable["flags"] & FLAG_INCOMPLETE) == 0
        durable["flags"][whole] &= _UNMARKED
        self.durable = durable
        self._seen = durable.copy()
        self._marks = durable.copy()
        self._filling = bool(self.incomplete_count())
        self.damaged = set(np.flatnonzero(durable["flags"] & FLAG_FAULTED).tolist())

    def states(self) -> ExtentStates:
        """Copies, with the dirty bit put in."""
        seen = self._seen
        flags = seen["flags"].astype(np.uint8)
        if self._active or self._frozen or self._put_off:
            flags[[*self._active, *self._frozen, *self._put_off]] |= FLAG_DIRTY
        marked = (flags & FLAG_INCOMPLETE) != 0
        if np.count_nonzero(marked):
            seen = np.where(marked, self._marks, seen)
        return ExtentStates(seen["generation"].copy(), seen["flush"].copy(), flags)

    @property
    def touched(self) -> set[int]:
        """Those that `touch` was told of since the last flush began; a live view."""
        return self._active

    def touch(self, extent: int) -> None:
        """The session changed something in the extent."""
        self._active.add(extent)

    def touch_all(self, extents: Iterable[int]) -> None:
        """The same for several."""
        self._active.update(extents)

    def fault(self, extent: int, found: DataError | None = None) -> None:
        """Something stored for the extent is damaged. found: names file and offset."""
        if found is not None:
            self._found[extent] = found
        for table in (self._seen, self._marks, self.durable):
            table["flags"][extent] |= FLAG_FAULTED
        self.damaged.add(extent)

    def refusal(self, extent: int) -> DataError:
        """What who asks for the extent is told: EXTENT_FAULTED, with what was found."""
        found = self._found.get(extent)
        why = f": {found.message}" if found is not None else ""
        metadata = found.metadata if found is not None else {}
        return DataError(
            f"extent {extent} is damaged and waits for repair from another replica{why}",
            reason="EXTENT_FAULTED",
            **{**metadata, "extent": str(extent)},
        )

    def refuse_damaged(self, first: int, last: int) -> None:
        """DataError EXTENT_FAULTED when one of these extents is damaged."""
        for extent in range(first, last + 1):
            if extent in self.damaged:
                raise self.refusal(extent)

    def incomplete_count(self) -> int:
        """How many have been marked by a repair that is not flushed to the end."""
        return int(np.count_nonzero(self._seen["flags"] & FLAG_INCOMPLETE))

    def begin_repair(self, marks: Marks) -> ExtentEntries:
        """Marks extents incomplete and not dirty, with the stamps they are filled towards; returns
        the entries to store. What is not flushed yet of earlier writes to them is not to be
        stamped: the source decides what they hold."""
        extents = marks["extent"]
        entries: ExtentEntries = np.zeros(len(extents), dtype=EXTENT)
        entries["extent"] = extents
        entries["flags"] = np.where(marks["told"], FLAG_INCOMPLETE | FLAG_TOWARDS, FLAG_INCOMPLETE)
        entries["generation"], entries["flush"] = marks["generation"], marks["flush"]
        self._seen[extents] = self._marks[extents] = entries
        self._stamped = entries
        self._filling = True
        numbers = extents.tolist()
        self._active.difference_update(numbers)
        self._copied.difference_update(numbers)
        self.damaged.difference_update(numbers)
        for extent in numbers:
            self._found.pop(extent, None)
            self._put_off.pop(extent, None)
        return entries

    def copied(self, extent: int, generation: int, number: int) -> None:
        """Raises the stamp to (generation, number) if that is later; the next flush clears the
        mark."""
        self._raise_to(extent, (generation, number))
        self._copied.add(extent)

    def _raise_to(self, extent: int, stamp: tuple[int, int]) -> None:
        seen = self._seen[extent]
        if stamp > (int(seen["generation"]), int(seen["flush"])):
            seen["generation"], seen["flush"] = stamp

    def put_off(self, generation: int, number: int) -> None:
        """What was touched so far, and is not again by then, gets this stamp with the next
        flush: the extent holds then what it held at this one."""
        stamp = (generation, number)
        for extent in self._active:
            self._put_off[extent] = stamp
        self._active.clear()

    def put_off_no_more(self) -> None:
        """All that was touched gets the stamp of the next flush."""
        self._active.update(self._put_off)
        self._put_off.clear()

    def freeze(self, generation: int, number: int) -> ExtentEntries:
        """Begins a flush: the entries it is to store."""
        assert not self._frozen
        earlier, self._put_off = self._put_off, {}
        for extent in self._active.intersection(earlier):
            del earlier[extent]
        self._active.update(earlier)
        self._frozen, self._active = self._active, set()
        self._cleared, self._copied = self._copied, set()
        extents = sorted(self._frozen | self._cleared)
        entries = _stamped(self._seen, extents, generation, number)
        if earlier:
            places = [index for index, extent in enumerate(extents) if extent in earlier]
            stamps = [earlier[extents[index]] for index in places]
            entries["generation"][places], entries["flush"][places] = zip(*stamps, strict=True)
        if self._cleared:
            copied = [extent not in self._frozen for extent in extents]
            seen = self._seen.take(extents)
            entries["generation"][copied] = seen["generation"][copied]
            entries["flush"][copied] = seen["flush"][copied]
            done = [extent in self._cleared for extent in extents]
            entries["flags"][done] &= _UNMARKED
        self._stamped = entries
        if self._filling:
            marked = (entries["flags"] & FLAG_INCOMPLETE) != 0
            entries = entries.copy()
            entries[marked] = self._marks[entries["extent"][marked]]
        return entries

    def publish(self, entries: ExtentEntries) -> None:
        """The entries are durable. Stamps that a copy raised meanwhile stay."""
        raised = {
            extent: (int(self._seen["generation"][extent]), int(self._seen["flush"][extent]))
            for extent in self._copied
        }
        _store(self.durable, entries)
        _store(self._seen, self._stamped)
        for extent, stamp in raised.items():
            self._raise_to(extent, stamp)
        if self.damaged:
            # Damage found while the flush ran is not in the entries.
            for extent in self.damaged.intersection(entries["extent"].tolist()):
                self.fault(extent)
        if self._cleared:
            self._filling = bool(self.incomplete_count())
        self._end_freeze()

    def fail(self) -> None:
        """The flush failed: what it covered is flagged faulted, though it can still be read."""
        self._seen["flags"][list(self._frozen)] |= FLAG_FAULTED
        self._end_freeze()

    def _end_freeze(self) -> None:
        self._frozen = set()
        self._cleared = set()
