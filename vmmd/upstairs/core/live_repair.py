"""Live repair: a member is filled while the guest goes on, and then serves.

The member that is to be repaired gets every mutation from one position J0 on, in order, like the
others. What came before J0 is copied from an active member, block by block where they differ,
except blocks that were written since J0: the member itself knows these. So the guest never waits,
and no extent is ever closed.

 SURVEY  Which extents differ? FLUSH to all, then the source's extent states; together with the
         extents that are written meanwhile (`touched`) these are the ones to repair: all of a
         strange region's. The member gets no mutations yet.
 BEGIN   J0: the member streams. REPAIR_BEGIN marks the extents incomplete, durably, with the
         stamps that the survey found; FLUSH F0 to all. A member can be a source once it has
         acknowledged F0: it then holds everything from before J0.
 COPY    EXTENT_COPY for each extent, a few in flight, from any such source.
 FINAL   FLUSH F1 to all: the member's copies become durable, and the extents whole. No earlier
         flush may say so: a copy may hold writes that are newer than it.
 END     REPAIR_END: no extent is incomplete any more; the member becomes active.

Why REPAIR_BEGIN goes first at J0: a flush that stamped an extent in which older blocks are still
missing would make it look equal to the source's. An incomplete extent has no stamp that counts.

Failures: the member lost, or a copy that no source can serve: the repair ends, the member is
faulted, connects again and a new repair begins; extents that are equal by then cost a comparison.
Losing one source only moves its copies to another. Losing all of them during the survey starts the
survey again.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stairlib.wire.frame import FLAG_TOWARDS, OpKind, extent_marks
from vmmd.upstairs.core.control_jobs import ControlJob, Outcome
from vmmd.upstairs.core.copies import ExtentCopies
from vmmd.upstairs.core.events import RepairEnded, RepairStarted
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.repair_states import REPAIR, RepairMove, RepairPhase
from vmmd.upstairs.core.replay import Mutation
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.slot_states import SlotMove, SlotState


class LiveRepair:
    """One attempt to fill one member. `phase` OVER is the end, good or bad."""

    def __init__(self, region: RegionSet, target: Member, *, held: bool = False) -> None:
        self._region = region
        self.target = target
        self.held = held
        self.phase = RepairPhase.SURVEY
        self.started_at = region.now
        self.copies: ExtentCopies | None = None
        self._source: Member | None = None
        self._flush: Mutation | None = None
        self._states: ControlJob | None = None
        self._begin: ControlJob | None = None
        self._end: ControlJob | None = None
        self._traceparent = ""
        self._extent_count = region.config.geometry.extent_count
        target.repair_attempts += 1
        region.effects.append(RepairStarted(target.slot, target.address, target.repair_attempts))

    def set_trace(self, traceparent: str) -> None:
        """The context that the copies carry to the daemons."""
        self._traceparent = traceparent
        if self.copies is not None:
            self.copies.traceparent = traceparent

    def hold(self, held: bool) -> None:
        """Has the copies stand still, or go on. The member gets every mutation all the same."""
        self.held = held
        if self.copies is not None:
            self.copies.hold(held)

    def give_way(self) -> None:
        """A repair that is held keeps no other member from being filled."""
        region = self._region
        others = (m for m in region.slots if m is not self.target)
        if self.held and any(
            m.state is SlotState.LIVE_REPAIR_READY and m.slot not in region.held for m in others
        ):
            region.fault(self.target, "its repair is held, and gives way to another slot's")

    # ---- steps

    def advance(self) -> None:
        """Goes on as far as the answers allow."""
        if self.phase is RepairPhase.OVER:
            return
        if self.phase is RepairPhase.SURVEY:
            self._survey()
            return
        if self.target.state is not SlotState.LIVE_REPAIR:
            self._over(f"the member was lost: {self.target.last_error}")
            return
        if self.phase is RepairPhase.BEGIN:
            self._began()
        if self.phase is RepairPhase.COPY:
            self._copy()
        if self.phase is RepairPhase.FINAL:
            self._final()
        if self.phase is RepairPhase.END:
            self._ended()

    def _survey(self) -> None:
        region = self._region
        if self.target.state is not SlotState.LIVE_REPAIR_READY:
            self._over(f"the member was lost: {self.target.last_error}")
            return
        if self._source is None or not self._source.active:
            self._source = region.active[0] if region.active else None
            self._states = None
            if self._source is None:
                self._over("no active member is left to copy from")
                return
            # From this flush on, whatever is written counts as different.
            region.touched = np.zeros(self._extent_count, dtype=np.bool_)
            self._flush = region.send_flush()
        assert self._flush is not None
        if self._states is None and self._source.synced_job >= self._flush.last_job:
            self._states = region.send_control(
                self._source, OpKind.EXTENT_STATES, length=self._extent_count
            )
        if self._states is None or self._states.outcome is Outcome.PENDING:
            return
        if self._states.outcome is Outcome.OK:
            table = np.frombuffer(self._states.payload, dtype="<u8").reshape(-1, 3)
            self._start(self._differing(table), table[:, 0], table[:, 1])
        elif self._states.outcome is Outcome.LOST:
            self._source = None
        else:
            # An answer that cannot be believed: repair everything, towards nobody knows what.
            unknown = np.zeros(self._extent_count, dtype=np.uint64)
            self._start(np.arange(self._extent_count), unknown, unknown)

    def _differing(self, table: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        stamps = self.target.stamps
        assert stamps is not None
        touched = self._region.touched
        assert touched is not None
        differs = (table[:, 0] != stamps.generations) | (table[:, 1] != stamps.flushes)
        differs |= touched
        differs |= self.target.unproven_extents(self._extent_count)
        return np.flatnonzero(differs)

    def _start(
        self,
        extents: npt.NDArray[np.int64],
        generations: npt.NDArray[np.uint64],
        flushes: npt.NDArray[np.uint64],
    ) -> None:
        region, target = self._region, self.target
        region.touched = None
        target.move(SlotMove.REPAIR)
        target.synced_job = region.last_job
        region.touch()
        self.copies = ExtentCopies(
            region, target, extents.tolist(), self._source_of, held=self.held
        )
        self.copies.traceparent = self._traceparent
        if len(extents):
            blob = self._marks(extents, generations[extents], flushes[extents]).tobytes()
            self._begin = region.send_control(target, OpKind.REPAIR_BEGIN, blob=blob)
        self._flush = region.send_flush()
        self._move(RepairMove.SURVEYED)

    def _marks(
        self,
        extents: npt.NDArray[np.int64],
        generations: npt.NDArray[np.uint64],
        flushes: npt.NDArray[np.uint64],
    ) -> npt.NDArray[np.void]:
        """What the extents are filled towards: the source's stamps.

        One that no flush which ended well covers is not demanded: the source may be the only one
        that has it. What an earlier filling demanded is, as long as the source is not older. And
        that an extent was never flushed would not be true any more at the guest's next flush.
        """
        region, stamps = self._region, self.target.stamps
        told = (generations < region.generation) | (flushes <= region.flushes.proven)
        if stamps is not None:
            before = stamps.generations[extents], stamps.flushes[extents]
            kept = ~told & (before[0] != 0) & ((stamps.flags[extents] & FLAG_TOWARDS) != 0)
            kept &= (before[0] < generations) | (
                (before[0] == generations) & (before[1] <= flushes)
            )
            generations = np.where(kept, before[0], generations)
            flushes = np.where(kept, before[1], flushes)
            told |= kept
        told &= generations != 0
        return extent_marks(extents, generations, flushes, told)

    def _source_of(self, _extent: int, tried: int) -> Member | None:
        assert self._flush is not None
        # Reads go to the first of equally busy members, copies are taken from the last: a member
        # that is leaving, if there is one.
        for member in reversed(self._region.active):
            if member.synced_job >= self._flush.last_job and not member.bit & tried:
                return member
        return None

    def _began(self) -> None:
        if self._begin is not None:
            if self._begin.outcome in (Outcome.FAILED, Outcome.LOST):
                self._abort(self._begin.describe())
                return
            if self._begin.outcome is Outcome.PENDING:
                return
            # Marked durably: the region's stamps are to be believed from now on, also after a
            # failure.
            self.target.trusted_region = self.target.region_id
            self.target.suspect_extents.clear()
        if self._source_of(0, 0) is not None:
            self._move(RepairMove.MARKED)
        elif not any(m.complete for m in self._region.members):
            self._abort("no active member is left to copy from")

    def _copy(self) -> None:
        copies = self.copies
        assert copies is not None
        copies.advance()
        if copies.error:
            self._abort(copies.error)
        elif copies.finished:
            self._flush = self._region.send_flush(clears_marks=True)
            self._move(RepairMove.COPIED)

    def _final(self) -> None:
        assert self._flush is not None
        if self.target.synced_job < self._flush.last_job:
            return
        if self._begin is not None:
            self._end = self._region.send_control(self.target, OpKind.REPAIR_END)
        self._move(RepairMove.FLUSHED)

    def _ended(self) -> None:
        if self._end is not None:
            if self._end.outcome in (Outcome.FAILED, Outcome.LOST):
                self._abort(self._end.describe())
                return
            if self._end.outcome is Outcome.PENDING:
                return
        self.target.repairs_completed += 1
        self.target.repaired_bytes = self.copies.bytes_copied if self.copies else 0
        self._region.activate_member(self.target)
        self._over("")

    def _abort(self, reason: str) -> None:
        if self.target.state is SlotState.LIVE_REPAIR:
            self._region.fault(self.target, f"repair failed: {reason}")
        self._over(reason)

    def cancel(self, reason: str) -> None:
        """Ends the attempt from outside; the caller deals with the member."""
        if self.phase is not RepairPhase.OVER:
            self._over(reason)

    def _move(self, move: RepairMove) -> None:
        self.phase = REPAIR.after(self.phase, move)

    def _over(self, error: str) -> None:
        self._region.touched = None
        if error:
            self.target.repairs_aborted += 1
        copies = self.copies
        self._region.effects.append(
            RepairEnded(
                self.target.slot,
                error,
                copies.extents_total if copies else 0,
                copies.bytes_copied if copies else 0,
            )
        )
        self._move(RepairMove.GIVEN_UP if error else RepairMove.ENDED)
