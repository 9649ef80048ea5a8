"""The members of a read-only set: they come, are compared, serve, and are never filled.

One member is enough to serve. Members that connect wait in WAIT_QUORUM until they have been looked
at, in the same step; whoever may not serve is let go with the reason and tried again later, since
its region may have been copied anew by then. When a newer member comes, the older ones leave
service, after it has entered. A region of another volume is no member at all, however new.

An activation does not take the first member at once while attempts to reach others are still
under way: the first one may be outdated, and what was read from it could not be taken back. That
wait is short, so that one dead host does not hold up a set.
"""

from __future__ import annotations

from vmmd.upstairs.core import limits
from vmmd.upstairs.core.agreement import Agreement
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.slot_states import SlotMode, SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState


class ReadOnlyMembers:
    """Decides who of a read-only set serves."""

    def __init__(self, region: RegionSet) -> None:
        self._region = region
        self._agreement = Agreement(region.config.geometry.extent_count)
        self._others_until = 0.0
        # Whose regions are the set's, once one was seen that holds anything; empty for regions that
        # nobody owns.
        self._owner: str | None = None

    def begin(self) -> None:
        """An activation begins: what earlier members brought does not count."""
        self._agreement.forget()
        self._owner = None
        self._others_until = self._region.now + limits.READ_ONLY_OTHERS_SECONDS

    def advance(self) -> bool:
        """Looks at the members that have connected. True when any member serves."""
        region = self._region
        waiting = [m for m in region.members if m.state is SlotState.WAIT_QUORUM]
        if waiting and not self._others_may_come():
            self._admit(waiting)
        return bool(region.active)

    def others_may_serve(self) -> bool:
        """Whether an activation may succeed by members other than one that was just refused."""
        region = self._region
        waiting = any(m.state is SlotState.WAIT_QUORUM for m in region.members)
        return waiting or self._others_may_come()

    def _others_may_come(self) -> bool:
        region = self._region
        if region.state is not UpstairsState.GO_ACTIVE or region.now >= self._others_until:
            return False
        return any(m.state is SlotState.NEGOTIATING for m in region.members)

    def _admit(self, waiting: list[Member]) -> None:
        agreement = self._agreement
        # A member that came by a replacement is to be a copy of the others: they are asked first.
        candidates = sorted(waiting, key=lambda m: (m.replacing, m.slot))
        self._choose_owner(candidates)
        fit = []
        for member in candidates:
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

    def _choose_owner(self, candidates: list[Member]) -> None:
        """This upstairs' own regions, if there are any; else what most of the candidates have, the
        first of them when they are even. It stays: who comes later is measured by it."""
        if self._owner is not None:
            return
        filled = [m for m in candidates if not _blank(m)]
        owners = [m.owner_id for m in filled if not m.replacing] or [m.owner_id for m in filled]
        if owners:
            own = self._region.config.upstairs_id
            self._owner = own if own in owners else max(owners, key=owners.count)

    def _unfit(self, member: Member) -> str:
        stamps = member.stamps
        assert stamps is not None
        if member.owner_id != self._owner and not _blank(member):
            return (
                f"OWNER_MISMATCH: its region belongs to {member.owner_id or 'nobody'}, the others' "
                f"to {self._owner or 'nobody'}: they are not copies of one volume"
            )
        flaw = self._agreement.flaw(stamps)
        if flaw or not (member.replacing and self._agreement.known):
            return flaw
        return self._agreement.strange(stamps)

    def _refuse(self, member: Member, reason: str) -> None:
        """Lets the member go; it connects again after a while and is compared anew."""
        running = self._region.state is UpstairsState.ACTIVE
        self._region.stop(member, SlotMode.FAULTED if running else SlotMode.NEW, reason)
        member.last_error = reason


def _blank(member: Member) -> bool:
    """Nobody's, and nothing was ever written to it."""
    stamps = member.stamps
    assert stamps is not None
    return not (member.owner_id or stamps.generations.any() or stamps.flags.any())
