"""A member that is being filled serves reads and copies."""

from __future__ import annotations

from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.slot_states import SlotState


def plant(patch) -> None:
    filling = (SlotState.ACTIVE, SlotState.LIVE_REPAIR)
    patch.setattr(Member, "active", property(lambda self: self.state in filling))
