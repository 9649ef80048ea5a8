"""The members of a read-only set: they come, are compared, serve, and are never filled.

One member is enough to serve. Members that connect wait in WAIT_QUORUM until they have been looked
at, in the same step; whoever may not serve is let go with the reason and tried again later, since
its region may have been copied anew by then. When a newer member comes, the older ones leave
service, after it has entered.

An activation does not take the first member at once while attempts to reach others are still
under way: the first one may be outdated, and what was read from it could not be taken back. That
wait is short, so that one dead host does not hold up a set.
"""

from __future__ import annotations

from vmmd.upstairs.core import limits
from vmmd.upstairs.core.agreement import Agreement
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.states import SlotMode, SlotState, UpstairsState


class ReadOnlyMembers:
    """Decides who of a read-only set serves."""

    def __init__(self, region: RegionSet) -> None:
        self._region = region
        self._agreement = Agreement(region.config.geometry.extent_count)
        self._others_until = 0.0

    def begin(self) -> None:
        """An activation begins: what earlier members brought does not count."""
        self._agreement.forget()
        self._others_until = self._region.now + limits.READ_ONLY_OTHERS_SECONDS

    def advance(self) -> bool:
        """Looks at the members that have connected. True when any member serves."""
        region = self._region
        waiting = [m for m in region.members if m.state is SlotState.WAIT_QUORUM]
        if waiting and not self._others_may_come():
            self._admit(waiting)
        return bool(region.active)

    def _others_may_come(self) -> bool:
        region = self._region
        if region.state is not UpstairsState.GO_ACTIVE or region.now >= self._others_until:
            return False
        return any(m.state is SlotState.NEGOTIATING for m in region.members)

    def _admit(self, waiting: list[Member]) -> None:
        agreement = self._agreement
        fit = []
        # A member that came by a replacement is to be a copy of the others: they are asked first.
        for member in sorted(waiting, key=lambda m: m.replacing):
            problem = self._unfit(member)
            if problem:
                self._refuse(member, problem)
                continue
            assert member.stamps is not None
            agreement.learn(member.stamps)
            fit.append(member)
        outdated = []
        for member in [*self._region.active, *fit]:
            assert member.stamps is not None
            problem = agreement.behind(member.stamps)
            if problem:
                outdated.append((member, problem))
            elif not member.active:
                self._region.activate_member(member)
        for member, problem in outdated:
            self._refuse(member, problem)

    def _unfit(self, member: Member) -> str:
        assert member.stamps is not None
        flaw = self._agreement.flaw(member.stamps)
        if flaw or not (member.replacing and self._agreement.known):
            return flaw
        return self._agreement.strange(member.stamps)

    def _refuse(self, member: Member, reason: str) -> None:
        """Lets the member go; it connects again after a while and is compared anew."""
        running = self._region.state is UpstairsState.ACTIVE
        self._region.stop(member, SlotMode.FAULTED if running else SlotMode.NEW, reason)
        member.last_error = reason
