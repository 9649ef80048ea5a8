"""The replacement table, move by move."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.core import replacement as core
from controlplane.core.replacement import Effect, Event, Replacement, State, step
from tests.unit.controlplane.core.records_made import GEOMETRY, replacement


def run(record: Replacement, *events: Event) -> Replacement:
    for event in events:
        record, _ = step(record, event)
    return record


def test_the_docstring_shows_the_table() -> None:
    assert core.drawing() in (core.__doc__ or "")


def test_the_straight_way() -> None:
    record = replacement()
    ways = [
        (core.Validated(at=1), State.PREFLIGHT, Effect.ASK_TARGET),
        (core.Preflighted(at=2), State.RECORD, Effect.RECORD),
        (core.Recorded(at=3), State.APPLY, Effect.SEND_REPLACEMENT),
        (core.Applied(at=4, result="STARTED"), State.REPAIR, Effect.WATCH_REPAIR),
        (core.Repaired(at=5), State.VERIFY, Effect.VERIFY_MEMBERS),
        (core.Verified(at=6, extents=128, members=3), State.RETIRE, Effect.RETIRE_MEMBER),
        (core.Retired(at=7), State.DONE, Effect.KEEP_TRACE),
    ]
    for event, state, effect in ways:
        assert not record.state.ended
        record, effects = step(record, event)
        assert (record.state, effects) == (state, (effect,))
        assert record.updated_at == event.at
    assert [each.number for each in record.transitions] == list(range(7))
    assert record.transitions[3].detail == "STARTED"
    assert record.progress.bytes_done == GEOMETRY.total_bytes


def test_a_failed_attempt_is_tried_again_a_little_later_each_time() -> None:
    record = replacement(state=State.APPLY)
    delays = []
    for _ in range(core.ATTEMPTS_MAX):
        record, effects = step(record, core.StepFailed(at=10.0, error="no"))
        assert (record.state, effects) == (State.APPLY, (Effect.AWAIT_RETRY,))
        assert record.next_attempt_at is not None
        delays.append(record.next_attempt_at - 10.0)
        record, effects = step(record, core.RetryDue(at=11.0))
        assert effects == (Effect.SEND_REPLACEMENT,)
        assert record.next_attempt_at is None
    assert delays[:3] == [0.5, 1.0, 2.0]
    assert max(delays) == core.BACKOFF_MAX_SECONDS
    record, effects = step(record, core.StepFailed(at=12.0, error="still no"))
    assert (record.state, record.last_error) == (State.FAILED, "still no")
    assert record.failed_in is State.APPLY
    assert effects == (Effect.KEEP_TRACE,)


def test_waiting_for_a_peer_has_no_bound_and_costs_no_attempt() -> None:
    record = replacement(state=State.REPAIR)
    for number in range(100):
        record, effects = step(record, core.Blocked(at=float(number), on="vmmd is away"))
        assert effects == (Effect.AWAIT_RETRY,)
    assert (record.state, record.attempt) == (State.REPAIR, 0)
    assert record.blocked_on == "vmmd is away"
    record = run(record, core.RetryDue(at=101.0))
    assert record.next_attempt_at is None


@pytest.mark.parametrize("state", [State.APPLY, State.REPAIR, State.VERIFY, State.RETIRE])
def test_a_retry_goes_back_to_where_it_failed(state: State) -> None:
    failed = run(replacement(state=state, attempt=4), core.GaveUp(at=1, error="no"))
    assert (failed.state, failed.last_error) == (State.FAILED, "no")
    again, effects = step(failed, core.Retried(at=2))
    assert again.state is state
    assert (again.attempt, again.failed_in) == (0, None)
    assert effects == core.WORK[state]
    assert again.last_error == "no", "until the next step succeeds"


@pytest.mark.parametrize("state", [State.APPLY, State.REPAIR, State.VERIFY, State.RETIRE])
def test_a_record_that_is_loaded_goes_on(state: State) -> None:
    record, effects = step(replacement(state=state), core.Resumed(at=1))
    assert (record.state, effects) == (state, core.WORK[state])
    waiting = replacement(state=state, next_attempt_at=9.0)
    assert step(waiting, core.Resumed(at=1))[1] == (Effect.AWAIT_RETRY,)


def test_a_member_that_is_lost_each_time_ends_somewhere() -> None:
    record = replacement(state=State.REPAIR)
    for number in range(core.ATTEMPTS_MAX):
        record = run(record, core.Repaired(at=number), core.MemberLost(at=number, detail="gone"))
        assert record.state is State.REPAIR
    record = run(record, core.Repaired(at=99), core.MemberLost(at=99, detail="gone"))
    assert (record.state, record.last_error) == (State.FAILED, "gone")


def test_a_machine_that_has_another_target_is_told_again() -> None:
    record = run(replacement(state=State.REPAIR), core.Unapplied(at=1, detail="8830"))
    assert (record.state, record.attempt) == (State.APPLY, 1)


def test_progress_is_not_logged_and_never_full() -> None:
    record = replacement(state=State.REPAIR)
    record, effects = step(record, core.Observed(at=1, bytes_done=GEOMETRY.total_bytes))
    assert effects == ()
    assert record.transitions == ()
    assert 0 < record.progress.bytes_done < GEOMETRY.total_bytes
    record, _ = step(record, core.Observed(at=2, blocked_on="slot 2 is WAIT_CONNECT"))
    assert record.blocked_on == "slot 2 is WAIT_CONNECT"
    assert record.progress.bytes_per_second == 0


def test_a_changed_limit_is_kept_and_sent() -> None:
    record, effects = step(
        replacement(state=State.REPAIR), core.LimitChanged(at=1, bytes_per_second_max=5)
    )
    assert (record.bytes_per_second_max, effects) == (5, (Effect.SEND_LIMIT,))


def test_the_log_is_bounded_and_its_numbers_go_on() -> None:
    record = replacement(state=State.APPLY)
    for number in range(core.TRANSITIONS_MAX):
        record = run(record, core.GaveUp(at=number, error="no"), core.Retried(at=number))
    assert len(record.transitions) == core.TRANSITIONS_MAX
    assert record.transitions[-1].number == 2 * core.TRANSITIONS_MAX - 1


def test_an_illegal_event_names_both() -> None:
    with pytest.raises(core.IllegalTransitionError) as caught:
        step(replace(replacement(), state=State.DONE), core.Retried(at=1))
    assert caught.value.metadata == {"state": "DONE", "event": "Retried"}
