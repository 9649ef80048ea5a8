"""The scrub of one volume of a disk, as a table of legal moves.

A scrub copies into a volume what its read-only parent has and it has not, and then takes the parent
out of the recorded request. House rules are those of `replacement`: `step(record, event)` gives the
next record and the effects; the caller stores the record first and acts after; every effect may be
repeated, so a record that is loaded after a crash goes on with `Resumed`. What was copied and
flushed stays so, hence DROP needs no machine any more: only the recorded request is changed there,
in the same transaction that makes the scrub DONE. DONE takes nothing more, since nothing is left to
scrub; STOPPED and FAILED can be started again, and what was copied before is skipped quickly.

Users see COPY and DROP as RUNNING.

    COPY     --Copying-->       COPY
    COPY     --Copied-->        DROP
    COPY     --Blocked-->       COPY
    COPY     --StepFailed-->    COPY
    COPY     --RetryDue-->      COPY
    COPY     --Resumed-->       COPY
    COPY     --LimitChanged-->  COPY
    COPY     --Stopped-->       STOPPED
    COPY     --GaveUp-->        FAILED
    DROP     --Dropped-->       DONE
    DROP     --Blocked-->       DROP
    DROP     --StepFailed-->    DROP
    DROP     --RetryDue-->      DROP
    DROP     --Resumed-->       DROP
    DROP     --LimitChanged-->  DROP
    DROP     --Stopped-->       STOPPED
    DROP     --GaveUp-->        FAILED
    STOPPED  --Started-->       COPY
    FAILED   --Started-->       COPY
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from uuid import UUID, uuid5

from controlplane.core.records import generation
from controlplane.core.replacement import (
    ATTEMPTS_MAX,
    BACKOFF_FIRST_SECONDS,
    BACKOFF_MAX_SECONDS,
    BLOCKED_SECONDS,
    Blocked,
    Event,
    GaveUp,
    LimitChanged,
    Resumed,
    RetryDue,
    StepFailed,
)
from stairlib.model.construction import Construction
from stairlib.model.errors import StateError


class State(StrEnum):
    """Where a scrub is."""

    COPY = "COPY"
    DROP = "DROP"
    DONE = "DONE"
    STOPPED = "STOPPED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        """Whether nothing happens by itself any more."""
        return self in (State.DONE, State.STOPPED, State.FAILED)


class Effect(Enum):
    """What the driver is to do once the record is stored; the value says it in words."""

    COPY_PARENT = "have the machine copy the parent, and follow it"
    DROP_PARENT = "record a request without the parent"
    AWAIT_RETRY = "wait until the next attempt is due"


@dataclass(frozen=True, slots=True, kw_only=True)
class Copying(Event):
    """A look at the machine's scrub. `blocked_on` says what it waits for, if anything."""

    bytes_done: int
    bytes_total: int
    blocked_on: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied(Event):
    """All of the parent is in the volume, durably."""

    bytes_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped(Event):
    """`recorded` takes the place of the recorded request `original`; it has no such parent."""

    original: Construction
    recorded: Construction


class Stopped(Event):
    """The user ended it, and the machine has stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """The user wants one that has ended started again; zero means no limit."""

    bytes_per_second_max: int


_RUNNING = (State.COPY, State.DROP)

# (state, event) -> the state it leads to.
TRANSITIONS: dict[State, dict[type[Event], State]] = {
    State.COPY: {Copying: State.COPY, Copied: State.DROP},
    State.DROP: {Dropped: State.DONE},
    State.DONE: {},
    State.STOPPED: {Started: State.COPY},
    State.FAILED: {Started: State.COPY},
}
for _state in _RUNNING:
    for _event in (Blocked, StepFailed, RetryDue, Resumed, LimitChanged):
        TRANSITIONS[_state][_event] = _state
    TRANSITIONS[_state][Stopped] = State.STOPPED
    TRANSITIONS[_state][GaveUp] = State.FAILED

EVENTS: tuple[type[Event], ...] = (
    Copying, Copied, Dropped, Stopped, Started, Blocked, StepFailed, GaveUp, RetryDue, Resumed,
    LimitChanged,
)  # fmt: skip

# What a state is for: the effect sent when it is entered, retried or resumed.
WORK: dict[State, tuple[Effect, ...]] = {
    State.COPY: (Effect.COPY_PARENT,),
    State.DROP: (Effect.DROP_PARENT,),
    State.DONE: (),
    State.STOPPED: (),
    State.FAILED: (),
}


class IllegalTransitionError(StateError):
    """The event is not one the state takes."""

    reason = "ILLEGAL_TRANSITION"

    def __init__(self, state: State, event: Event) -> None:
        name = type(event).__name__
        super().__init__(
            f"a scrub in state {state} does not take the event {name}", state=state, event=name
        )


@dataclass(frozen=True, slots=True)
class Scrub:
    """One scrub: what is copied (fixed) and how far it is (changes by `step` only).

    `path` is that of the volume whose parent it is, empty for the outermost one; times are seconds
    since the epoch. `recorded_generation` is zero until the parent was dropped.
    """

    disk_key: UUID
    disk: str
    instance_id: UUID
    volume_id: UUID
    path: str
    created_at: float
    updated_at: float
    state: State = State.COPY
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_second_max: int = 0
    attempt: int = 0
    next_attempt_at: float | None = None
    blocked_on: str = ""
    last_error: str = ""
    recorded_generation: int = 0

    @property
    def trace_id(self) -> str:
        """Of the trace it is told in, 32 hexadecimal digits; one that is started again has a new
        one."""
        return uuid5(self.disk_key, f"scrub {self.path} {self.created_at!r}").hex


def step(record: Scrub, event: Event) -> tuple[Scrub, tuple[Effect, ...]]:
    """The record after the event and what to do then; IllegalTransitionError for a wrong event."""
    target = TRANSITIONS[record.state].get(type(event))
    if target is None:
        raise IllegalTransitionError(record.state, event)
    if isinstance(event, StepFailed) and record.attempt >= ATTEMPTS_MAX:
        event, target = GaveUp(at=event.at, error=event.error), State.FAILED
    changed, effects = _changed(record, event, target)
    return replace(changed, state=target, updated_at=event.at), effects


def _changed(record: Scrub, event: Event, target: State) -> tuple[Scrub, tuple[Effect, ...]]:
    """The fields an event changes, and the effects, `target` being the state it leads to."""
    match event:
        case Copying():
            return _copying(record, event), ()
        case Copied(bytes_total=total):
            whole = max(record.bytes_total, total)
            copied = replace(_settled(record), attempt=0, last_error="")
            return replace(copied, bytes_done=whole, bytes_total=whole), WORK[target]
        case Dropped(recorded=recorded):
            done = replace(_settled(record), attempt=0, last_error="")
            return replace(done, recorded_generation=generation(recorded)), WORK[target]
        case LimitChanged(bytes_per_second_max=limit):
            return replace(record, bytes_per_second_max=limit), ()
        case Resumed() if record.next_attempt_at is not None:
            return record, (Effect.AWAIT_RETRY,)
        case Blocked(on=on):
            waiting = replace(record, blocked_on=on, next_attempt_at=event.at + BLOCKED_SECONDS)
            return waiting, (Effect.AWAIT_RETRY,)
        case StepFailed(error=error):
            return _failed_once(record, event, error), (Effect.AWAIT_RETRY,)
        case RetryDue():
            return replace(record, next_attempt_at=None), WORK[target]
        case GaveUp(error=error):
            return replace(_settled(record), last_error=error), WORK[target]
        case Stopped():
            return _settled(record), WORK[target]
        case Started(bytes_per_second_max=limit):
            again = Scrub(
                record.disk_key, record.disk, record.instance_id, record.volume_id, record.path,
                created_at=event.at, updated_at=event.at, bytes_per_second_max=limit,
            )  # fmt: skip
            return again, WORK[target]
        case _:
            return record, WORK[target]


def _copying(record: Scrub, event: Copying) -> Scrub:
    """The record after a look at the machine's scrub.

    A machine that was made again begins anew, quickly; what is shown never falls. Only what goes
    beyond all that was done before is progress, and lets the count of attempts begin again.
    """
    total = max(record.bytes_total, event.bytes_total)
    done = min(max(record.bytes_done, event.bytes_done), total)
    moved = done > record.bytes_done
    return replace(
        record,
        bytes_done=done,
        bytes_total=total,
        blocked_on=event.blocked_on,
        attempt=0 if moved else record.attempt,
        last_error="" if moved else record.last_error,
    )


def _failed_once(record: Scrub, event: Event, error: str) -> Scrub:
    """The record after a failed attempt: counted, and the next one put off a little longer."""
    delay = min(BACKOFF_FIRST_SECONDS * 2**record.attempt, BACKOFF_MAX_SECONDS)
    return replace(
        record,
        attempt=record.attempt + 1,
        last_error=error,
        blocked_on="",
        next_attempt_at=event.at + delay,
    )


def _settled(record: Scrub) -> Scrub:
    """The record with nothing to wait for."""
    return replace(record, blocked_on="", next_attempt_at=None)


def drawing() -> str:
    """The table as the lines of this module's docstring."""
    return "\n".join(
        f"    {state:<8} {f'--{event.__name__}-->':<18} {reached}"
        for state, moves in TRANSITIONS.items()
        for event, reached in moves.items()
    )
