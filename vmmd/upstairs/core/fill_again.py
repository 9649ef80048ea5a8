"""Taking a member out of service to fill it anew, because somebody found that it has to be.

Two reasons: its repair does not move, or a comparison showed that it differs from the others. In
the latter case its stamps equal theirs, so they are not believed: all of it is compared.
"""

from __future__ import annotations

from stairlib.model.errors import ConflictError, NotFoundError, StateError, UnsupportedError
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.slot_states import SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState

_GONE = (SlotState.WAIT_CONNECT, SlotState.STOPPING)


def fill_again(region: RegionSet, slot: int, reason: str, *, whole: bool) -> None:
    """Faults the member of the slot, so that it connects again and is repaired.

    StateError when the set is not active; ConflictError ONLY_COPY when it is the one that the
    others would be filled from; UnsupportedError in a read-only set, where nobody is filled.
    """
    if region.config.read_only:
        raise UnsupportedError("the members of a read-only set are not filled: replace the one")
    member = next((each for each in region.slots if each.slot == slot), None)
    if member is None:
        raise NotFoundError("slot", str(slot))
    if region.state is not UpstairsState.ACTIVE:
        raise StateError(f"the volume is {region.state.name}: its members are filled when active")
    if not any(other.complete for other in region.members if other is not member):
        raise ConflictError(
            f"slot {slot} ({member.address}) is the only whole copy: bring another member back",
            reason="ONLY_COPY",
            slot=str(slot),
        )
    if whole:
        member.trusted_region = ""
    # One that is away is filled when it comes back anyway.
    if member.state not in _GONE:
        region.fault(member, reason)
