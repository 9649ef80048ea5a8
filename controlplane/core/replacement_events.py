"""What can happen to a replacement, and what is to be done about it: the words of its table.

States, effects and events only; what leads where is in `replacement.py`, which offers these names
too. No event is an instruction to store anything: the caller stores the record that `step` gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum


class State(StrEnum):
    """Where a replacement is."""

    VALIDATE = "VALIDATE"
    PREFLIGHT = "PREFLIGHT"
    RECORD = "RECORD"
    APPLY = "APPLY"
    REPAIR = "REPAIR"
    VERIFY = "VERIFY"
    RETIRE = "RETIRE"
    DONE = "DONE"
    FAILED = "FAILED"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    UNDO = "UNDO"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether nothing happens by itself any more."""
        return self in (State.DONE, State.FAILED, State.CANCELLED)


class Effect(Enum):
    """What the driver is to do once the record is stored; the value says it in words."""

    CHECK = "check the request and the recorded one"
    ASK_TARGET = "ask the new downstairs what it is"
    RECORD = "record the request, unless somebody was quicker"
    SEND_REPLACEMENT = "tell the machine to replace the target"
    WATCH_REPAIR = "watch the new member until it is active"
    VERIFY_MEMBERS = "compare all members"
    RETIRE_MEMBER = "mark the old downstairs as retired"
    HOLD_REPAIR = "keep the machine from copying, and see that it stays so"
    RESTART_REPAIR = "have the machine begin the repair anew"
    MEND_MEMBER = "have the machine compare and fill a whole member again"
    ASK_WHETHER_UNDOABLE = "ask the machine whether the old member is still there"
    TAKE_BACK = "tell the machine to keep the old member and let the new one go"
    SEND_LIMIT = "tell the machine the new repair limit"
    AWAIT_RETRY = "wait until the next attempt is due"
    KEEP_TRACE = "collect and store the spans of the trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened at `at`, in seconds since the epoch.

    `chance` is a random number from 0 up to 1, for the waits that should not be alike everywhere.
    """

    at: float
    chance: float = 0.0


class Validated(Event):
    """The request is well formed and changes exactly one target."""


class Preflighted(Event):
    """The new downstairs answers, fits and is free."""


class Recorded(Event):
    """The new request is the recorded one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied(Event):
    """The machine took the replacement; `result` is its word for it."""

    result: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed(Event):
    """A look at the repair. `blocked_on` says what the machine itself waits for, if anything.

    `bytes_done` is None when the slot is not being repaired at the moment.
    """

    bytes_done: int | None = None
    bytes_copied: int = 0
    extents_done: int = 0
    blocked_on: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired(Event):
    """The new member is active; `bytes_copied` is what its repair sent in the end, 0 if that is not
    known."""

    bytes_copied: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unapplied(Event):
    """The machine has another target in that slot: it has to be told again."""

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified(Event):
    """All members hold the same."""

    extents: int
    members: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberLost(Event):
    """The new member left service before it was compared."""

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalled(Event):
    """The repair has not moved for the stated time: it is begun anew."""

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Differed(Event):
    """The comparison found members that differ: the one in `slot` is filled again."""

    slot: int
    detail: str


class Retired(Event):
    """The old downstairs is marked, the new one counted as a member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked(Event):
    """A peer this step needs is away. Not an attempt; looked at again soon."""

    on: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed(Event):
    """An attempt failed in a way that another one may mend."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp(Event):
    """No further attempt makes sense."""

    error: str


class RetryDue(Event):
    """The time of the next attempt has come."""


class Resumed(Event):
    """The record was loaded by a new driver."""


class Retried(Event):
    """The user wants a failed replacement tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitChanged(Event):
    """The user changed the repair's rate; zero means no limit."""

    bytes_per_second_max: int


class PauseAsked(Event):
    """The user wants it to stand still."""


class ResumeAsked(Event):
    """The user wants a paused one to go on."""


class CancelAsked(Event):
    """The user wants it undone."""


class CanUndo(Event):
    """The old member is still there: the recorded request becomes the one from before."""


class Undone(Event):
    """The machine has the old member and not the new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept(Event):
    """It is too late to undo: the new member is filled, and it is finished forward."""

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CannotUndo(Event):
    """The old member was let go and the new one is not filled: retry, or replace it again."""

    detail: str
