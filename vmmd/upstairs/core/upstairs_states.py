"""The states of an upstairs (one region set), and every legal move between them.

Source: reference vcr-and-upstairs.md §5. It knows no socket, clock or job.
"""

from __future__ import annotations

import enum

from stairlib.model.state_table import StateTable


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


_S, _M = UpstairsState, UpstairsMove
UPSTAIRS = StateTable(
    "an upstairs",
    _S.INITIALIZING,
    [
        (_S.INITIALIZING, _M.ACTIVATE, _S.GO_ACTIVE, "activation is asked for: members connect"),
        (_S.GO_ACTIVE, _M.QUORUM, _S.ACTIVE, "the members were compared and are equal"),
        (_S.GO_ACTIVE, _M.DEACTIVATE, _S.DEACTIVATING, "deactivated before it was active"),
        (_S.GO_ACTIVE, _M.FAIL, _S.DISABLED, "the members cannot be a set, or the generation"),
        (_S.ACTIVE, _M.DEACTIVATE, _S.DEACTIVATING, "a last flush is sent to all"),
        (_S.ACTIVE, _M.FAIL, _S.DISABLED, "taken over, or no member can go on"),
        (_S.DEACTIVATING, _M.STOPPED, _S.INITIALIZING, "flushed, and every member let go"),
        (_S.DEACTIVATING, _M.FAIL, _S.DISABLED, "taken over meanwhile"),
        (_S.DISABLED, _M.ACTIVATE, _S.GO_ACTIVE, "activation is asked for again"),
    ],
)
