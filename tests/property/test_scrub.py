"""The scrub table: every state with every event, and every walk through it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.core import replacement as base
from controlplane.core import scrub as core
from controlplane.core.scrub import (
    EVENTS,
    TRANSITIONS,
    WORK,
    Effect,
    Event,
    IllegalTransitionError,
    State,
    step,
)
from tests.unit.controlplane.core.records_made import region, scrub, volume

TOTAL = 1 << 30
FIELDS: dict[type[Event], dict[str, object]] = {
    core.Copied: {"bytes_total": TOTAL},
    core.Dropped: {"original": volume(), "recorded": volume(region(gen=2))},
    core.Started: {"bytes_per_second_max": 3},
    base.Blocked: {"on": "vmmd"},
    base.StepFailed: {"error": "failed"},
    base.GaveUp: {"error": "over"},
    base.LimitChanged: {"bytes_per_second_max": 1 << 20},
}


def event_of(kind: type[Event], at: float, done: int = 0, total: int = TOTAL) -> Event:
    extra = FIELDS.get(kind, {})
    if kind is core.Copying:
        extra = {"bytes_done": done, "bytes_total": total}
    return kind(at=at, **extra)


def test_the_table_knows_every_state_and_only_known_events() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {kind for moves in TRANSITIONS.values() for kind in moves} == set(EVENTS)


@pytest.mark.parametrize("attempt", [0, base.ATTEMPTS_MAX])
@pytest.mark.parametrize(
    ("state", "kind"),
    list(itertools.product(State, EVENTS)),
    ids=lambda each: each.__name__ if isinstance(each, type) else str(each),
)
def test_every_state_with_every_event(state: State, kind: type[Event], attempt: int) -> None:
    record, event = scrub(state=state, attempt=attempt), event_of(kind, 2000.0)
    target = TRANSITIONS[state].get(kind)
    if target is None:
        with pytest.raises(IllegalTransitionError, match=f"{state}.*{kind.__name__}"):
            step(record, event)
        return
    after, effects = step(record, event)
    if kind is base.StepFailed and attempt == base.ATTEMPTS_MAX:
        target = State.FAILED
    assert after.state is target
    assert after.updated_at == 2000.0
    if target is not state:
        assert effects == WORK[target]
    assert (after.recorded_generation == 2) is (after.state is State.DONE and kind is core.Dropped)


def test_every_state_but_done_has_a_way_on_and_running_ones_a_way_out() -> None:
    for state in State:
        reached = set(TRANSITIONS[state].values()) - {state}
        assert bool(reached) is (state is not State.DONE)
        if not state.ended:
            assert {State.FAILED, State.STOPPED} <= reached
    # Nothing but the drop ends well, and nothing drops what was not copied.
    into_done = [
        (s, k) for s, moves in TRANSITIONS.items() for k, n in moves.items() if n == "DONE"
    ]
    assert into_done == [(State.DROP, core.Dropped)]
    into_drop = {
        (s, k) for s, moves in TRANSITIONS.items() for k, n in moves.items()
        if n == "DROP" and s is not State.DROP
    }  # fmt: skip
    assert into_drop == {(State.COPY, core.Copied)}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(EVENTS),
            st.integers(0, 2 * TOTAL),
            st.integers(0, 2 * TOTAL),
            st.floats(0, 60, allow_nan=False),
        ),
        max_size=60,
    )
)
def test_laws_of_any_walk(walk: list[tuple[type[Event], int, int, float]]) -> None:
    record, now = scrub(), 1000.0
    for kind, done, total, pause in walk:
        now += pause
        try:
            after, effects = step(record, event_of(kind, now, done, total))
        except IllegalTransitionError:
            continue
        if kind is not core.Started:
            assert after.bytes_done >= record.bytes_done, "progress falls"
        assert after.bytes_done <= after.bytes_total
        assert after.attempt <= base.ATTEMPTS_MAX + 1
        assert (after.recorded_generation > 0) is (after.state is State.DONE)
        if Effect.AWAIT_RETRY in effects:
            assert after.next_attempt_at is not None
        if after.state.ended:
            assert (after.next_attempt_at, after.blocked_on, effects) == (None, "", ())
        record = after


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_a_restart_anywhere_changes_nothing_and_asks_for_the_same_work(
    walk: list[type[Event]],
) -> None:
    record = scrub()
    for number, kind in enumerate(walk):
        try:
            record, _ = step(record, event_of(kind, 1000.0 + number))
        except IllegalTransitionError:
            continue
    if record.state.ended:
        return
    resumed, effects = step(record, base.Resumed(at=5000.0))
    assert resumed.state is record.state
    expected = WORK[record.state] if record.next_attempt_at is None else (Effect.AWAIT_RETRY,)
    assert effects == expected
