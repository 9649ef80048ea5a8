"""The life of a member: each rule of the table, and laws over random lives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downstaird.dsc.core.member import (
    DOWN,
    CloseAsked,
    Ended,
    Event,
    Kill,
    Member,
    NotSpawned,
    Ready,
    RestartSet,
    RetryDue,
    RetryLater,
    Spawn,
    StartAsked,
    State,
    StopAsked,
    Terminate,
    step,
)

KILLED = Ended(-9)


def member(state: State, **fields: bool) -> Member:
    return Member(state=state, **fields)


@pytest.mark.parametrize("state", sorted(DOWN, key=str))
def test_start_spawns_what_is_down(state: State) -> None:
    assert step(member(state), StartAsked()) == (member(State.STARTING), (Spawn(),))


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING])
def test_start_leaves_what_is_up(state: State) -> None:
    assert step(member(state), StartAsked()) == (member(state), ())


def test_start_waits_for_a_stop_under_way() -> None:
    waiting, effects = step(member(State.STOPPING), StartAsked())
    assert (waiting.start_pending, effects) == (True, ())
    assert step(waiting, KILLED) == (member(State.STARTING), (Spawn(),))


def test_stop_cancels_a_pending_start() -> None:
    waiting, _ = step(member(State.STOPPING), StartAsked())
    calm, _ = step(waiting, StopAsked(graceful=False))
    assert step(calm, KILLED) == (member(State.EXIT), ())


def test_ready_makes_it_run() -> None:
    assert step(member(State.STARTING), Ready()) == (member(State.RUNNING), ())
    assert step(member(State.STOPPING), Ready()) == (member(State.STOPPING), ())


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING])
def test_stop_kills_and_a_graceful_one_asks(state: State) -> None:
    killed, effects = step(member(state), StopAsked(graceful=False))
    assert (killed.state, effects) == (State.STOPPING, (Kill(),))
    asked, effects = step(member(state), StopAsked(graceful=True))
    assert (asked.state, effects) == (State.STOPPING, (Terminate(),))
    assert step(asked, Ended(0))[0].state is State.STOPPED


def test_a_hard_stop_overtakes_a_graceful_one() -> None:
    asked, _ = step(member(State.RUNNING), StopAsked(graceful=True))
    killed, effects = step(asked, StopAsked(graceful=False))
    assert effects == (Kill(),)
    assert step(killed, StopAsked(graceful=True)) == (killed, ())
    assert step(killed, KILLED)[0].state is State.EXIT


def test_ended_by_a_signal_is_exit() -> None:
    assert step(member(State.RUNNING), Ended(-11)) == (member(State.EXIT), ())


@pytest.mark.parametrize("status", [0, 1, 127])
def test_ended_by_itself_is_failed_and_turns_restarts_off(status: int) -> None:
    found = step(member(State.RUNNING, restart=True), Ended(status))
    assert found == (member(State.FAILED, restart=False), ())


def test_a_graceful_stop_that_fails_is_failed() -> None:
    asked, _ = step(member(State.RUNNING, restart=True), StopAsked(graceful=True))
    failed, effects = step(asked, Ended(1))
    assert (failed.state, failed.restart, effects) == (State.FAILED, False, ())


def test_with_restarts_on_a_killed_member_comes_back_at_once() -> None:
    running = member(State.RUNNING, restart=True)
    assert step(running, KILLED) == (member(State.STARTING, restart=True), (Spawn(),))
    stopping, _ = step(running, StopAsked(graceful=False))
    assert step(stopping, KILLED)[1] == (Spawn(),)


def test_one_killed_before_it_answered_comes_back_after_a_pause() -> None:
    down, effects = step(member(State.STARTING, restart=True), KILLED)
    assert (down.state, effects) == (State.EXIT, (RetryLater(),))
    assert step(down, RetryDue())[1] == (Spawn(),)
    off, _ = step(down, RestartSet(enabled=False))
    assert step(off, RetryDue()) == (off, ())
    started, _ = step(down, StartAsked())
    assert step(started, RetryDue()) == (started, ())


@pytest.mark.parametrize("state", sorted(DOWN, key=str))
def test_turning_restarts_on_starts_what_is_down(state: State) -> None:
    assert step(member(state), RestartSet(enabled=True))[1] == (Spawn(),)


def test_turning_restarts_on_leaves_what_is_up() -> None:
    for state in (State.STARTING, State.RUNNING, State.STOPPING):
        assert step(member(state), RestartSet(enabled=True)) == (member(state, restart=True), ())


def test_not_spawned_is_failed() -> None:
    found, effects = step(member(State.STARTING, restart=True), NotSpawned())
    assert (found.state, found.restart, effects) == (State.FAILED, False, ())


def test_closing_ends_it_for_good() -> None:
    closing, effects = step(member(State.RUNNING, restart=True), CloseAsked())
    assert effects == (Terminate(),)
    stopped, effects = step(closing, Ended(0))
    assert (stopped.state, effects) == (State.STOPPED, ())
    for event in (StartAsked(), RestartSet(enabled=True), RetryDue()):
        assert step(stopped, event)[1] == ()


events: st.SearchStrategy[Event] = st.one_of(
    st.sampled_from([StartAsked(), CloseAsked(), Ready(), NotSpawned(), RetryDue()]),
    st.booleans().map(StopAsked),
    st.booleans().map(RestartSet),
    st.sampled_from([0, 1, -9, -15]).map(Ended),
)


@given(st.lists(events, max_size=30))
def test_there_is_never_a_second_process(life: list[Event]) -> None:
    """A process is spawned only when there is none, and only a living one is signalled."""
    now, alive, closed = Member(), False, False
    for event in life:
        if isinstance(event, Ended | NotSpawned | Ready) and not alive:
            continue  # the shell reports these of a process it has
        if isinstance(event, Ended | NotSpawned):
            alive = False
        closed = closed or isinstance(event, CloseAsked)
        now, effects = step(now, event)
        for effect in effects:
            assert alive != isinstance(effect, Spawn) or isinstance(effect, RetryLater)
            alive = alive or isinstance(effect, Spawn)
            assert not (closed and isinstance(effect, Spawn | RetryLater))
        assert alive == (now.state not in DOWN)
