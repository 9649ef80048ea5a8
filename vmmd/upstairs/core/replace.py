"""Replacing one member's address: who may go, who comes, and what is answered when asked again.

In order, with O the slot whose address is `old` and N the one whose address is `new`:

 D0  `new` is the good member that is leaving this very slot: the replacement is taken back, it
     stays.
 D1  O and N both exist: refused, TARGET_IN_USE. Covers new == old and new == a sibling.
 D2  only N exists: done before. COMPLETED_ALREADY once it has been a full member, STARTED_ALREADY
     before.
 D3  neither exists: MISSING.
 D4  the set is active and another slot is being replaced or repaired: refused, REPLACEMENT_RUNNING;
     or no active member would be left to copy from: refused, NO_SOURCE, unless the two others are
     back and whole, and stand for the set without it (docs/adr/0018): the three are compared then.
 D5  otherwise STARTED. A member that is active keeps serving beside the new one until that one is
     filled, so that there are never fewer good copies than at the start; any other is let go at
     once.

Another slot being away does not block. Before the set is active the new member takes part in the
quorum, and a reconciliation that is running begins anew with it. D4 holds there too, and a
connected member can only go when the others are known to hold all that it holds: a reconciliation's
source may be the one whole copy left.

Nothing is copied in a read-only set: the new member has to hold the data already, is compared when
it connects, and serves at once. No source is needed there, and none can be lost.
"""

from __future__ import annotations

from stairlib.model.errors import ConflictError, StateError
from vmmd.upstairs.core.activation import unfit_for_two
from vmmd.upstairs.core.events import Replacement, ReplaceResult
from vmmd.upstairs.core.reconcile_plan import ReconcilePlan
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.slot_states import SlotMode, SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState

_IN_REPAIR = frozenset({SlotState.LIVE_REPAIR, SlotState.LIVE_REPAIR_READY, SlotState.RECONCILE})


def decide(
    region: RegionSet,
    old: str,
    new: str,
    reconciling: ReconcilePlan | None = None,
    interrupted: ReconcilePlan | None = None,
) -> Replacement:
    """Carries the table out. ConflictError or StateError when refused; nothing has changed then.
    `interrupted` is what a reconciliation was doing that ended badly, until another begins."""
    slots = region.slots
    leaving = next((m for m in slots if m.address == old), None)
    coming = next((m for m in slots if m.address == new), None)
    departing = region.departing
    if departing is not None and departing.address == new:
        if leaving is not None and leaving.slot == departing.slot:
            region.drop_member(leaving, f"replacement by {old} was taken back")
            departing.departing = False
            region.touch()
            return Replacement(ReplaceResult.STARTED, departing.slot)
        coming = departing
    if leaving is not None and coming is not None:
        raise StateError(
            f"{new} is slot {coming.slot} of this volume already: name a downstairs "
            "that is not in use",
            reason="TARGET_IN_USE",
            target=new,
            slot=str(coming.slot),
        )
    if coming is not None:
        done = coming.joined
        result = ReplaceResult.COMPLETED_ALREADY if done else ReplaceResult.STARTED_ALREADY
        return Replacement(result, coming.slot)
    if leaving is None:
        return Replacement(ReplaceResult.MISSING, -1)
    if region.state is UpstairsState.ACTIVE:
        _check_others(region, leaving)
    else:
        _check_before_active(region, leaving, reconciling)
        if interrupted is not None and interrupted.is_only_copy(leaving):
            raise ConflictError(
                f"slot {leaving.slot} ({leaving.address}) was what the others were being filled "
                "from, and some of them may not be whole: replace it when the volume is active; if "
                "it is gone for good, restart the instance first, which tells what is missing",
                reason="ONLY_COPY",
                slot=str(leaving.slot),
            )
    _swap(region, leaving, new)
    return Replacement(ReplaceResult.STARTED, leaving.slot)


def refuse_taken_back(region: RegionSet, replacement_id: str) -> None:
    """ConflictError REPLACEMENT_UNDONE when the replacement was taken back before it came."""
    if replacement_id in region.taken_back:
        raise ConflictError(
            f"replacement {replacement_id} was taken back", reason="REPLACEMENT_UNDONE"
        )


def take_back(region: RegionSet, old: str, new: str, replacement_id: str) -> bool:
    """Ends the replacement of `old` by `new` where `old` still serves: it stays. False when `new`
    is no member; ConflictError CANNOT_TAKE_BACK when `old` has left. A hold of the slot ends too.
    """
    applied = _let_back(region, old, new)
    if replacement_id:
        region.taken_back.add(replacement_id)
    return applied


def _let_back(region: RegionSet, old: str, new: str) -> bool:
    coming = next((m for m in region.slots if m.address == new), None)
    if coming is None:
        for member in region.slots:
            if member.address == old:
                region.hold(member.slot, held=False)
        return False
    departing = region.departing
    here = departing is not None and departing.address == old and departing.slot == coming.slot
    if departing is None or not here or not departing.complete:
        raise ConflictError(
            f"{old} has left slot {coming.slot}, which {new} has: there is nothing to go back to",
            reason="CANNOT_TAKE_BACK",
            slot=str(coming.slot),
        )
    region.hold(coming.slot, held=False)
    region.drop_member(coming, f"replacement of {old} was taken back")
    departing.departing = False
    region.touch()
    return True


def _check_others(region: RegionSet, leaving: Member) -> None:
    if not region.config.read_only and not any(member.complete for member in region.members):
        _check_none_serves(region, leaving)
        return
    for member in region.slots:
        if member is leaving:
            continue
        if member.state in _IN_REPAIR or member.mode is SlotMode.REPLACED:
            raise ConflictError(
                f"slot {member.slot} ({member.address}) is {member.state.name}, mode "
                f"{member.mode.name}: one member at a time is replaced; wait until it is active",
                reason="REPLACEMENT_RUNNING",
                slot=str(member.slot),
                state=member.state.name,
            )


def _check_none_serves(region: RegionSet, leaving: Member) -> None:
    """Each member failed in turn. A comparison of three would bring the set back, and waits for one
    that may be gone for good: it may be replaced when the comparison can do without its copy."""
    if leaving.state in _IN_REPAIR:
        raise ConflictError(
            f"no member of this volume serves, and slot {leaving.slot} ({leaving.address}) is back "
            "to be compared with the others: replace it when the volume serves again",
            reason="REPLACEMENT_RUNNING",
            slot=str(leaving.slot),
            state=leaving.state.name,
        )
    others = [member for member in region.slots if member is not leaving]
    away = next((m for m in others if m.state is not SlotState.LIVE_REPAIR_READY), None)
    if away is not None:
        why = f"slot {away.slot} ({away.address}) is {away.state.name}"
    else:
        why = unfit_for_two(others)
    if why:
        raise StateError(
            "no member of this volume is active: there is nothing a new member could be filled "
            f"from, and the others do not stand for the set without slot {leaving.slot}: {why}. "
            f"Bring {leaving.address} back; if it is gone for good, restart the instance and "
            "replace it before the volume is active, which drops what only it had",
            reason="NO_SOURCE",
            slot=str(leaving.slot),
        )


def _check_before_active(
    region: RegionSet, leaving: Member, reconciling: ReconcilePlan | None
) -> None:
    for member in region.slots:
        if member is not leaving and member.replacing:
            raise ConflictError(
                f"slot {member.slot} ({member.address}) was replaced and is not filled yet: "
                "activate the volume first",
                reason="REPLACEMENT_RUNNING",
                slot=str(member.slot),
            )
    waits = leaving.state in (SlotState.WAIT_QUORUM, SlotState.RECONCILE)
    if region.config.read_only or not waits:
        return
    if reconciling is None or reconciling.is_source(leaving):
        raise ConflictError(
            f"slot {leaving.slot} ({leaving.address}) is connected and may hold the only current "
            "copy of some extents: replace it when the volume is active",
            reason="ONLY_COPY",
            slot=str(leaving.slot),
        )


def _swap(region: RegionSet, leaving: Member, new: str) -> None:
    running = region.state is UpstairsState.ACTIVE
    if running and leaving.complete:
        if region.departing is not None:
            # The slot's own earlier replacement was filled, its predecessor just has not left yet.
            region.drop_member(region.departing, "replaced twice")
        leaving.departing = True
    else:
        region.drop_member(leaving, f"replaced by {new}")
    mode = SlotMode.REPLACED if running else SlotMode.NEW
    member = region.add_member(leaving.slot, new, mode)
    member.repairs_completed = leaving.repairs_completed
    member.repairs_aborted = leaving.repairs_aborted
    # Should the new address serve the same region, what it misses can be told from its stamps.
    member.trusted_region = leaving.trusted_region
    member.retry_at = region.now
    member.replacing = True
