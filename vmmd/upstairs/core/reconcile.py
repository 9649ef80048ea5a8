"""Reconciliation: three members that may differ become equal before they serve.

Per extent the best copy wins: a whole one, then the higher generation, the higher flush number, one
without a failed write, dirty before clean, the lower slot. A stamp counts for more than a failed
write: once a write has failed, its daemon lets no flush of that session succeed, so the stamp is of
one before it, and an older copy lacks what was flushed since. Copies that are not equal to the
best are filled from it; of a dirty one, or one with a failed write, those of the same stamp too,
unless they turn out to be equal block for block:

 0a. EXTENT_DIGEST of these to all: what is equal is whole, is left as it is, and may be a source;
 0b. COPY_CHECK where only the source would be left (`rehearsal.py`): one that can not be read gives
    way to another copy of its stamp. With none, and nobody who has the block, the set does not
    serve: SOURCE_DAMAGED, before anything is marked;
 1. REPAIR_BEGIN to the destinations: their bad extents are durably marked, so that a crash from
    here on can not make one a source. The mark keeps the stamp of the source: should that one be
    lost before the copy is whole, no older copy may take its place as if nothing had happened;
 2. FLUSH: the sources' dirty extents get a stamp;
 3. EXTENT_COPY per destination and extent, from another equal copy if the source can not read it;
 4. FLUSH, then REPAIR_END to the destinations.

A source that has nothing unflushed is not asked to flush: it may be one that can not write any
more (its disk is full, or a sync failed), and still be the only one that has what the others need.

A destination for which no source has a good block is left as it is, marked; the others are filled
to their end, and are sources when all is compared anew. That must make one more member whole each
time: when it does for none, it is over too, SOURCE_DAMAGED.

The loss of any member ends it; everybody connects again and the stamps are compared anew. Extents
that were done are equal by then.
"""

from __future__ import annotations

import numpy as np

from stairlib.model.errors import DataError
from stairlib.wire.frame import FLAG_DIRTY, OpKind, extent_marks
from vmmd.upstairs.core.control_jobs import ControlJob, Outcome
from vmmd.upstairs.core.copies import ExtentCopies
from vmmd.upstairs.core.likeness import Likeness
from vmmd.upstairs.core.reconcile_plan import ReconcilePlan, plan
from vmmd.upstairs.core.reconcile_states import RECONCILE, ReconcileMove, ReconcilePhase
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.rehearsal import Rehearsal
from vmmd.upstairs.core.replay import Mutation
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.slot_states import SlotMove, SlotState


def _dirty(member: Member) -> bool:
    return member.stamps is not None and bool((member.stamps.flags & FLAG_DIRTY).any())


class Reconciliation:
    """One run over a plan; `error` is set once and ends it, `done` when all members are equal.
    `damage` is set with it when trying again is of no use."""

    def __init__(self, region: RegionSet, work: ReconcilePlan) -> None:
        self._region = region
        self._plan = work
        self.error = ""
        self.damage: DataError | None = None
        self.phase = ReconcilePhase.COMPARE
        self._flush: Mutation | None = None
        self._jobs: list[ControlJob] = []
        self.copies: dict[int, ExtentCopies] = {}
        self._writers: list[Member] = []
        for member in work.members:
            member.move(SlotMove.RECONCILE)
            member.synced_job = region.last_job
        region.touch()
        self._unreadable = np.zeros_like(work.whole)
        self._compare()

    def _compare(self) -> None:
        work = self._plan
        self._likeness = Likeness(self._region, work.members, work.source, work.doubtful)
        self._rehearsal: Rehearsal | None = None

    def _compared(self) -> bool:
        """Whether it is known what to do. A source that cannot be read gives way to another copy of
        its stamp, and everything is looked at anew with that one."""
        while not self.error:
            if self._rehearsal is None:
                if not self._likeness.advance():
                    return False
                equal = [self._likeness.equal(row) for row in range(len(self.members))]
                self._plan = self._plan.without(equal)
                self._rehearsal = Rehearsal(self._region, self._plan)
            if not self._rehearsal.advance():
                return False
            if self._rehearsal.error:
                self._fail(self._rehearsal.error)
                return False
            spoiled = self._rehearsal.spoiled
            if not len(spoiled):
                return True
            work = self._plan
            lost = spoiled[~work.as_new[:, spoiled].any(axis=0)]
            if len(lost):
                self._give_up(int(lost[0]), self._rehearsal.texts[int(lost[0])], marked=False)
                return False
            self._unreadable[work.source[spoiled], spoiled] = True
            self._plan = plan(work.members, len(work.source), self._unreadable)
            self._compare()
        return False

    def _begin(self) -> None:
        region, work = self._region, self._plan
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
        if self.phase is ReconcilePhase.COMPARE and self._compared():
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
                if member.index in self.copies and not self.copies[member.index].error
            ]
            self._move(ReconcileMove.FLUSHED)
        if self.phase is ReconcilePhase.END and self._jobs_ok():
            damage = next((copies.error for copies in self.copies.values() if copies.error), "")
            if damage:
                self._fail(f"{damage}; one more member can be copied from now")
            else:
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
        """Whether every destination is filled, or can not be."""
        for copies in self.copies.values():
            if not copies.error:
                copies.advance()
            if copies.error and copies.damaged is None:
                self._fail(copies.error)
                return False
        spoilt = [copies for copies in self.copies.values() if copies.damaged is not None]
        if spoilt and len(spoilt) == len(self.copies):
            assert spoilt[0].damaged is not None
            self._give_up(spoilt[0].damaged, spoilt[0].error, marked=True)
            return False
        return all(copies.finished or copies.error for copies in self.copies.values())

    def _give_up(self, extent: int, text: str, *, marked: bool) -> None:
        """The extent's newest copy has a block that can not be read, and nobody else has it."""
        source = self._plan.members[int(self._plan.source[extent])]
        generation, flush = (int(stamps[extent]) for stamps in self._plan.stamps)
        way_out = (
            "the others are being filled from it, so no other member can serve in its place: bring "
            "back its data, or a member that holds the block"
            if marked
            else "bring back its data or a member that holds the block; the others are as they "
            "were: should its member be replaced, what only it has is given up"
        )
        where = f"slot {source.slot} ({source.address})"
        self.damage = DataError(
            f"extent {extent} has its newest copy (generation {generation}, flush {flush}) on "
            f"{where}, with a block that cannot be read and that no other member has: {text}; "
            f"{way_out}",
            reason="SOURCE_DAMAGED",
            extent=str(extent),
            slot=str(source.slot),
            source=source.address,
        )
        self._fail(self.damage.message)
