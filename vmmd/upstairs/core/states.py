"""The states of an upstairs and of its slots, as other parts name them.

The tables, one file each: `upstairs_states`, `slot_states`, `reconcile_states`, `repair_states`.
docs/upstairs.md has them drawn.
"""

from __future__ import annotations

from stairlib.model.state_table import IllegalMoveError
from vmmd.upstairs.core.slot_states import (
    SlotMode,
    SlotMove,
    SlotState,
    mode_after_loss,
    move_slot,
)
from vmmd.upstairs.core.upstairs_states import UpstairsMove, UpstairsState, move_upstairs

__all__ = [
    "IllegalMoveError",
    "SlotMode",
    "SlotMove",
    "SlotState",
    "UpstairsMove",
    "UpstairsState",
    "mode_after_loss",
    "move_slot",
    "move_upstairs",
]
