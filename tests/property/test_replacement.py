"""The replacement table: every state with every event, and every walk through it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.core import replacement as core
from controlplane.core.replacement import (
    ATTEMPTS_MAX,
    EVENTS,
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
}


def event_of(kind: type[Event], at: float, bytes_done: int = 0) -> Event:
    extra = {"bytes_done": bytes_done} if kind is core.Observed else FIELDS.get(kind, {})
    return kind(at=at, **extra)


def in_state(state: State, attempt: int = 0) -> Replacement:
    failed_in = State.REPAIR if state is State.FAILED else None
    return replacement(state=state, attempt=attempt, failed_in=failed_in)


def test_the_table_knows_every_state_and_only_known_events() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {kind for moves in TRANSITIONS.values() for kind in moves} == set(EVENTS)


@pytest.mark.parametrize("attempt", [0, ATTEMPTS_MAX])
@pytest.mark.parametrize(
    ("state", "kind"),
    list(itertools.product(State, EVENTS)),
    ids=lambda each: each.__name__ if isinstance(each, type) else str(each),
)
def test_every_state_with_every_event(state: State, kind: type[Event], attempt: int) -> None:
    record, event = in_state(state, attempt), event_of(kind, 2000.0)
    allowed = TRANSITIONS[state].get(kind)
    if allowed is None:
        with pytest.raises(IllegalTransitionError, match=f"{state}.*{kind.__name__}"):
            step(record, event)
        return
    after, effects = step(record, event)
    exhausted = attempt == ATTEMPTS_MAX and after.state is State.FAILED
    assert after.state in allowed or exhausted
    assert after.updated_at == 2000.0
    if after.state is not state:
        waits = kind in (core.Unapplied, core.MemberLost) and not exhausted
        assert effects == ((Effect.AWAIT_RETRY,) if waits else WORK[after.state])
        assert after.transitions[-1].state is after.state
    assert (after.progress.bytes_done == TOTAL) is (after.state is State.DONE)


def test_every_state_but_done_has_a_way_on_and_a_way_out() -> None:
    for state in State:
        reached = {each for nexts in TRANSITIONS[state].values() for each in nexts} - {state}
        assert bool(reached) is (state is not State.DONE)
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
        assert (after.failed_in is not None) is (after.state is State.FAILED)
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
