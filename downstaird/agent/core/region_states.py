"""What becomes of a region that was asked for, as a table.

    requested   recorded, nothing of it is there
    creating    its directory may be half made
    created     it is there and is to be served
    tombstoned  it is to go; its directory may still be there
    destroyed   it is gone; nothing leads out
    failed      it could not be made; kept as it is until somebody destroys it

Each move is durable before what follows from it is done, so a state says what may be on disk. A
start does the work of each state again from its beginning: that is all a restart takes.
"""

from __future__ import annotations

from enum import Enum

from stairlib.model.state_table import StateTable


class RegionState(Enum):
    """Where a region is. The values are what the intent file holds."""

    REQUESTED = "requested"
    CREATING = "creating"
    CREATED = "created"
    TOMBSTONED = "tombstoned"
    DESTROYED = "destroyed"
    FAILED = "failed"


class RegionEvent(Enum):
    """What happens to a region."""

    CREATE_BEGUN = "create begun"
    CREATE_DONE = "create done"
    CREATE_FAILED = "create failed"
    DESTROY_ASKED = "destroy asked"
    DESTROY_DONE = "destroy done"


_S, _E = RegionState, RegionEvent
REGION: StateTable[RegionState, RegionEvent] = StateTable(
    "a region of the agent",
    _S.REQUESTED,
    (
        (_S.REQUESTED, _E.CREATE_BEGUN, _S.CREATING, "its turn has come"),
        (_S.CREATING, _E.CREATE_BEGUN, _S.CREATING, "an agent before this one had begun"),
        (_S.CREATING, _E.CREATE_DONE, _S.CREATED, "the directory holds the region"),
        (_S.CREATING, _E.CREATE_FAILED, _S.FAILED, "the program refused or died"),
        (_S.REQUESTED, _E.DESTROY_ASKED, _S.TOMBSTONED, "nobody wants it any more"),
        (_S.CREATING, _E.DESTROY_ASKED, _S.TOMBSTONED, "nobody wants it any more"),
        (_S.CREATED, _E.DESTROY_ASKED, _S.TOMBSTONED, "nobody wants it any more"),
        (_S.FAILED, _E.DESTROY_ASKED, _S.TOMBSTONED, "nobody wants it any more"),
        (_S.TOMBSTONED, _E.DESTROY_ASKED, _S.TOMBSTONED, "asked for again"),
        (_S.DESTROYED, _E.DESTROY_ASKED, _S.DESTROYED, "asked for again"),
        (_S.TOMBSTONED, _E.CREATE_BEGUN, _S.TOMBSTONED, "the end was asked for just before"),
        (_S.TOMBSTONED, _E.CREATE_DONE, _S.TOMBSTONED, "the end was asked for meanwhile"),
        (_S.TOMBSTONED, _E.CREATE_FAILED, _S.TOMBSTONED, "the end was asked for meanwhile"),
        (_S.TOMBSTONED, _E.DESTROY_DONE, _S.DESTROYED, "no process, no directory"),
    ),
    ends=(_S.DESTROYED,),
)
