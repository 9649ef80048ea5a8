"""From connected members to a serving set: quorum, generation check, reconciliation.

Two situations need all members compared before any serves: activation, and an active set of which
no member is left that holds everything (each failed in turn). Both end in `Reconciliation`, or at
once when all are equal.
"""

from __future__ import annotations

from stairlib.model.errors import DataError, StairwellError, StateError
from vmmd.upstairs.core import limits
from vmmd.upstairs.core.cipher_check import check_generation
from vmmd.upstairs.core.copies import ExtentCopies
from vmmd.upstairs.core.reconcile import ReconcilePlan, Reconciliation, plan, trust_regions
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.states import SlotMode, SlotState, UpstairsState


class Activation:
    """Watches for a quorum; runs at most one reconciliation. `failure` is set when the set cannot
    serve."""

    def __init__(self, region: RegionSet) -> None:
        self._region = region
        self.running: Reconciliation | None = None
        self.failure: StairwellError | None = None
        self.limit = 0

    @property
    def copies(self) -> dict[int, ExtentCopies]:
        """By member index, while reconciling."""
        return self.running.copies if self.running is not None else {}

    def cancel(self) -> None:
        """The set is stopping."""
        self.running = None
        self.failure = None

    def advance(self) -> bool:
        """True when the members agree as of now and serve."""
        if self.running is None:
            quorum = self._quorum()
            return self._begin(quorum) if quorum else False
        self.running.advance()
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
            ready = all(m.state is SlotState.WAIT_QUORUM for m in region.members)
        elif region.state is UpstairsState.ACTIVE:
            ready = all(m.state is SlotState.LIVE_REPAIR_READY for m in region.members)
        else:
            return []
        return list(region.members) if ready else []

    def _begin(self, members: list[Member]) -> bool:
        region = self._region
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
            self.running = Reconciliation(self._region, work, self.limit)
            return False
        for member in work.members:
            if member.state is SlotState.LIVE_REPAIR_READY:
                # The table knows no way from there but through a comparison, which has just been
                # made.
                self.running = Reconciliation(self._region, work, self.limit)
                return False
        self._serve(work.members)
        return True

    def _serve(self, members: list[Member]) -> None:
        region = self._region
        for member in members:
            member.synced_job = region.last_job
            region.activate_member(member)
        region.flushes.forget()
        region.flushes.proven = region.flushes.number - 1
        region.trim()

    def _abort(self, run: Reconciliation) -> None:
        """Everybody connects again and is compared anew; the delay keeps a broken member from
        spinning us."""
        self.running = None
        region = self._region
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
