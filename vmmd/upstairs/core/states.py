"""The states of an upstairs and of a slot: every legal move, and nothing else.

House rules: every change of state goes through `move_upstairs` or `move_slot`; what is not in a
table is an `IllegalMoveError` naming state and event. The tables know no socket, clock or job.

An upstairs (one region set):

    INITIALIZING --activate--> GO_ACTIVE --quorum--> ACTIVE --deactivate--> DEACTIVATING
         ^                        |   |                |                        |    |
         |                        |   +--deactivate-->(DEACTIVATING)            |    |
         +------------------------|--------------------|--------- stopped ------+    |
                                  +--fail--> DISABLED <+------------ fail -----------+
                                                 |
                                                 +--activate--> GO_ACTIVE

A slot's member (one downstairs), as seen by the upstairs:

    WAIT_CONNECT --connect--> NEGOTIATING --join----> WAIT_QUORUM --reconcile--> RECONCILE
         --activate--+ ^                        |  |
         +----------activate-------------------------+ |                        |  +--------replayed
         (mode OFFLINE)------------------------------> ACTIVE |                        +--ready-->
         LIVE_REPAIR_READY --repair--> LIVE_REPAIR --activate-----+ |
         +--reconcile--> RECONCILE +--lost-- any of them; STOPPING is entered by `stop` from any
         connected state, left by `lost`

In a read-only set every member goes NEGOTIATING --join--> WAIT_QUORUM --activate--> ACTIVE, also
while the set serves; WAIT_QUORUM --stop--> when another member is known to hold something newer.

The mode says why a member is connecting: NEW joins by quorum and reconciliation; OFFLINE was active
and gets the frames it missed again; FAULTED needs a live repair; REPLACED too, and its region may
be another one. In a read-only set nothing is sent again or repaired: OFFLINE is waited for, FAULTED
is not.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from stairlib.model.errors import StateError


class UpstairsState(enum.IntEnum):
    """Values are those of stairwell.vmmd.v1.VolumeState."""

    INITIALIZING = 1
    GO_ACTIVE = 2
    ACTIVE = 3
    DEACTIVATING = 4
    DISABLED = 5


class UpstairsMove(enum.Enum):
    """What moves an upstairs."""

    ACTIVATE = "activate"
    QUORUM = "quorum"
    DEACTIVATE = "deactivate"
    STOPPED = "stopped"
    FAIL = "fail"


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


_U, _UM = UpstairsState, UpstairsMove
UPSTAIRS_TRANSITIONS: Mapping[UpstairsState, Mapping[UpstairsMove, UpstairsState]] = {
    _U.INITIALIZING: {_UM.ACTIVATE: _U.GO_ACTIVE},
    _U.GO_ACTIVE: {
        _UM.QUORUM: _U.ACTIVE,
        _UM.DEACTIVATE: _U.DEACTIVATING,
        _UM.FAIL: _U.DISABLED,
    },
    _U.ACTIVE: {_UM.DEACTIVATE: _U.DEACTIVATING, _UM.FAIL: _U.DISABLED},
    _U.DEACTIVATING: {_UM.STOPPED: _U.INITIALIZING, _UM.FAIL: _U.DISABLED},
    _U.DISABLED: {_UM.ACTIVATE: _U.GO_ACTIVE},
}

_S, _SM = SlotState, SlotMove
_LEAVING = {_SM.STOP: _S.STOPPING, _SM.LOST: _S.WAIT_CONNECT}
SLOT_TRANSITIONS: Mapping[SlotState, Mapping[SlotMove, SlotState]] = {
    _S.WAIT_CONNECT: {_SM.CONNECT: _S.NEGOTIATING},
    _S.NEGOTIATING: {
        _SM.JOIN: _S.WAIT_QUORUM,
        _SM.REPLAYED: _S.ACTIVE,
        _SM.READY: _S.LIVE_REPAIR_READY,
        **_LEAVING,
    },
    _S.WAIT_QUORUM: {_SM.RECONCILE: _S.RECONCILE, _SM.ACTIVATE: _S.ACTIVE, **_LEAVING},
    _S.RECONCILE: {_SM.ACTIVATE: _S.ACTIVE, **_LEAVING},
    _S.LIVE_REPAIR_READY: {
        _SM.REPAIR: _S.LIVE_REPAIR,
        _SM.RECONCILE: _S.RECONCILE,
        **_LEAVING,
    },
    _S.LIVE_REPAIR: {_SM.ACTIVATE: _S.ACTIVE, **_LEAVING},
    _S.ACTIVE: dict(_LEAVING),
    _S.STOPPING: {_SM.LOST: _S.WAIT_CONNECT},
}


class IllegalMoveError(StateError):
    """A transition that no table allows; carries the state and the event by name."""

    reason = "ILLEGAL_MOVE"


def move_upstairs(state: UpstairsState, move: UpstairsMove) -> UpstairsState:
    """The state after `move`; IllegalMoveError when the table has none."""
    after = UPSTAIRS_TRANSITIONS[state].get(move)
    if after is None:
        raise IllegalMoveError(
            f"an upstairs that is {state.name} cannot {move.value}",
            state=state.name,
            event=move.value,
        )
    return after


def move_slot(state: SlotState, move: SlotMove) -> SlotState:
    """The state after `move`; IllegalMoveError when the table has none."""
    after = SLOT_TRANSITIONS[state].get(move)
    if after is None:
        raise IllegalMoveError(
            f"a slot in {state.name} cannot take {move.value}", state=state.name, event=move.value
        )
    return after
