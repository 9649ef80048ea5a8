"""What a reconciliation has to do, told from the members' stamps: per extent, which copy wins, and
who is filled from it. The rules are in `reconcile.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from stairlib.model.errors import DataError
from stairlib.wire.frame import FLAG_DIRTY, FLAG_FAULTED, FLAG_INCOMPLETE, FLAG_TOWARDS
from vmmd.upstairs.core.events import ExtentStamps
from vmmd.upstairs.core.slot import Member

_DAMAGED, _BLANK, _WHOLE = range(3)
_SLOTS = 3
_Stamp = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class ReconcilePlan:
    """`source`: per extent, place in `members`; `stamps`: that copy's generation and flush.
    `extents`: per member, what it has to be sent; of these `doubtful` may be equal all the same.
    Per member and extent, `whole`: its copy could serve; `as_new`: it is not the source, is whole
    and of the source's stamp, so that nothing flushed is lost by taking it in its place."""

    members: list[Member]
    source: npt.NDArray[np.int64]
    stamps: tuple[_Stamp, _Stamp]
    extents: list[npt.NDArray[np.int64]]
    doubtful: list[npt.NDArray[np.int64]]
    whole: npt.NDArray[np.bool_]
    as_new: npt.NDArray[np.bool_]
    generation_max: int
    flush_max: int

    def without(self, equal: list[npt.NDArray[np.int64]]) -> ReconcilePlan:
        """The same, but that each member is not sent these."""
        left = [np.setdiff1d(one, same) for one, same in zip(self.extents, equal, strict=True)]
        return replace(self, extents=left, doubtful=[one[:0] for one in left])

    @property
    def empty(self) -> bool:
        """All members are equal."""
        return not any(len(extents) for extents in self.extents)

    def filled(self) -> npt.NDArray[np.bool_]:
        """Per member and extent, whether it is to be sent it."""
        filled = np.zeros((len(self.members), len(self.source)), dtype=np.bool_)
        for row, extents in enumerate(self.extents):
            filled[row, extents] = True
        return filled

    def alone(self) -> npt.NDArray[np.bool_]:
        """Per extent, whether its source is the only copy that is not replaced by another."""
        alone: npt.NDArray[np.bool_] = self.filled().sum(axis=0) == len(self.members) - 1
        return alone

    def is_source(self, member: Member) -> bool:
        """Another member is filled from this one."""
        row = self.members.index(member)
        needed = [self.source[extents] for extents in self.extents if len(extents)]
        return any(bool((sources == row).any()) for sources in needed)

    def is_only_copy(self, member: Member) -> bool:
        """Of some extent, all other members may have been marked by now."""
        if member not in self.members:
            return False
        return bool((self.alone() & (self.source == self.members.index(member))).any())


def trust_regions(members: list[Member]) -> None:
    """Decides whose stamps count: regions that were ours, or all of them in a new set.

    A blank region is not believed beside one that holds stamps: it may have been promoted for a
    replacement that went no further. It stands in only for extents of which is known that nothing
    was ever flushed.
    """
    ours = [m for m in members if m.owned_before or m.trusted_region == m.region_id]
    if not any(_written(m) or _incomplete(m) for m in members):
        # All blank, hence equal: a new set, however far its first activation came before.
        ours = []
    for member in members:
        others = [m for m in ours if m is not member]
        doubtful = _blank(member) and any(_written(m) for m in others)
        if not ours or (member in ours and not doubtful):
            member.trusted_region = member.region_id


def _incomplete(member: Member) -> bool:
    return member.stamps is not None and bool((member.stamps.flags & FLAG_INCOMPLETE).any())


def _blank(member: Member) -> bool:
    return not (_written(member) or _incomplete(member))


def _written(member: Member) -> bool:
    return member.stamps is not None and bool(member.stamps.generations.any())


def plan(
    members: list[Member], extent_count: int, unreadable: npt.NDArray[np.bool_] | None = None
) -> ReconcilePlan:
    """Compares the members' stamps; copies that are `unreadable`, per member and extent, are never
    the best. DataError when an extent has no whole copy, or only one that is older than what
    another member was being filled from."""
    shape = (len(members), extent_count)
    quality = np.full(shape, _WHOLE, dtype=np.uint8)
    generations = np.zeros(shape, dtype=np.uint64)
    flushes = np.zeros(shape, dtype=np.uint64)
    dirty = np.zeros(shape, dtype=np.uint8)
    # No write has failed in it.
    sound = np.ones(shape, dtype=np.uint8)
    needs = _Needs(extent_count, complete=len(members) >= _SLOTS)
    for row, member in enumerate(members):
        stamps = member.stamps
        if stamps is None or member.trusted_region != member.region_id:
            quality[row] = _BLANK if stamps is not None and _blank(member) else _DAMAGED
            continue
        needs.learn(stamps)
        generations[row], flushes[row] = stamps.generations, stamps.flushes
        dirty[row] = stamps.flags & FLAG_DIRTY
        if member.suspect_extents:
            sound[row, sorted(member.suspect_extents)] = 0
        quality[row, (stamps.flags & ~np.uint8(FLAG_DIRTY)) != 0] = _DAMAGED
    if unreadable is not None:
        quality[unreadable] = _DAMAGED
    keys = (quality, generations, flushes, sound, dirty)
    source = _best_rows(keys)
    columns = np.arange(extent_count)
    best = (generations[source, columns], flushes[source, columns])
    needs.check(quality[source, columns], best)
    doubtful = (dirty[source, columns] != 0) | (sound[source, columns] == 0)
    whole = quality[source, columns] == _WHOLE
    extents, perhaps = [], []
    for row in range(len(members)):
        differs = doubtful.copy()
        for key in keys:
            differs |= key[row] != key[source, columns]
        differs &= source != row
        extents.append(np.flatnonzero(differs))
        alike = differs & whole
        for key in (quality, generations, flushes, dirty):
            alike &= key[row] == key[source, columns]
        perhaps.append(np.flatnonzero(alike))
    as_new = quality == _WHOLE
    as_new &= (generations == best[0]) & (flushes == best[1])
    as_new[source, columns] = False
    newest = int(generations.max()), int(flushes.max())
    return ReconcilePlan(
        members, source, best, extents, perhaps, quality == _WHOLE, as_new, *newest
    )


class _Needs:
    """Per extent, what the marks of interrupted fillings demand of the copy that is to serve."""

    def __init__(self, extent_count: int, *, complete: bool) -> None:
        # Without all members, one that is away may hold what nobody here knows of.
        self._complete = complete
        self._generations = np.zeros(extent_count, dtype=np.uint64)
        self._flushes = np.zeros(extent_count, dtype=np.uint64)
        # A mark tells what it was being filled towards; or there is one that does not.
        self._told = np.zeros(extent_count, dtype=np.bool_)
        self._untold = np.zeros(extent_count, dtype=np.bool_)

    def learn(self, stamps: ExtentStamps) -> None:
        """One member's marks."""
        marked = (stamps.flags & FLAG_INCOMPLETE) != 0
        told = marked & ((stamps.flags & FLAG_TOWARDS) != 0)
        later = told & _later(
            (stamps.generations, stamps.flushes), (self._generations, self._flushes)
        )
        self._generations[later] = stamps.generations[later]
        self._flushes[later] = stamps.flushes[later]
        self._told |= told
        # Also where a damaged copy says that something was flushed.
        self._untold |= (marked & ~told) | ((stamps.flags & FLAG_FAULTED) != 0)

    def check(self, quality: npt.NDArray[np.uint8], best: tuple[_Stamp, _Stamp]) -> None:
        """DataError NO_WHOLE_COPY unless the best copies will do."""
        zero = (self._generations == 0) & (self._flushes == 0)
        unflushed = self._told & ~self._untold & zero
        if not self._complete:
            unflushed[:] = False
        missing = (quality == _DAMAGED) | ((quality == _BLANK) & ~unflushed)
        self._refuse(missing, "have no whole copy on any member", best)
        older = _later((self._generations, self._flushes), best)
        self._refuse(
            older, "have only copies that are older than what another was being filled from", best
        )

    def _refuse(self, wrong: npt.NDArray[np.bool_], what: str, best: tuple[_Stamp, _Stamp]) -> None:
        extents = np.flatnonzero(wrong)
        if not len(extents):
            return
        extent = int(extents[0])
        needed = (int(self._generations[extent]), int(self._flushes[extent]))
        told = ""
        if any(needed):
            told = (
                f", which was filled from generation {needed[0]}, flush {needed[1]}; the newest "
                f"whole one here is of generation {int(best[0][extent])}, flush "
                f"{int(best[1][extent])}"
            )
        raise DataError(
            f"{len(extents)} extents {what}, the first is extent {extent}{told}: bring back a "
            "member that holds them, such as the target that was replaced last; nothing is lost "
            "while it exists",
            reason="NO_WHOLE_COPY",
            extent=str(extent),
            needed_generation=str(needed[0]),
            needed_flush=str(needed[1]),
        )


def _later(one: tuple[_Stamp, _Stamp], other: tuple[_Stamp, _Stamp]) -> npt.NDArray[np.bool_]:
    later: npt.NDArray[np.bool_] = one[0] > other[0]
    later |= (one[0] == other[0]) & (one[1] > other[1])
    return later


def _best_rows(keys: tuple[npt.NDArray[np.unsignedinteger], ...]) -> npt.NDArray[np.int64]:
    rows, count = keys[0].shape
    columns = np.arange(count)
    best = np.zeros(count, dtype=np.int64)
    for row in range(1, rows):
        better = np.zeros(count, dtype=np.bool_)
        equal = np.ones(count, dtype=np.bool_)
        for key in keys:
            best_key = key[best, columns]
            better |= equal & (key[row] > best_key)
            equal &= key[row] == best_key
        best[better] = row
    return best
