"""The replacement table, move by move."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.core import replacement as core
from controlplane.core import replacement_table
from controlplane.core.replacement import Effect, Event, Replacement, State, step
from tests.unit.controlplane.core.records_made import GEOMETRY, replacement


def run(record: Replacement, *events: Event) -> Replacement:
    for event in events:
        record, _ = step(record, event)
    return record


def test_the_docstring_shows_the_table() -> None:
    assert core.drawing() in (replacement_table.__doc__ or "")


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


def test_what_was_copied_after_the_last_look_counts() -> None:
    record = run(
        replacement(state=State.REPAIR),
        core.Observed(at=1, bytes_done=10, bytes_copied=10),
        core.Repaired(at=2, bytes_copied=4096),
    )
    assert record.progress.bytes_copied == 4096
    # A machine that was made again does not know.
    again = run(record, core.MemberLost(at=3, detail="gone"), core.RetryDue(at=4))
    assert run(again, core.Repaired(at=5)).progress.bytes_copied == 4096


def test_a_thousand_that_failed_at_once_come_back_apart() -> None:
    record = replacement(state=State.APPLY)
    due = []
    for chance in (0.0, 0.5, 0.999):
        for event in (
            core.StepFailed(at=10.0, error="no", chance=chance),
            core.Blocked(at=10.0, on="vmmd", chance=chance),
        ):
            waiting, _ = step(record, event)
            assert waiting.next_attempt_at is not None
            due.append(waiting.next_attempt_at - 10.0)
    assert due[::2] == [0.5, 0.375, pytest.approx(0.25, abs=0.001)]
    assert due[1::2] == [1.0, 0.75, pytest.approx(0.5, abs=0.001)]


def test_a_peer_that_is_away_for_long_is_looked_at_less_often() -> None:
    record, delays = replacement(state=State.REPAIR), []
    for at in (0.0, 5.0, 50.0, 500.0):
        record, _ = step(record, core.Blocked(at=at, on="vmmd is away"))
        assert record.next_attempt_at is not None
        delays.append(record.next_attempt_at - at)
        assert record.blocked_since == 0.0
    assert delays == [1.0, 1.0, 5.0, core.BLOCKED_SECONDS_MAX]
    assert run(record, core.Observed(at=501.0)).blocked_since is None


def test_a_repair_that_moves_is_never_given_up() -> None:
    record = replacement(state=State.REPAIR)
    for number in range(1, 50):
        record = run(
            record,
            core.Stalled(at=number, detail="no progress for 120 s"),
            core.RetryDue(at=number),
            core.StepFailed(at=number, error="vmmd was late"),
            core.RetryDue(at=number),
            core.Observed(at=number, bytes_done=number << 20),
        )
        assert (record.state, record.restarts, record.attempt) == (State.REPAIR, 0, 0)


def test_one_that_stands_still_is_begun_anew_and_then_fails_with_the_reason() -> None:
    record = replacement(state=State.REPAIR)
    record = run(record, core.Observed(at=1, bytes_done=50 << 20))
    for number in range(core.RESTARTS_MAX):
        record, effects = step(record, core.Stalled(at=number, detail="no progress"))
        assert (record.state, effects) == (State.REPAIR, (Effect.RESTART_REPAIR,))
        assert record.transitions[-1].event == "Stalled"
        # It comes as far as before, and no farther.
        record = run(record, core.RetryDue(at=2), core.Observed(at=3, bytes_done=50 << 20))
    record, effects = step(record, core.Stalled(at=9, detail="no progress for 120 s"))
    assert (record.state, record.failed_in) == (State.FAILED, State.REPAIR)
    assert "begun anew 5 times" in record.last_error
    assert "no progress for 120 s" in record.last_error
    assert run(record, core.Retried(at=10)).restarts == 0


def test_members_that_differ_are_filled_again_and_compared_again() -> None:
    record = replacement(state=State.VERIFY)
    for _ in range(core.MENDS_MAX):
        record, effects = step(record, core.Differed(at=1, slot=0, detail="3 extents"))
        assert (record.state, effects) == (State.REPAIR, (Effect.MEND_MEMBER,))
        assert (record.mending, record.last_error) == (0, "3 extents")
        assert step(record, core.Resumed(at=2))[1] == (Effect.WATCH_REPAIR,)
        record = run(record, core.Repaired(at=3))
        assert record.state is State.VERIFY
    equal = run(record, core.Verified(at=4, extents=128, members=3))
    assert (equal.state, equal.mending, equal.mended) == (State.RETIRE, None, 0)
    failed = run(record, core.Differed(at=4, slot=0, detail="3 extents"))
    assert (failed.state, failed.failed_in) == (State.FAILED, State.VERIFY)
    assert "still differ: 3 extents" in failed.last_error


@pytest.mark.parametrize("state", [State.APPLY, State.REPAIR, State.VERIFY, State.RETIRE])
def test_a_pause_and_what_comes_after(state: State) -> None:
    waiting = replacement(state=state, next_attempt_at=9.0, blocked_on="vmmd")
    paused, effects = step(waiting, core.PauseAsked(at=1))
    assert (paused.state, effects) == (State.PAUSED, (Effect.HOLD_REPAIR,))
    assert (paused.next_attempt_at, paused.blocked_on) == (None, "")
    away = run(paused, core.Blocked(at=2, on="vmmd"), core.RetryDue(at=3), core.Resumed(at=4))
    moved = run(away, core.Observed(at=5, bytes_done=1 << 20))
    assert (moved.state, moved.progress.bytes_done) == (State.PAUSED, 1 << 20)
    resumed, effects = step(moved, core.ResumeAsked(at=6))
    assert (resumed.state, effects, resumed.paused_in) == (state, core.WORK[state], None)


def test_a_paused_one_that_fails_is_paused_again_by_a_retry() -> None:
    paused = run(replacement(state=State.REPAIR), core.PauseAsked(at=1))
    failed = run(paused, core.GaveUp(at=2, error="not let in"))
    again = run(failed, core.Retried(at=3))
    assert again.state is State.PAUSED
    assert run(again, core.ResumeAsked(at=4)).state is State.REPAIR


def test_undone_before_it_was_applied() -> None:
    record, effects = step(replacement(state=State.APPLY), core.CancelAsked(at=1))
    assert (record.state, effects) == (State.CANCELLING, (Effect.ASK_WHETHER_UNDOABLE,))
    assert record.recorded == record.replacement
    record, effects = step(record, core.CanUndo(at=2))
    assert (record.state, effects) == (State.UNDO, (Effect.TAKE_BACK,))
    assert record.recorded == record.original
    record, effects = step(record, core.Undone(at=3))
    assert (record.state, effects) == (State.CANCELLED, (Effect.KEEP_TRACE,))
    assert record.state.ended
    assert record.recorded == record.original
    assert not record.touched


@pytest.mark.parametrize("state", [State.CANCELLING, State.UNDO])
def test_too_late_to_undo(state: State) -> None:
    record = replacement(state=state)
    forward, effects = step(record, core.Kept(at=1, detail="it is filled"))
    assert (forward.state, effects) == (State.REPAIR, (Effect.WATCH_REPAIR,))
    assert (forward.recorded, forward.last_error) == (record.replacement, "it is filled")
    stuck, effects = step(record, core.CannotUndo(at=1, detail="the old one is gone"))
    assert (stuck.state, stuck.last_error) == (State.FAILED, "the old one is gone")
    assert stuck.recorded == record.replacement
    assert run(stuck, core.Retried(at=2)).state is State.REPAIR


def test_one_that_failed_while_it_was_undone_goes_on_undoing() -> None:
    failed = run(replacement(state=State.UNDO), core.GaveUp(at=1, error="not let in"))
    assert failed.recorded == failed.original
    for word in (core.Retried(at=2), core.CancelAsked(at=2)):
        assert run(failed, word).state is State.UNDO
    other = run(replacement(state=State.REPAIR), core.GaveUp(at=1, error="no"))
    assert run(other, core.CancelAsked(at=2)).state is State.CANCELLING


def test_a_target_that_the_machine_may_have_let_in_is_touched() -> None:
    applied = run(replacement(state=State.APPLY), core.Applied(at=1, result="STARTED"))
    assert applied.touched
    # A log that was cut says nothing of its beginning.
    assert replace(
        applied, transitions=(replace(applied.transitions[0], number=3, event="Kept"),)
    ).touched


def test_steps_have_deadlines_and_repairs_have_none() -> None:
    for state in (State.APPLY, State.RETIRE, State.CANCELLING, State.UNDO):
        assert core.deadline_seconds(replacement(state=state)) == core.STEP_SECONDS
    for state in (State.REPAIR, State.PAUSED):
        assert core.deadline_seconds(replacement(state=state)) is None
    assert core.deadline_seconds(replacement(state=State.VERIFY)) == core.STEP_SECONDS + 512


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
