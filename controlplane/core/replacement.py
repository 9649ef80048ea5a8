"""The replacement of one member, by a table of legal moves.

House rules: everything that decides about a replacement's state is in this file and its table
(`replacement_table.py`); it knows no peer, clock or store. `step(record, event)` gives the next
record and the effects to send; the caller stores the record first and sends the effects after.
Every effect is idempotent, so a record that is loaded after a crash goes on with `Resumed`. An
event a state does not take is an error that names both. DONE and CANCELLED take nothing more; every
other state has a way on and a way out. Waiting for somebody is no state: `blocked_on` says for
whom, in whatever state it waits.

The first three states pass inside the user's call: the row is stored for the first time in APPLY,
in one transaction with the recorded construction request. With the move to UNDO, and back from it,
the recorded request changes in the same transaction: it is always `Replacement.recorded`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from uuid import UUID

from controlplane.core.placement import Placement
from controlplane.core.progress import Progress, complete, copied_in_the_end, observe, pause
from controlplane.core.replacement_events import (
    Applied,
    Blocked,
    CancelAsked,
    CannotUndo,
    CanUndo,
    Differed,
    Effect,
    Event,
    GaveUp,
    Kept,
    LimitChanged,
    MemberLost,
    Observed,
    PauseAsked,
    Preflighted,
    Recorded,
    Repaired,
    ResumeAsked,
    Resumed,
    Retired,
    Retried,
    RetryDue,
    Stalled,
    State,
    StepFailed,
    Unapplied,
    Undone,
    Validated,
    Verified,
)
from controlplane.core.replacement_table import (
    EVENTS,
    INSTEAD,
    TRANSITIONS,
    WORK,
    drawing,
)
from stairlib.model.construction import Construction
from stairlib.model.errors import StateError

__all__ = [
    "ATTEMPTS_MAX",
    "BACKOFF_FIRST_SECONDS",
    "BACKOFF_MAX_SECONDS",
    "BLOCKED_SECONDS",
    "EVENTS",
    "MENDS_MAX",
    "RESTARTS_MAX",
    "STEP_SECONDS",
    "TRANSITIONS",
    "TRANSITIONS_MAX",
    "WORK",
    "Applied",
    "Blocked",
    "CanUndo",
    "CancelAsked",
    "CannotUndo",
    "Differed",
    "Effect",
    "Event",
    "GaveUp",
    "IllegalTransitionError",
    "Kept",
    "LimitChanged",
    "MemberLost",
    "Observed",
    "PauseAsked",
    "Preflighted",
    "Recorded",
    "Repaired",
    "Replacement",
    "ResumeAsked",
    "Resumed",
    "Retired",
    "Retried",
    "RetryDue",
    "Stalled",
    "State",
    "StepFailed",
    "Transition",
    "Unapplied",
    "Undone",
    "Validated",
    "Verified",
    "deadline_seconds",
    "drawing",
    "step",
    "takes",
]

# A step that fails this often in a row ends in FAILED, with the reason, where the user can retry.
ATTEMPTS_MAX = 10
# Seconds to the second attempt; doubles with each one.
BACKOFF_FIRST_SECONDS = 0.5
BACKOFF_MAX_SECONDS = 30.0
# The part of a delay that chance decides about.
JITTER_SHARE = 0.5
# Seconds between looks at a peer that is away: at first, as a share of the time it has been away,
# and at most. Waiting for one is not an attempt and has no bound.
BLOCKED_SECONDS = 1.0
BLOCKED_SHARE = 0.1
BLOCKED_SECONDS_MAX = 15.0
# A repair that does not move is begun anew this often before it is FAILED.
RESTARTS_MAX = 5
# Members that differ are filled again this often before it is FAILED.
MENDS_MAX = 3
# Seconds for a step that asks and is answered: above the deadlines of its calls together.
STEP_SECONDS = 120.0
# The slowest comparison that is waited for.
VERIFY_BYTES_PER_SECOND = 16 << 20
# Log entries kept with a replacement; a retried one cannot grow for ever.
TRANSITIONS_MAX = 200


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
    epoch; `failed_in` is the state a FAILED one goes back to, `paused_in` the one a PAUSED one goes
    on in. `traceparent` is the user's call. `target_was` is what the fleet knew the new target as,
    empty when it did not.
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
    paused_in: State | None = None
    # Since when it waits for what `blocked_on` names.
    blocked_since: float | None = None
    # Repairs begun anew for want of progress, since it last got further than ever before.
    restarts: int = 0
    # Members filled again since they differed, and the slot of the last one, until they agree.
    mended: int = 0
    mending: int | None = None
    target_was: str = ""
    bytes_per_second_max: int = 0
    transitions: tuple[Transition, ...] = ()
    asked_by: str = ""
    placement: Placement | None = None

    @property
    def undone(self) -> bool:
        """Whether the recorded request is the one from before."""
        where = self.failed_in if self.state is State.FAILED else self.state
        return where in (State.UNDO, State.CANCELLED)

    @property
    def recorded(self) -> Construction:
        """The request that is recorded for the disk while no later replacement was begun."""
        return self.original if self.undone else self.replacement

    @property
    def touched(self) -> bool:
        """Whether the machine may have let the new member in: it is not blank any more."""
        log = self.transitions
        forgotten = bool(log) and log[0].number > 0
        return forgotten or any(each.event == Applied.__name__ for each in log)


def takes(record: Replacement, kind: type[Event]) -> bool:
    """Whether a record takes an event of that kind now."""
    return kind in TRANSITIONS[record.state]


def step(record: Replacement, event: Event) -> tuple[Replacement, tuple[Effect, ...]]:
    """The record after the event and what to do then; IllegalTransitionError for a wrong event."""
    if not takes(record, type(event)):
        raise IllegalTransitionError(record.state, event)
    given_up = _given_up(record, event)
    if given_up:
        event = GaveUp(at=event.at, error=given_up)
    allowed = TRANSITIONS[record.state][type(event)]
    target = _target(record, event, allowed)
    assert target in allowed
    changed, effects = _changed(record, event, target)
    changed = replace(changed, state=target, updated_at=event.at)
    if target is not record.state or isinstance(event, StepFailed | Stalled):
        changed = _logged(changed, event)
    return changed, effects


def _given_up(record: Replacement, event: Event) -> str:
    """Why there is no further attempt after this event; empty when there is one."""
    match event:
        case StepFailed(error=error) if record.attempt >= ATTEMPTS_MAX:
            return error
        case Unapplied(detail=error) | MemberLost(detail=error) if record.attempt >= ATTEMPTS_MAX:
            return error
        case Stalled(detail=detail) if record.restarts >= RESTARTS_MAX:
            return f"the repair was begun anew {record.restarts} times and did not move: {detail}"
        case Differed(detail=detail) if record.mended >= MENDS_MAX:
            return f"members were filled again {record.mended} times and still differ: {detail}"
        case _:
            return ""


def _target(record: Replacement, event: Event, allowed: tuple[State, ...]) -> State:
    """The state that the event leads to."""
    if isinstance(event, Retried):
        assert record.failed_in is not None
        return record.failed_in
    if isinstance(event, ResumeAsked):
        assert record.paused_in is not None
        return record.paused_in
    if isinstance(event, CancelAsked) and record.undone:
        # It failed while it was being undone: that goes on.
        return State.UNDO
    return allowed[0]


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
        case Blocked():
            return _blocked(record, event), (Effect.AWAIT_RETRY,)
        case StepFailed(error=error) | Unapplied(detail=error) | MemberLost(detail=error):
            return _failed_once(record, event, error), (Effect.AWAIT_RETRY,)
        case RetryDue():
            return replace(record, next_attempt_at=None), WORK[target]
        case GaveUp(error=error):
            return _ended_badly(record, record.state, error), WORK[target]
        case CannotUndo(detail=error):
            # What is recorded is the new request: a retry goes on with it.
            return _ended_badly(record, State.REPAIR, error), WORK[target]
        case _:
            return _moved_on(record, event), INSTEAD.get(type(event), WORK[target])


def _moved_on(record: Replacement, event: Event) -> Replacement:
    """The record after an event that ends an attempt well, or that begins something else."""
    settled = replace(_settled(record), progress=pause(record.progress))
    match event:
        case PauseAsked():
            return replace(settled, paused_in=record.state)
        case ResumeAsked() | CancelAsked():
            return replace(settled, attempt=0, failed_in=None, paused_in=None)
        case Retried():
            return replace(
                settled, attempt=0, failed_in=None, restarts=0, mended=0, mending=None
            )  # fmt: skip
        case Stalled(detail=detail):
            return replace(settled, restarts=record.restarts + 1, last_error=detail)
        case Differed(slot=slot, detail=detail):
            return replace(settled, mended=record.mended + 1, mending=slot, last_error=detail)
        case Repaired(bytes_copied=copied):
            # The count of attempts lives on until the comparison: a member that is lost each time
            # before it can be compared must end somewhere.
            return replace(settled, progress=copied_in_the_end(settled.progress, copied))
        case Kept(detail=detail):
            return replace(settled, attempt=0, last_error=detail)
        case Verified():
            return replace(settled, attempt=0, last_error="", restarts=0, mended=0, mending=None)
        case Retired():
            done = replace(settled, progress=complete(record.progress))
            return replace(done, attempt=0, last_error="")
        case _:
            return replace(settled, attempt=0, last_error="")


def _observed(record: Replacement, event: Observed) -> Replacement:
    """The record after a look at the repair. One that got further than ever is not counted out."""
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
    changed = replace(
        record,
        progress=progress,
        blocked_on=event.blocked_on,
        blocked_since=_since(record, event.blocked_on, event.at),
    )
    if progress.bytes_done > record.progress.bytes_done:
        changed = replace(changed, attempt=0, restarts=0)
    return changed


def _since(record: Replacement, blocked_on: str, at: float) -> float | None:
    """Since when it waits, for whatever."""
    if not blocked_on:
        return None
    return at if record.blocked_since is None else record.blocked_since


def _blocked(record: Replacement, event: Blocked) -> Replacement:
    """The record while a peer is away: looked at again, less often the longer it is away."""
    since = _since(record, event.on, event.at)
    away = event.at - since if since is not None else 0.0
    delay = min(max(BLOCKED_SECONDS, away * BLOCKED_SHARE), BLOCKED_SECONDS_MAX)
    return replace(
        record,
        blocked_on=event.on,
        blocked_since=since,
        next_attempt_at=event.at + _jittered(delay, event),
        progress=pause(record.progress),
    )


def _failed_once(record: Replacement, event: Event, error: str) -> Replacement:
    """The record after a failed attempt: counted, and the next one put off a little longer."""
    delay = min(BACKOFF_FIRST_SECONDS * 2**record.attempt, BACKOFF_MAX_SECONDS)
    return replace(
        _settled(record),
        attempt=record.attempt + 1,
        last_error=error,
        next_attempt_at=event.at + _jittered(delay, event),
        progress=pause(record.progress),
    )


def _jittered(delay: float, event: Event) -> float:
    """The delay, shortened by up to a share of it: many that failed at once come back apart."""
    return delay * (1 - JITTER_SHARE * event.chance)


def _ended_badly(record: Replacement, failed_in: State, error: str) -> Replacement:
    """The record of one that will not go on by itself."""
    return replace(
        _settled(record), last_error=error, failed_in=failed_in, progress=pause(record.progress)
    )


def _settled(record: Replacement) -> Replacement:
    """The record with nothing to wait for."""
    return replace(record, blocked_on="", blocked_since=None, next_attempt_at=None)


def deadline_seconds(record: Replacement) -> float | None:
    """Seconds the work of the record's state may take; None where progress is what counts."""
    if record.state in (State.REPAIR, State.PAUSED):
        return None
    if record.state is State.VERIFY:
        return STEP_SECONDS + record.progress.bytes_total / VERIFY_BYTES_PER_SECOND
    return STEP_SECONDS


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
        case Unapplied(detail=text) | MemberLost(detail=text) | Stalled(detail=text):
            return text
        case Differed(detail=text) | Kept(detail=text) | CannotUndo(detail=text):
            return text
        case Verified(extents=extents, members=members):
            return f"{extents} extents equal on {members} members"
        case _:
            return ""
