"""From connected members to a serving set: quorum, generation check, reconciliation.

Two situations need all members compared before any serves: activation, and an active set of which
no member is left that holds everything (each failed in turn). Both end in `Reconciliation`, or at
once when all are equal.

An activation may be allowed to go on with two members when the third stays away. Then these two
are all that is asked, so whatever was flushed has to be on one of them: each must have been a full
member of this set, and be whole since. docs/adr/0018 has the proof. The third comes in by a live
repair.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stairlib.model.errors import DataError, StairwellError, StateError
from stairlib.wire.frame import FLAG_DIRTY
from vmmd.upstairs.core import limits
from vmmd.upstairs.core.cipher_check import check_generation
from vmmd.upstairs.core.copies import ExtentCopies
from vmmd.upstairs.core.reconcile import Reconciliation
from vmmd.upstairs.core.reconcile_plan import ReconcilePlan, plan, trust_regions
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.slot_states import SlotMode, SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState


class Activation:
    """Watches for a quorum; runs at most one reconciliation. `failure` is set when the set cannot
    serve."""

    def __init__(self, region: RegionSet) -> None:
        self._region = region
        self.running: Reconciliation | None = None
        self.failure: StairwellError | None = None
        # What a reconciliation was doing that ended badly, until the members are compared anew.
        self.interrupted: ReconcilePlan | None = None
        # The generation of a reconciliation that this activation began: copies that are whole get
        # stamps of it.
        self._begun_with = 0
        # Since when the same two members are ready, and the third is not.
        self._two: tuple[Member, ...] = ()
        self._two_since = 0.0

    @property
    def waiting(self) -> str:
        """What an activation waits for that may go on with two, or a set that nobody serves; empty
        otherwise."""
        region = self._region
        if region.state is UpstairsState.ACTIVE:
            return "" if region.config.read_only else self._waiting_for_all()
        after = region.config.activate_with_two_after
        if region.state is not UpstairsState.GO_ACTIVE or not after or not self._two:
            return ""
        away = next(m for m in region.members if m not in self._two)
        who = f"slot {away.slot} ({away.address}) is away"
        problem = unfit_for_two(self._two)
        if problem:
            return f"{who}, and the set cannot serve with two: {problem}"
        left = max(0.0, self._two_since + after - region.now)
        return f"{who}: the set serves with two in {left:.0f} s"

    def _waiting_for_all(self) -> str:
        members = self._region.members
        if self.running is not None or any(member.complete for member in members):
            return ""
        away = [m for m in members if m.state is not SlotState.LIVE_REPAIR_READY]
        if not away:
            return ""
        who = ", ".join(
            f"slot {m.slot} ({m.address}{', which is leaving' if m.departing else ''}) is "
            f"{m.state.name}"
            for m in away
        )
        return (
            f"no member serves, each has failed; they are compared when all are back: {who}. "
            "Bring it back, replace it, or restart the instance"
        )

    @property
    def copies(self) -> dict[int, ExtentCopies]:
        """By member index, while reconciling."""
        return self.running.copies if self.running is not None else {}

    def cancel(self) -> None:
        """The set is stopping."""
        self.running = None
        self.failure = None
        self.interrupted = None
        self._begun_with = 0
        self._two = ()

    def advance(self) -> bool:
        """True when the members agree as of now and serve."""
        if self.running is None:
            quorum = self._quorum()
            return self._begin(quorum) if quorum else False
        self.running.advance()
        if self.running.damage is not None:
            # The same again would end the same way.
            self.failure = self.running.damage
            return False
        if self.running.error:
            self._abort(self.running)
            return False
        if not self.running.done:
            return False
        members = self.running.members
        self.running = None
        self._serve(members)
        return True

    def _quorum(self) -> list[Member]:
        region = self._region
        if region.state is UpstairsState.GO_ACTIVE:
            found = [m for m in region.members if m.state is SlotState.WAIT_QUORUM]
            if len(found) < len(region.members):
                return self._quorum_of_two(found)
            ready = True
        elif region.state is UpstairsState.ACTIVE:
            ready = all(m.state is SlotState.LIVE_REPAIR_READY for m in region.members)
        else:
            return []
        return list(region.members) if ready else []

    def _quorum_of_two(self, found: list[Member]) -> list[Member]:
        region = self._region
        after = region.config.activate_with_two_after
        if not after or len(found) != limits.SLOT_COUNT - 1:
            self._two = ()
            return []
        if tuple(found) != self._two:
            self._two, self._two_since = tuple(found), region.now
        late = region.now - self._two_since >= after
        return found if late and not unfit_for_two(found) else []

    def _begin(self, members: list[Member]) -> bool:
        region = self._region
        self.interrupted = None
        trust_regions(members)
        try:
            work = plan(members, region.config.geometry.extent_count)
        except DataError as error:
            self.failure = error
            return False
        if region.state is UpstairsState.GO_ACTIVE:
            self.failure = check_generation(region)
            if self.failure is not None:
                return False
            required = work.generation_max + 1
            if work.generation_max == self._begun_with:
                # Nobody else can have: the daemons take one session of a generation.
                required = self._begun_with
            if region.generation < required:
                self.failure = StateError(
                    f"generation {region.generation} is too low: the extents hold generation "
                    f"{work.generation_max}, activate with {required} or higher",
                    reason="GENERATION_TOO_LOW",
                    requested=str(region.generation),
                    required=str(required),
                )
                return False
            region.flushes.number = work.flush_max + 1
        else:
            region.flushes.number = max(region.flushes.number, work.flush_max + 1)
        return self._start(work)

    def _start(self, work: ReconcilePlan) -> bool:
        if not work.empty:
            self._begun_with = self._region.generation
            self.running = Reconciliation(self._region, work)
            return False
        for member in work.members:
            if member.state is SlotState.LIVE_REPAIR_READY:
                # The table knows no way from there but through a comparison, which has just been
                # made.
                self.running = Reconciliation(self._region, work)
                return False
        self._serve(work.members)
        return True

    def _serve(self, members: list[Member]) -> None:
        region = self._region
        region.reason = ""
        self._two = ()
        for member in members:
            member.synced_job = region.last_job
            region.activate_member(member)
        for member in region.members:
            if member not in members:
                # What it holds was not compared: whatever its stamps say, it is filled.
                region.stop(member, SlotMode.FAULTED, "away while the others were activated")
        region.flushes.forget()
        region.flushes.proven = region.flushes.number - 1
        region.trim()

    def _abort(self, run: Reconciliation) -> None:
        """Everybody connects again and is compared anew; the delay keeps a broken member from
        spinning us."""
        self.running = None
        self.interrupted = run.plan
        region = self._region
        region.reason = f"the members are not equal yet, it is tried again: {run.error}"
        going = region.state is UpstairsState.GO_ACTIVE
        mode = SlotMode.NEW if going else SlotMode.FAULTED
        for member in run.members:
            if member.state is SlotState.RECONCILE:
                region.stop(member, mode, f"reconciliation ended: {run.error}")
            if member.index in run.copies:
                member.repairs_aborted += 1
        for member in run.members:
            member.retry_delay = max(member.retry_delay, limits.RECONNECT_SECONDS_MIN)
        for record in region.log.pending_flushes():
            record.judged = True
        region.log.trim(region.last_job)


def unfit_for_two(members: Sequence[Member]) -> str:
    """Why these two cannot stand for the set without the third; empty if they can. Each has to have
    been a full member, and to be whole: docs/adr/0018."""
    for member in members:
        stamps = member.stamps
        who = f"slot {member.slot} ({member.address})"
        if stamps is None or not (member.owned_before or member.trusted_region == member.region_id):
            return f"{who} was never a member of it"
        if member.replacing:
            return f"{who} was to be filled in the place of another"
        if (stamps.flags & ~np.uint8(FLAG_DIRTY)).any():
            return f"{who} was being filled, or is damaged"
        if member.suspect_extents:
            return f"a write failed on {who}, or was never answered"
        if not stamps.generations.any():
            return f"{who} holds nothing: it may be new"
    return ""
