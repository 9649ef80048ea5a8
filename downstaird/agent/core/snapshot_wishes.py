"""What becomes of a snapshot that was asked for, as a table, and the record of one.

    requested  recorded, nothing was done
    taking     the region may have it already
    taken      it is there
    failed     it could not be taken; kept until it is asked for again or let go
    deleting   it is to go; the region may still have it
    gone       nothing leads out, and nothing of it is recorded any more

As with regions, a start does the work of each state again. `taking` is stored before the region is
asked: a snapshot of that name found in `requested` is somebody else's, and in `taking` it is ours.
Snapshots that a volume takes have no record. The region knows them, and they may be deleted too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from stairlib.model.errors import StateError
from stairlib.model.state_table import StateTable

REASON_CHARACTERS = 1024


class WishState(Enum):
    """Where a snapshot is. The values are what the intent file holds."""

    REQUESTED = "requested"
    TAKING = "taking"
    TAKEN = "taken"
    FAILED = "failed"
    DELETING = "deleting"
    GONE = "gone"


class WishEvent(Enum):
    """What happens to a snapshot."""

    ASKED = "asked"
    TAKE_BEGUN = "take begun"
    TAKE_DONE = "take done"
    TAKE_FAILED = "take failed"
    MISSED = "missed"
    DELETE_ASKED = "delete asked"
    DELETE_DONE = "delete done"


_S, _E = WishState, WishEvent
_HERE = (_S.REQUESTED, _S.TAKING, _S.TAKEN)
SNAPSHOT: StateTable[WishState, WishEvent] = StateTable(
    "a snapshot of the agent",
    _S.REQUESTED,
    (
        *((state, _E.ASKED, state, "asked for again") for state in _HERE),
        (_S.FAILED, _E.ASKED, _S.REQUESTED, "to be tried again"),
        (_S.REQUESTED, _E.TAKE_BEGUN, _S.TAKING, "the region has none of this name"),
        (_S.REQUESTED, _E.TAKE_FAILED, _S.FAILED, "it has one, or cannot"),
        (_S.TAKING, _E.TAKE_DONE, _S.TAKEN, "the region has it"),
        (_S.TAKING, _E.TAKE_FAILED, _S.FAILED, "it was refused"),
        (_S.TAKEN, _E.MISSED, _S.FAILED, "the region has it no more"),
        *((state, _E.DELETE_ASKED, _S.DELETING, "nobody wants it any more") for state in _HERE),
        (_S.FAILED, _E.DELETE_ASKED, _S.GONE, "there is only the record to let go"),
        (_S.DELETING, _E.DELETE_ASKED, _S.DELETING, "asked for again"),
        (_S.DELETING, _E.TAKE_BEGUN, _S.DELETING, "the end was asked for just before"),
        (_S.DELETING, _E.TAKE_DONE, _S.DELETING, "the end was asked for meanwhile"),
        (_S.DELETING, _E.TAKE_FAILED, _S.DELETING, "the end was asked for meanwhile"),
        (_S.DELETING, _E.MISSED, _S.DELETING, "as is wanted"),
        (_S.DELETING, _E.DELETE_DONE, _S.GONE, "the region has none of this name"),
    ),
    ends=(_S.GONE,),
)
# What is left to do about a snapshot in these is the keeper's.
PENDING = frozenset({_S.REQUESTED, _S.TAKING, _S.DELETING})
# Snapshots that are there or may come to be.
KEPT = frozenset(_HERE)


@dataclass(frozen=True, slots=True)
class Wish:
    """One snapshot of a region. `generation` and `flush`: of the flush that took it, once TAKEN.
    `reason`: why it failed."""

    name: str
    state: WishState = WishState.REQUESTED
    generation: int = 0
    flush: int = 0
    reason: str = ""


Wishes = tuple[Wish, ...]


def wish_named(wishes: Wishes, name: str) -> Wish | None:
    """The record of a snapshot, if it has one."""
    return next((wish for wish in wishes if wish.name == name), None)


def asked(wishes: Wishes, name: str) -> Wishes:
    """With a snapshot wanted: the same again changes nothing. StateError SNAPSHOT_DELETING."""
    wish = wish_named(wishes, name)
    if wish is None:
        return (*wishes, Wish(name))
    if wish.state is WishState.DELETING:
        raise StateError(
            f"snapshot {name!r} is being deleted: ask again when it is gone, or for another name",
            reason="SNAPSHOT_DELETING",
            snapshot=name,
        )
    return wished(wishes, name, WishEvent.ASKED)


def unasked(wishes: Wishes, name: str) -> Wishes:
    """With a snapshot to go, whoever took it. One that failed is let go of at once, and the region
    left alone: another one of its name may be there."""
    if wish_named(wishes, name) is None:
        return (*wishes, Wish(name, WishState.DELETING))
    return wished(wishes, name, WishEvent.DELETE_ASKED)


def wished(
    wishes: Wishes,
    name: str,
    event: WishEvent,
    *,
    flush: tuple[int, int] = (0, 0),
    reason: str = "",
) -> Wishes:
    """With one where the event leads. `flush`: generation and number, for TAKE_DONE; `reason`: for
    TAKE_FAILED and MISSED. IllegalMoveError."""
    wish = wish_named(wishes, name)
    assert wish is not None, name
    state = SNAPSHOT.after(wish.state, event)
    if state is wish.state:
        return wishes
    if state is WishState.GONE:
        return tuple(each for each in wishes if each.name != name)
    after = replace(wish, state=state, reason="", generation=0, flush=0)
    if state is WishState.TAKEN:
        after = replace(after, generation=flush[0], flush=flush[1])
    elif state is WishState.FAILED:
        after = replace(after, reason=reason[:REASON_CHARACTERS])
    return tuple(after if each.name == name else each for each in wishes)
