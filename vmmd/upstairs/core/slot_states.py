"""The states of a slot's member (one downstairs), as the upstairs sees it: every legal move, and
the mode in which it comes back.

The mode says why a member connects: NEW joins by quorum and reconciliation; OFFLINE was active and
gets the frames it missed again; FAULTED needs a live repair; REPLACED too, and its region may be
another one. In a read-only set nothing is sent again or repaired: every member goes by WAIT_QUORUM
to ACTIVE, also while the set serves; OFFLINE is waited for, FAULTED is not.

Source: reference vcr-and-upstairs.md §6. It knows no socket, clock or job.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from stairlib.model.state_table import StateTable
from vmmd.upstairs.core.upstairs_states import UpstairsState


class SlotState(enum.IntEnum):
    """Values are those of stairwell.vmmd.v1.SlotState."""

    WAIT_CONNECT = 1
    NEGOTIATING = 2
    WAIT_QUORUM = 3
    RECONCILE = 4
    LIVE_REPAIR_READY = 5
    LIVE_REPAIR = 6
    ACTIVE = 7
    STOPPING = 8


class SlotMode(enum.IntEnum):
    """Why a member connects; values are those of stairwell.vmmd.v1.SlotMode."""

    NEW = 1
    OFFLINE = 2
    FAULTED = 3
    REPLACED = 4


class SlotMove(enum.Enum):
    """What moves a slot's member."""

    CONNECT = "connect"
    JOIN = "join"
    REPLAYED = "replayed"
    READY = "ready"
    RECONCILE = "reconcile"
    REPAIR = "repair"
    ACTIVATE = "activate"
    STOP = "stop"
    LOST = "lost"


_S, _M = SlotState, SlotMove
_CONNECTED = (
    _S.NEGOTIATING, _S.WAIT_QUORUM, _S.RECONCILE, _S.LIVE_REPAIR_READY, _S.LIVE_REPAIR, _S.ACTIVE,
)  # fmt: skip
SLOT = StateTable(
    "a slot",
    _S.WAIT_CONNECT,
    [
        (_S.WAIT_CONNECT, _M.CONNECT, _S.NEGOTIATING, "its time to connect has come"),
        (_S.NEGOTIATING, _M.JOIN, _S.WAIT_QUORUM, "promoted while the set is being activated"),
        (_S.NEGOTIATING, _M.REPLAYED, _S.ACTIVE, "back soon (OFFLINE): sent what it missed"),
        (_S.NEGOTIATING, _M.READY, _S.LIVE_REPAIR_READY, "promoted while the set is active"),
        (_S.WAIT_QUORUM, _M.RECONCILE, _S.RECONCILE, "the members differ"),
        (_S.WAIT_QUORUM, _M.ACTIVATE, _S.ACTIVE, "the members are equal"),
        (_S.RECONCILE, _M.ACTIVATE, _S.ACTIVE, "the members were made equal"),
        (_S.LIVE_REPAIR_READY, _M.REPAIR, _S.LIVE_REPAIR, "its repair begins to fill it"),
        (_S.LIVE_REPAIR_READY, _M.RECONCILE, _S.RECONCILE, "no member is left that is whole"),
        (_S.LIVE_REPAIR, _M.ACTIVATE, _S.ACTIVE, "filled, flushed and unmarked"),
        *((state, _M.STOP, _S.STOPPING, "let go, with a reason") for state in _CONNECTED),
        *((state, _M.LOST, _S.WAIT_CONNECT, "its connection ended") for state in _CONNECTED),
        (_S.STOPPING, _M.LOST, _S.WAIT_CONNECT, "its connection is closed"),
    ],
)

_U, _D = UpstairsState, SlotMode
_NEW = dict.fromkeys(_U, _D.NEW)
# In which mode a member whose connection ended by itself comes back, by its state then and the
# upstairs'. Who is not in here keeps its mode. §6.3 of the reference.
MODE_AFTER_LOSS: Mapping[SlotState, Mapping[UpstairsState, SlotMode]] = {
    _S.ACTIVE: {**dict.fromkeys(_U, _D.FAULTED), _U.ACTIVE: _D.OFFLINE},
    _S.LIVE_REPAIR: dict.fromkeys(_U, _D.FAULTED),
    _S.RECONCILE: {**_NEW, _U.ACTIVE: _D.FAULTED, _U.DEACTIVATING: _D.FAULTED},
}


def mode_after_loss(state: SlotState, mode: SlotMode, upstairs: UpstairsState) -> SlotMode:
    """See MODE_AFTER_LOSS; `mode` is the one it had."""
    return MODE_AFTER_LOSS.get(state, {}).get(upstairs, mode)
