"""The scrub table, move by move."""

from __future__ import annotations

import pytest

from controlplane.core import scrub as core
from controlplane.core.replacement import (
    ATTEMPTS_MAX,
    BACKOFF_MAX_SECONDS,
    Blocked,
    Event,
    GaveUp,
    LimitChanged,
    Resumed,
    RetryDue,
    StepFailed,
)
from controlplane.core.scrub import Effect, Scrub, State, step
from tests.unit.controlplane.core.records_made import region, scrub, volume

COPY, DROP, WAIT = (Effect.COPY_PARENT,), (Effect.DROP_PARENT,), (Effect.AWAIT_RETRY,)


def run(record: Scrub, *events: Event) -> Scrub:
    for event in events:
        record, _ = step(record, event)
    return record


def test_the_docstring_shows_the_table() -> None:
    assert core.drawing() in (core.__doc__ or "")


def test_the_straight_way() -> None:
    record, effects = step(scrub(), Resumed(at=1))
    assert (record.state, effects) == (State.COPY, COPY)
    record, effects = step(record, core.Copying(at=2, bytes_done=40, bytes_total=100))
    assert (record.bytes_done, record.bytes_total, effects) == (40, 100, ())
    record, effects = step(record, core.Copied(at=3, bytes_total=100))
    assert (record.state, record.bytes_done, effects) == (State.DROP, 100, DROP)
    dropped = core.Dropped(at=4, original=volume(), recorded=volume(region(gen=2)))
    record, effects = step(record, dropped)
    assert (record.state, effects) == (State.DONE, ())
    assert (record.recorded_generation, record.updated_at) == (2, 4)


def test_progress_does_not_fall_when_the_machine_begins_anew() -> None:
    record = run(
        scrub(),
        core.Copying(at=1, bytes_done=90, bytes_total=100),
        core.Copying(at=2, bytes_done=5, bytes_total=100),
    )
    assert (record.bytes_done, record.bytes_total) == (90, 100)


def test_waiting_has_no_bound_and_costs_no_attempt() -> None:
    record = scrub()
    for number in range(100):
        record, effects = step(record, Blocked(at=number, on="vmmd is away"))
        assert effects == WAIT
        record, effects = step(record, RetryDue(at=number + 1))
        assert effects == COPY
    assert (record.state, record.attempt, record.blocked_on) == (State.COPY, 0, "vmmd is away")


@pytest.mark.parametrize("state", [State.COPY, State.DROP])
def test_failures_in_a_row_end_somewhere(state: State) -> None:
    record, delays = scrub(state=state), []
    for _ in range(ATTEMPTS_MAX):
        record, effects = step(record, StepFailed(at=10.0, error="unreadable"))
        assert (record.state, effects) == (state, WAIT)
        assert record.next_attempt_at is not None
        delays.append(record.next_attempt_at - 10.0)
        record = run(record, RetryDue(at=11.0))
    assert delays[:3] == [0.5, 1.0, 2.0]
    assert max(delays) == BACKOFF_MAX_SECONDS
    record = run(record, StepFailed(at=12.0, error="still"))
    assert (record.state, record.last_error) == (State.FAILED, "still")


def test_only_what_goes_beyond_lets_the_attempts_begin_again() -> None:
    record = run(scrub(bytes_done=50, bytes_total=100), StepFailed(at=1, error="unreadable"))
    record = run(record, RetryDue(at=2), core.Copying(at=3, bytes_done=50, bytes_total=100))
    assert (record.attempt, record.last_error) == (1, "unreadable")
    record = run(record, core.Copying(at=4, bytes_done=51, bytes_total=100))
    assert (record.attempt, record.last_error) == (0, "")


@pytest.mark.parametrize(("state", "work"), [(State.COPY, COPY), (State.DROP, DROP)])
def test_a_record_that_is_loaded_goes_on(state: State, work: tuple[Effect, ...]) -> None:
    assert step(scrub(state=state), Resumed(at=1))[1] == work
    assert step(scrub(state=state, next_attempt_at=9.0), Resumed(at=1))[1] == WAIT


def test_the_rate_is_kept() -> None:
    record, effects = step(scrub(), LimitChanged(at=1, bytes_per_second_max=5))
    assert (record.bytes_per_second_max, effects) == (5, ())


@pytest.mark.parametrize("event", [core.Stopped(at=2), GaveUp(at=2, error="no")])
def test_one_that_has_ended_may_be_started_again_from_nothing(event: Event) -> None:
    ended = run(scrub(bytes_done=7, bytes_total=9, bytes_per_second_max=3), event)
    assert ended.state.ended
    again, effects = step(ended, core.Started(at=5, bytes_per_second_max=0))
    assert effects == COPY
    assert again == scrub(created_at=5, updated_at=5)


def test_an_illegal_event_names_both() -> None:
    with pytest.raises(core.IllegalTransitionError) as caught:
        step(scrub(state=State.DONE), core.Started(at=1, bytes_per_second_max=0))
    assert caught.value.metadata == {"state": "DONE", "event": "Started"}
