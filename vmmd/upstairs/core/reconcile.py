"""Reconciliation: three members that may differ become equal before they serve.

Per extent the best copy wins: a whole one, then the higher generation, the higher flush number, one
without a failed write, dirty before clean, the lower slot. A stamp counts for more than a failed
write: once a write has failed, its daemon lets no flush of that session succeed, so the stamp is of
one before it, and an older copy lacks what was flushed since. Copies that are not equal to the
best are filled from it; of a dirty one, or one with a failed write, those of the same stamp too,
unless they turn out to be equal block for block:

 0. EXTENT_DIGEST of these to all: what is equal is whole, is left as it is, and may be a source;
 1. REPAIR_BEGIN to the destinations: their bad extents are durably marked, so that a crash from
    here on can not make one a source. The mark keeps the stamp of the source: should that one be
    lost before the copy is whole, no older copy may take its place as if nothing had happened;
 2. FLUSH: the sources' dirty extents get a stamp;
 3. EXTENT_COPY per destination and extent, from another equal copy if the source can not read it;
 4. FLUSH, then REPAIR_END to the destinations.

A source that has nothing unflushed is not asked to flush: it may be one that can not write any
more (its disk is full, or a sync failed), and still be the only one that has what the others need.

The loss of any member ends it; everybody connects again and the stamps are compared anew. Extents
that were done are equal by then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from stairlib.model.errors import DataError
from stairlib.wire.frame import (
    FLAG_DIRTY,
    FLAG_FAULTED,
    FLAG_INCOMPLETE,
    FLAG_TOWARDS,
    OpKind,
    extent_marks,
)
from vmmd.upstairs.core.control_jobs import ControlJob, Outcome
from vmmd.upstairs.core.copies import ExtentCopies
from vmmd.upstairs.core.events import ExtentStamps
from vmmd.upstairs.core.likeness import Likeness
from vmmd.upstairs.core.reconcile_states import RECONCILE, ReconcileMove, ReconcilePhase
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.replay import Mutation
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.slot_states import SlotMove, SlotState

_DAMAGED, _BLANK, _WHOLE = range(3)
_SLOTS = 3
_Stamp = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class ReconcilePlan:
    """`source`: per extent, place in `members`; `stamps`: that copy's generation and flush.
    `extents`: per member, what it has to be sent; of these `doubtful` may be equal all the same."""

    members: list[Member]
    source: npt.NDArray[np.int64]
    stamps: tuple[_Stamp, _Stamp]
    extents: list[npt.NDArray[np.int64]]
    doubtful: list[npt.NDArray[np.int64]]
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

    def is_source(self, member: Member) -> bool:
        """Another member is filled from this one."""
        row = self.members.index(member)
        needed = [self.source[extents] for extents in self.extents if len(extents)]
        return any(bool((sources == row).any()) for sources in needed)

    def is_only_copy(self, member: Member) -> bool:
        """Of some extent, all other members may have been marked by now."""
        if member not in self.members:
            return False
        filled = np.zeros((len(self.members), len(self.source)), dtype=np.bool_)
        for row, extents in enumerate(self.extents):
            filled[row, extents] = True
        alone = filled.sum(axis=0) == len(self.members) - 1
        return bool((alone & (self.source == self.members.index(member))).any())


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


def _dirty(member: Member) -> bool:
    return member.stamps is not None and bool((member.stamps.flags & FLAG_DIRTY).any())


def plan(members: list[Member], extent_count: int) -> ReconcilePlan:
    """Compares the members' stamps. DataError when an extent has no whole copy, or only one that
    is older than what another member was being filled from."""
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
    newest = int(generations.max()), int(flushes.max())
    return ReconcilePlan(members, source, best, extents, perhaps, *newest)


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


class Reconciliation:
    """One run over a plan; `error` is set once and ends it, `done` when all members are equal."""

    def __init__(self, region: RegionSet, work: ReconcilePlan) -> None:
        self._region = region
        self._plan = work
        self.error = ""
        self.phase = ReconcilePhase.COMPARE
        self._flush: Mutation | None = None
        self._jobs: list[ControlJob] = []
        self.copies: dict[int, ExtentCopies] = {}
        self._writers: list[Member] = []
        for member in work.members:
            member.move(SlotMove.RECONCILE)
            member.synced_job = region.last_job
        region.touch()
        self._likeness = Likeness(region, work.members, work.source, work.doubtful)

    def _begin(self) -> None:
        region = self._region
        equal = [self._likeness.equal(row) for row in range(len(self.members))]
        work = self._plan = self._plan.without(equal)
        # The destinations, and whoever has something unflushed.
        self._writers = [
            member
            for member, extents in zip(work.members, work.extents, strict=True)
            if len(extents) or _dirty(member)
        ]
        filled = sum(1 for extents in work.extents if len(extents))
        for member, extents in zip(work.members, work.extents, strict=True):
            if len(extents):
                generations, flushes = work.stamps
                marks = extent_marks(extents, generations[extents], flushes[extents], told=True)
                blob = marks.tobytes()
                self._jobs.append(region.send_control(member, OpKind.REPAIR_BEGIN, blob=blob))
                self.copies[member.index] = ExtentCopies(
                    region, member, extents.tolist(), self._source_of, filled
                )

    @property
    def done(self) -> bool:
        """All members are equal and durable."""
        return self.phase is ReconcilePhase.DONE

    @property
    def plan(self) -> ReconcilePlan:
        """What is done."""
        return self._plan

    @property
    def members(self) -> list[Member]:
        """Who takes part."""
        return self._plan.members

    def _source_of(self, extent: int, tried: int) -> Member | None:
        plan = self._plan
        member = plan.members[int(plan.source[extent])]
        if not member.bit & tried:
            return member
        # Whoever is not filled there is equal to it.
        for other, extents in zip(plan.members, plan.extents, strict=True):
            if not other.bit & tried and extent not in extents:
                return other
        return None

    def advance(self) -> None:
        """Goes on as far as the answers allow."""
        if self.error or self.done:
            return
        for member in self._plan.members:
            if member.state is not SlotState.RECONCILE:
                self._fail(f"slot {member.slot} ({member.address}) left: {member.last_error}")
                return
        if self.phase is ReconcilePhase.COMPARE and self._likeness.advance():
            self._begin()
            self._move(ReconcileMove.COMPARED)
        if self.phase is ReconcilePhase.BEGIN and self._jobs_ok():
            for member, extents in zip(self._plan.members, self._plan.extents, strict=True):
                if len(extents):
                    # Marked durably: from now on the region's stamps are to be believed.
                    member.trusted_region = member.region_id
            self._send_flush(clears_marks=False)
            self._move(ReconcileMove.MARKED)
        if self.phase is ReconcilePhase.FIRST_FLUSH and self._flushed():
            self._move(ReconcileMove.FLUSHED)
        if self.phase is ReconcilePhase.COPY and self._copied():
            self._send_flush(clears_marks=True)
            self._move(ReconcileMove.COPIED)
        if self.phase is ReconcilePhase.LAST_FLUSH and self._flushed():
            self._jobs = [
                self._region.send_control(member, OpKind.REPAIR_END)
                for member in self._plan.members
                if member.index in self.copies
            ]
            self._move(ReconcileMove.FLUSHED)
        if self.phase is ReconcilePhase.END and self._jobs_ok():
            self._move(ReconcileMove.UNMARKED)

    def _move(self, move: ReconcileMove) -> None:
        self.phase = RECONCILE.after(self.phase, move)

    def _fail(self, reason: str) -> None:
        self.error = reason
        self._move(ReconcileMove.LOST)

    def _jobs_ok(self) -> bool:
        for job in self._jobs:
            if job.outcome in (Outcome.FAILED, Outcome.LOST):
                self._fail(job.describe())
                return False
        return all(job.outcome is Outcome.OK for job in self._jobs)

    def _send_flush(self, *, clears_marks: bool) -> None:
        if self._writers:
            self._flush = self._region.send_flush(clears_marks=clears_marks, only=self._writers)

    def _flushed(self) -> bool:
        flush = self._flush
        return flush is None or all(m.synced_job >= flush.last_job for m in self._writers)

    def _copied(self) -> bool:
        for copies in self.copies.values():
            copies.advance()
            if copies.error:
                self._fail(copies.error)
                return False
        return all(copies.finished for copies in self.copies.values())
