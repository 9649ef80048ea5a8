"""The replacement table: every state with every event, and every walk through it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.core import replacement as core
from controlplane.core.replacement import (
    ATTEMPTS_MAX,
    EVENTS,
    MENDS_MAX,
    RESTARTS_MAX,
    TRANSITIONS,
    WORK,
    Effect,
    Event,
    IllegalTransitionError,
    Replacement,
    State,
    step,
)
from tests.unit.controlplane.core.records_made import GEOMETRY, replacement

TOTAL = GEOMETRY.total_bytes
FIELDS: dict[type[Event], dict[str, object]] = {
    core.Applied: {"result": "STARTED"},
    core.Unapplied: {"detail": "another"},
    core.Verified: {"extents": 128, "members": 3},
    core.MemberLost: {"detail": "lost"},
    core.Blocked: {"on": "vmmd"},
    core.StepFailed: {"error": "failed"},
    core.GaveUp: {"error": "over"},
    core.LimitChanged: {"bytes_per_second_max": 1 << 20},
    core.Stalled: {"detail": "no progress"},
    core.Differed: {"slot": 1, "detail": "3 extents"},
    core.Kept: {"detail": "filled"},
    core.CannotUndo: {"detail": "gone"},
}
# A second table, written by hand and apart from the first: where each event leads from each state
# that takes it. "=" stays, "<" goes back to where it was stopped.
ORACLE = """
                VALIDATE  PREFLIGHT RECORD APPLY      REPAIR     VERIFY     RETIRE     PAUSED     CANCELLING UNDO      FAILED
Validated       PREFLIGHT -         -      -          -          -          -          -          -          -         -
Preflighted     -         RECORD    -      -          -          -          -          -          -          -         -
Recorded        -         -         APPLY  -          -          -          -          -          -          -         -
Applied         -         -         -      REPAIR     -          -          -          -          -          -         -
Observed        -         -         -      -          =          -          -          =          -          -         -
Stalled         -         -         -      -          =          -          -          -          -          -         -
Repaired        -         -         -      -          VERIFY     -          -          -          -          -         -
Unapplied       -         -         -      -          APPLY      -          -          -          -          -         -
Verified        -         -         -      -          -          RETIRE     -          -          -          -         -
MemberLost      -         -         -      -          -          REPAIR     -          -          -          -         -
Differed        -         -         -      -          -          REPAIR     -          -          -          -         -
Retired         -         -         -      -          -          -          DONE       -          -          -         -
Blocked         -         -         -      =          =          =          =          =          =          =         -
StepFailed      -         -         -      =          =          =          =          =          =          =         -
RetryDue        -         -         -      =          =          =          =          =          =          =         -
Resumed         -         -         -      =          =          =          =          =          =          =         -
LimitChanged    -         -         -      =          =          =          =          =          =          =         -
GaveUp          FAILED    FAILED    FAILED FAILED     FAILED     FAILED     FAILED     FAILED     FAILED     FAILED    -
Retried         -         -         -      -          -          -          -          -          -          -         <
PauseAsked      -         -         -      PAUSED     PAUSED     PAUSED     PAUSED     -          -          -         -
ResumeAsked     -         -         -      -          -          -          -          <          -          -         -
CancelAsked     -         -         -      CANCELLING CANCELLING CANCELLING CANCELLING CANCELLING -          -         CANCELLING
CanUndo         -         -         -      -          -          -          -          -          UNDO       -         -
Undone          -         -         -      -          -          -          -          -          -          CANCELLED -
Kept            -         -         -      -          -          -          -          -          REPAIR     REPAIR    -
CannotUndo      -         -         -      -          -          -          -          -          FAILED     FAILED    -
"""  # noqa: E501
# What is counted before it is given up, as fields of a record that has used it up.
USED_UP: dict[type[Event], dict[str, int]] = {
    core.StepFailed: {"attempt": ATTEMPTS_MAX},
    core.Unapplied: {"attempt": ATTEMPTS_MAX},
    core.MemberLost: {"attempt": ATTEMPTS_MAX},
    core.Stalled: {"restarts": RESTARTS_MAX},
    core.Differed: {"mended": MENDS_MAX},
}
STOPPED_IN = State.VERIFY


def oracle() -> dict[tuple[State, str], State]:
    """The second table: (state, event) to the state after; what is not in it is refused."""
    first, *lines = ORACLE.strip().splitlines()
    states = [State(word) for word in first.split()]
    found = {}
    for line in lines:
        event, *cells = line.split()
        assert len(cells) == len(states), line
        for state, cell in zip(states, cells, strict=True):
            if cell != "-":
                found[state, event] = {"=": state, "<": STOPPED_IN}.get(cell) or State(cell)
    return found


def event_of(kind: type[Event], at: float, bytes_done: int = 0) -> Event:
    extra = {"bytes_done": bytes_done} if kind is core.Observed else FIELDS.get(kind, {})
    return kind(at=at, **extra)


def in_state(state: State, **changes: int) -> Replacement:
    return replacement(
        state=state,
        failed_in=STOPPED_IN if state is State.FAILED else None,
        paused_in=STOPPED_IN if state is State.PAUSED else None,
        **changes,
    )


def test_the_table_knows_every_state_and_only_known_events() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {kind for moves in TRANSITIONS.values() for kind in moves} == set(EVENTS)


@pytest.mark.parametrize("exhausted", [False, True])
@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_every_state_with_every_event(kind: type[Event], exhausted: bool) -> None:
    table = oracle()
    for state in State:
        record = in_state(state, **(USED_UP.get(kind, {}) if exhausted else {}))
        event = event_of(kind, 2000.0)
        expected = table.get((state, kind.__name__))
        if expected is None:
            with pytest.raises(IllegalTransitionError, match=f"{state}.*{kind.__name__}"):
                step(record, event)
            continue
        if exhausted and kind in USED_UP:
            expected = State.FAILED
        after, effects = step(record, event)
        assert after.state is expected, (state, kind)
        assert after.updated_at == 2000.0
        if after.state is not state:
            waits = kind in (core.Unapplied, core.MemberLost) and after.state is not State.FAILED
            instead = (Effect.MEND_MEMBER,) if kind is core.Differed else WORK[expected]
            if after.state is State.FAILED:
                instead = WORK[expected]
            assert effects == ((Effect.AWAIT_RETRY,) if waits else instead)
            assert after.transitions[-1].state is after.state
        assert (after.progress.bytes_done == TOTAL) is (after.state is State.DONE)


def test_every_state_but_the_ends_has_a_way_on_and_a_way_out() -> None:
    for state in State:
        reached = {each for nexts in TRANSITIONS[state].values() for each in nexts} - {state}
        assert bool(reached) is (state not in (State.DONE, State.CANCELLED))
        if not state.ended:
            assert State.FAILED in reached


@given(
    st.lists(
        st.tuples(
            st.sampled_from(EVENTS), st.integers(0, 2 * TOTAL), st.floats(0, 60, allow_nan=False)
        ),
        max_size=60,
    )
)
def test_laws_of_any_walk(walk: list[tuple[type[Event], int, float]]) -> None:
    record, now = replacement(state=State.APPLY), 1000.0
    for kind, bytes_done, pause in walk:
        now += pause
        try:
            after, effects = step(record, event_of(kind, now, bytes_done))
        except IllegalTransitionError:
            continue
        assert after.progress.bytes_done >= record.progress.bytes_done, "progress falls"
        assert (after.progress.bytes_done == TOTAL) is (after.state is State.DONE)
        assert after.progress.bytes_per_second >= 0
        assert after.progress.eta_seconds >= 0
        assert after.attempt <= ATTEMPTS_MAX + 1
        assert after.restarts <= RESTARTS_MAX
        assert after.mended <= MENDS_MAX
        assert (after.failed_in is not None) is (after.state is State.FAILED)
        paused = after.state is State.PAUSED or after.failed_in is State.PAUSED
        assert (after.paused_in is not None) is paused
        assert (after.blocked_since is not None) is bool(after.blocked_on)
        # The recorded request changes on the way into UNDO and on the way back, and nowhere else.
        if after.recorded != record.recorded:
            assert State.UNDO in (record.state, after.state)
        if Effect.AWAIT_RETRY in effects:
            assert after.next_attempt_at is not None
        if after.state.ended:
            assert (after.next_attempt_at, after.blocked_on) == (None, "")
        assert after.transitions[: len(record.transitions)] == record.transitions
        record = after


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_a_restart_anywhere_changes_nothing_and_asks_for_the_same_work(
    walk: list[type[Event]],
) -> None:
    record = replacement(state=State.APPLY)
    for number, kind in enumerate(walk):
        try:
            record, _ = step(record, event_of(kind, 1000.0 + number))
        except IllegalTransitionError:
            continue
    if record.state.ended:
        return
    resumed, effects = step(record, core.Resumed(at=5000.0))
    assert resumed.state is record.state
    assert resumed.transitions == record.transitions
    expected = WORK[record.state] if record.next_attempt_at is None else (Effect.AWAIT_RETRY,)
    assert effects == expected
