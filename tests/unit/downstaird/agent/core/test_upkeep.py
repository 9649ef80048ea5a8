"""How a region's process is kept up: by the table, with pauses that grow, are bounded and end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from downstaird.agent.core.upkeep import (
    FIRST_PAUSE_SECONDS,
    LAST_PAUSE_SECONDS,
    PROCESS,
    STEADY_SECONDS,
    ProcessEvent,
    ProcessState,
    Upkeep,
    step,
)

E, S = ProcessEvent, ProcessState


def crashed(upkeep: Upkeep, times: int, seconds: float = 1.0) -> Upkeep:
    for _ in range(times):
        upkeep = step(step(upkeep, E.ENDED, seconds), E.PAUSE_OVER)
    return upkeep


@given(st.lists(st.tuples(st.sampled_from(E), st.floats(0, 1000)), max_size=30))
def test_any_sequence_keeps_the_pause_in_bounds_and_can_be_ended(
    events: list[tuple[E, float]],
) -> None:
    upkeep = Upkeep()
    for event, seconds in events:
        if not PROCESS.allows(upkeep.state, event):
            continue
        upkeep = step(upkeep, event, seconds)
        assert FIRST_PAUSE_SECONDS <= upkeep.pause <= LAST_PAUSE_SECONDS
    upkeep = step(upkeep, E.UNWANTED)
    if upkeep.state is S.STOPPING:
        upkeep = step(upkeep, E.ENDED)
    assert upkeep.state is S.NONE


def test_quick_ends_make_the_pause_longer_and_it_never_gives_up() -> None:
    begun = step(Upkeep(), E.WANTED)
    assert crashed(begun, 1).pause == 2 * FIRST_PAUSE_SECONDS
    many = crashed(begun, 50)
    assert many.pause == LAST_PAUSE_SECONDS
    assert many.restarts == 50
    assert many.state is S.STARTING


def test_one_that_ran_for_a_while_is_started_again_soon() -> None:
    many = step(crashed(step(Upkeep(), E.WANTED), 50), E.READY)
    assert step(many, E.ENDED, STEADY_SECONDS).pause == FIRST_PAUSE_SECONDS
    assert step(many, E.ENDED, STEADY_SECONDS - 1).pause == LAST_PAUSE_SECONDS


def test_an_end_that_was_asked_for_is_no_reason_to_start_again() -> None:
    running = step(step(Upkeep(), E.WANTED), E.READY)
    assert step(step(running, E.UNWANTED), E.ENDED).state is S.NONE
