"""The replacement of one member, as a table of legal moves.

House rules: everything that decides about a replacement's state is in this file; it knows no peer,
clock or store. `step(record, event)` gives the next record and the effects to send; the caller
stores the record first and sends the effects after. Every effect is idempotent, so a record that is
loaded after a crash goes on with `Resumed`. An event a state does not take is an error that names
both. DONE takes nothing more; every other state has a way on and a way out.

The first three states pass inside the user's call: the row is stored for the first time in APPLY,
in one transaction with the recorded construction request.

    VALIDATE   --Validated-->      PREFLIGHT
    VALIDATE   --GaveUp-->         FAILED
    PREFLIGHT  --Preflighted-->    RECORD
    PREFLIGHT  --GaveUp-->         FAILED
    RECORD     --Recorded-->       APPLY
    RECORD     --GaveUp-->         FAILED
    APPLY      --Applied-->        REPAIR
    APPLY      --Blocked-->        APPLY
    APPLY      --StepFailed-->     APPLY
    APPLY      --RetryDue-->       APPLY
    APPLY      --Resumed-->        APPLY
    APPLY      --LimitChanged-->   APPLY
    APPLY      --GaveUp-->         FAILED
    REPAIR     --Observed-->       REPAIR
    REPAIR     --Repaired-->       VERIFY
    REPAIR     --Unapplied-->      APPLY
    REPAIR     --Blocked-->        REPAIR
    REPAIR     --StepFailed-->     REPAIR
    REPAIR     --RetryDue-->       REPAIR
    REPAIR     --Resumed-->        REPAIR
    REPAIR     --LimitChanged-->   REPAIR
    REPAIR     --GaveUp-->         FAILED
    VERIFY     --Verified-->       RETIRE
    VERIFY     --MemberLost-->     REPAIR
    VERIFY     --Blocked-->        VERIFY
    VERIFY     --StepFailed-->     VERIFY
    VERIFY     --RetryDue-->       VERIFY
    VERIFY     --Resumed-->        VERIFY
    VERIFY     --LimitChanged-->   VERIFY
    VERIFY     --GaveUp-->         FAILED
    RETIRE     --Retired-->        DONE
    RETIRE     --Blocked-->        RETIRE
    RETIRE     --StepFailed-->     RETIRE
    RETIRE     --RetryDue-->       RETIRE
    RETIRE     --Resumed-->        RETIRE
    RETIRE     --LimitChanged-->   RETIRE
    RETIRE     --GaveUp-->         FAILED
    FAILED     --Retried-->        (the state it failed in)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from uuid import UUID

from controlplane.core.placement import Placement
from controlplane.core.progress import Progress, complete, observe, pause
from stairlib.model.construction import Construction
from stairlib.model.errors import StateError

# A step that fails this often in a row ends in FAILED, with the reason, where the user can retry.
ATTEMPTS_MAX = 10
# Seconds to the second attempt; doubles with each one.
BACKOFF_FIRST_SECONDS = 0.5
BACKOFF_MAX_SECONDS = 30.0
# Seconds between looks at a peer that is away. Waiting for one is not an attempt and has no bound.
BLOCKED_SECONDS = 1.0
# Log entries kept with a replacement; a retried one cannot grow for ever.
TRANSITIONS_MAX = 200


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

    @property
    def ended(self) -> bool:
        """Whether nothing happens by itself any more."""
        return self in (State.DONE, State.FAILED)


class Effect(Enum):
    """What the driver is to do once the record is stored; the value says it in words."""

    CHECK = "check the request and the recorded one"
    ASK_TARGET = "ask the new downstairs what it is"
    RECORD = "record the request, unless somebody was quicker"
    SEND_REPLACEMENT = "tell the machine to replace the target"
    WATCH_REPAIR = "watch the new member until it is active"
    VERIFY_MEMBERS = "compare all members"
    RETIRE_MEMBER = "mark the old downstairs as retired"
    SEND_LIMIT = "tell the machine the new repair limit"
    AWAIT_RETRY = "wait until the next attempt is due"
    KEEP_TRACE = "collect and store the spans of the trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened at `at`, in seconds since the epoch."""

    at: float


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


class Repaired(Event):
    """The new member is active."""


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


_STARTED = (State.APPLY, State.REPAIR, State.VERIFY, State.RETIRE)
_ACTIVE = (State.VALIDATE, State.PREFLIGHT, State.RECORD, *_STARTED)

# (state, event) -> the states it may lead to: one, but for the retry of a failure.
TRANSITIONS: dict[State, dict[type[Event], tuple[State, ...]]] = {
    State.VALIDATE: {Validated: (State.PREFLIGHT,)},
    State.PREFLIGHT: {Preflighted: (State.RECORD,)},
    State.RECORD: {Recorded: (State.APPLY,)},
    State.APPLY: {Applied: (State.REPAIR,)},
    State.REPAIR: {
        Observed: (State.REPAIR,),
        Repaired: (State.VERIFY,),
        Unapplied: (State.APPLY,),
    },
    State.VERIFY: {Verified: (State.RETIRE,), MemberLost: (State.REPAIR,)},
    State.RETIRE: {Retired: (State.DONE,)},
    State.DONE: {},
    State.FAILED: {Retried: _ACTIVE},
}
for _state in _STARTED:
    for _event in (Blocked, StepFailed, RetryDue, Resumed, LimitChanged):
        TRANSITIONS[_state][_event] = (_state,)
for _state in _ACTIVE:
    TRANSITIONS[_state][GaveUp] = (State.FAILED,)

EVENTS: tuple[type[Event], ...] = (
    Validated, Preflighted, Recorded, Applied, Observed, Repaired, Unapplied, Verified, MemberLost,
    Retired, Blocked, StepFailed, GaveUp, RetryDue, Resumed, Retried, LimitChanged,
)  # fmt: skip

# What a state is for: the effect sent when it is entered, retried or resumed.
WORK: dict[State, tuple[Effect, ...]] = {
    State.VALIDATE: (Effect.CHECK,),
    State.PREFLIGHT: (Effect.ASK_TARGET,),
    State.RECORD: (Effect.RECORD,),
    State.APPLY: (Effect.SEND_REPLACEMENT,),
    State.REPAIR: (Effect.WATCH_REPAIR,),
    State.VERIFY: (Effect.VERIFY_MEMBERS,),
    State.RETIRE: (Effect.RETIRE_MEMBER,),
    State.DONE: (Effect.KEEP_TRACE,),
    State.FAILED: (Effect.KEEP_TRACE,),
}


class IllegalTransitionError(StateError):
    """The event is not one the state takes."""

    reason = "ILLEGAL_TRANSITION"

    def __init__(self, state: State, event: Event) -> None:
        name = type(event).__name__
        super().__init__(
            f"a replacement in state {state} does not take the event {name}",
            state=state,
            event=name,
        )


@dataclass(frozen=True, slots=True)
class Transition:
    """One line of the log: the state reached, when, by which event. `number` counts from 0."""

    number: int
    state: State
    at: float
    event: str
    detail: str


@dataclass(frozen=True, slots=True)
class Replacement:
    """One replacement: what is replaced (fixed) and where it is (changes by `step` only).

    `path` is the changed field, `region_path` the region it is in; times are seconds since the
    epoch; `failed_in` is the state a FAILED one goes back to. `traceparent` is the user's call.
    `asked_by` is empty, and `placement` None, for one whose construction request was sent.
    """

    id: UUID
    disk_key: UUID
    disk: str
    instance_id: UUID
    volume_id: UUID
    path: str
    region_path: str
    slot: int
    old_target: str
    new_target: str
    from_generation: int
    to_generation: int
    original: Construction
    replacement: Construction
    traceparent: str
    trace_id: str
    created_at: float
    updated_at: float
    state: State = State.VALIDATE
    progress: Progress = field(default_factory=Progress)
    attempt: int = 0
    next_attempt_at: float | None = None
    blocked_on: str = ""
    last_error: str = ""
    failed_in: State | None = None
    bytes_per_second_max: int = 0
    transitions: tuple[Transition, ...] = ()
    asked_by: str = ""
    placement: Placement | None = None


def step(record: Replacement, event: Event) -> tuple[Replacement, tuple[Effect, ...]]:
    """The record after the event and what to do then; IllegalTransitionError for a wrong event."""
    allowed = TRANSITIONS[record.state].get(type(event))
    if allowed is None:
        raise IllegalTransitionError(record.state, event)
    if isinstance(event, StepFailed | Unapplied | MemberLost) and record.attempt >= ATTEMPTS_MAX:
        error = event.error if isinstance(event, StepFailed) else event.detail
        event = GaveUp(at=event.at, error=error)
        allowed = TRANSITIONS[record.state][GaveUp]
    target = allowed[0]
    if isinstance(event, Retried):
        assert record.failed_in is not None
        target = record.failed_in
    assert target in allowed
    changed, effects = _changed(record, event, target)
    changed = replace(changed, state=target, updated_at=event.at)
    if target is not record.state or isinstance(event, StepFailed):
        changed = _logged(changed, event)
    return changed, effects


def _changed(
    record: Replacement, event: Event, target: State
) -> tuple[Replacement, tuple[Effect, ...]]:
    """The fields an event changes, and the effects, `target` being the state it leads to."""
    match event:
        case Observed():
            return _observed(record, event), ()
        case LimitChanged(bytes_per_second_max=limit):
            return replace(record, bytes_per_second_max=limit), (Effect.SEND_LIMIT,)
        case Resumed() if record.next_attempt_at is not None:
            return record, (Effect.AWAIT_RETRY,)
        case Resumed():
            return replace(record, progress=pause(record.progress)), WORK[target]
        case Blocked(on=on):
            changed = replace(
                record, blocked_on=on, next_attempt_at=event.at + BLOCKED_SECONDS,
                progress=pause(record.progress),
            )  # fmt: skip
            return changed, (Effect.AWAIT_RETRY,)
        case StepFailed(error=error) | Unapplied(detail=error) | MemberLost(detail=error):
            return _failed_once(record, event, error), (Effect.AWAIT_RETRY,)
        case RetryDue():
            return replace(record, next_attempt_at=None), WORK[target]
        case GaveUp(error=error):
            changed = replace(
                _settled(record), last_error=error, failed_in=record.state,
                progress=pause(record.progress),
            )  # fmt: skip
            return changed, WORK[target]
        case Retried():
            return replace(_settled(record), attempt=0, failed_in=None), WORK[target]
        case Retired():
            done = replace(_settled(record), progress=complete(record.progress), last_error="")
            return replace(done, attempt=0), WORK[target]
        case Repaired():
            # The count of attempts lives on until the comparison: a member that is lost each time
            # before it can be compared must end somewhere.
            return replace(_settled(record), progress=pause(record.progress)), WORK[target]
        case _:
            return replace(_settled(record), attempt=0, last_error=""), WORK[target]


def _observed(record: Replacement, event: Observed) -> Replacement:
    """The record after a look at the repair."""
    if event.bytes_done is None:
        progress = pause(record.progress)
    else:
        progress = observe(
            record.progress,
            at=event.at,
            bytes_done=event.bytes_done,
            bytes_copied=event.bytes_copied,
            extents_done=event.extents_done,
        )
    return replace(record, progress=progress, blocked_on=event.blocked_on)


def _failed_once(record: Replacement, event: Event, error: str) -> Replacement:
    """The record after a failed attempt: counted, and the next one put off a little longer."""
    delay = min(BACKOFF_FIRST_SECONDS * 2**record.attempt, BACKOFF_MAX_SECONDS)
    return replace(
        record,
        attempt=record.attempt + 1,
        last_error=error,
        blocked_on="",
        next_attempt_at=event.at + delay,
        progress=pause(record.progress),
    )


def _settled(record: Replacement) -> Replacement:
    """The record with nothing to wait for."""
    return replace(record, blocked_on="", next_attempt_at=None)


def _logged(record: Replacement, event: Event) -> Replacement:
    """The record with one more line in its log."""
    number = record.transitions[-1].number + 1 if record.transitions else 0
    entry = Transition(
        number=number,
        state=record.state,
        at=event.at,
        event=type(event).__name__,
        detail=_detail(event),
    )
    return replace(record, transitions=(*record.transitions, entry)[-TRANSITIONS_MAX:])


def _detail(event: Event) -> str:
    """What the log says besides the event's name."""
    match event:
        case Applied(result=result):
            return result
        case StepFailed(error=text) | GaveUp(error=text):
            return text
        case Unapplied(detail=text) | MemberLost(detail=text):
            return text
        case Verified(extents=extents, members=members):
            return f"{extents} extents equal on {members} members"
        case _:
            return ""


def drawing() -> str:
    """The table as the lines of this module's docstring."""
    lines = []
    for state, moves in TRANSITIONS.items():
        for event, nexts in moves.items():
            reached = nexts[0] if len(nexts) == 1 else "(the state it failed in)"
            lines.append(f"    {state:<10} {f'--{event.__name__}-->':<19} {reached}")
    return "\n".join(lines)
