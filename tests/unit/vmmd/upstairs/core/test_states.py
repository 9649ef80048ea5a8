"""Every state with every move: in the table and taken, or refused by name."""

from __future__ import annotations

import itertools

import pytest

from vmmd.upstairs.core.states import (
    SLOT_TRANSITIONS,
    UPSTAIRS_TRANSITIONS,
    IllegalMoveError,
    SlotMove,
    SlotState,
    UpstairsMove,
    UpstairsState,
    move_slot,
    move_upstairs,
)


@pytest.mark.parametrize(("state", "move"), list(itertools.product(UpstairsState, UpstairsMove)))
def test_an_upstairs_moves_by_its_table_or_not_at_all(state, move):
    after = UPSTAIRS_TRANSITIONS[state].get(move)
    if after is None:
        with pytest.raises(IllegalMoveError) as refused:
            move_upstairs(state, move)
        assert refused.value.metadata == {"state": state.name, "event": move.value}
    else:
        assert move_upstairs(state, move) is after


@pytest.mark.parametrize(("state", "move"), list(itertools.product(SlotState, SlotMove)))
def test_a_slot_moves_by_its_table_or_not_at_all(state, move):
    after = SLOT_TRANSITIONS[state].get(move)
    if after is None:
        with pytest.raises(IllegalMoveError, match=state.name):
            move_slot(state, move)
    else:
        assert move_slot(state, move) is after


@pytest.mark.parametrize("table", [UPSTAIRS_TRANSITIONS, SLOT_TRANSITIONS])
def test_every_state_can_be_reached_and_left(table):
    reached = {after for moves in table.values() for after in moves.values()}
    assert reached == set(table)
    assert all(table.values())


def test_any_slot_that_is_connected_can_be_lost():
    for state in SlotState:
        if state is not SlotState.WAIT_CONNECT:
            assert move_slot(state, SlotMove.LOST) is SlotState.WAIT_CONNECT
