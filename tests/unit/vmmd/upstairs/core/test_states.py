"""Every state with every move: in the table and taken, or refused by name."""

from __future__ import annotations

import itertools

import pytest

from stairlib.model.state_table import IllegalMoveError, StateTable
from vmmd.upstairs.core.reconcile_states import RECONCILE
from vmmd.upstairs.core.repair_states import REPAIR
from vmmd.upstairs.core.slot_states import (
    MODE_AFTER_LOSS,
    SLOT,
    SlotMode,
    SlotMove,
    SlotState,
    mode_after_loss,
)
from vmmd.upstairs.core.upstairs_states import UPSTAIRS, UpstairsMove, UpstairsState

TABLES = {"upstairs": UPSTAIRS, "slot": SLOT, "reconciliation": RECONCILE, "repair": REPAIR}


def every():
    for name, table in TABLES.items():
        states, events = type(table.first), type(table.moves[0][1])
        for state, event in itertools.product(states, events):
            yield pytest.param(table, state, event, id=f"{name}-{state.name}-{event.name}")


@pytest.mark.parametrize(("table", "state", "event"), list(every()))
def test_a_machine_moves_by_its_table_or_not_at_all(table, state, event):
    listed = [after for source, move, after, _ in table.moves if (source, move) == (state, event)]
    assert table.allows(state, event) == bool(listed)
    if listed:
        assert [table.after(state, event)] == listed
    else:
        with pytest.raises(IllegalMoveError, match=table.subject) as refused:
            table.after(state, event)
        assert refused.value.metadata == {"state": state.name, "event": event.name}


@pytest.mark.parametrize("table", list(TABLES.values()), ids=list(TABLES))
def test_every_state_is_reached_from_the_first_and_left_unless_it_is_an_end(table):
    reached, new = set(), {table.first}
    while new:
        reached |= new
        new = {after for state, _, after, _ in table.moves if state in reached} - reached
    assert reached == set(type(table.first))
    assert {state for state, _, _, _ in table.moves} == reached - table.ends
    assert all(meaning for _, _, _, meaning in table.moves)


def test_a_table_with_two_moves_for_one_event_is_a_mistake():
    one = (SlotState.ACTIVE, SlotMove.LOST, SlotState.WAIT_CONNECT, "lost")
    with pytest.raises(AssertionError, match="two moves"):
        StateTable("a slot", SlotState.ACTIVE, [one, one])


def test_any_slot_that_is_connected_can_be_lost():
    for state in SlotState:
        if state is not SlotState.WAIT_CONNECT:
            assert SLOT.after(state, SlotMove.LOST) is SlotState.WAIT_CONNECT


def test_every_way_of_life_of_an_upstairs_can_be_ended():
    for state in (UpstairsState.GO_ACTIVE, UpstairsState.ACTIVE):
        stopping = UPSTAIRS.after(state, UpstairsMove.DEACTIVATE)
        assert UPSTAIRS.after(stopping, UpstairsMove.STOPPED) is UpstairsState.INITIALIZING
        assert UPSTAIRS.after(state, UpstairsMove.FAIL) is UpstairsState.DISABLED


def test_the_mode_after_a_loss_is_told_for_every_state_of_the_upstairs():
    for by_upstairs in MODE_AFTER_LOSS.values():
        assert set(by_upstairs) == set(UpstairsState)


@pytest.mark.parametrize(
    ("state", "upstairs", "mode"),
    [
        (SlotState.ACTIVE, UpstairsState.ACTIVE, SlotMode.OFFLINE),
        (SlotState.ACTIVE, UpstairsState.DEACTIVATING, SlotMode.FAULTED),
        (SlotState.LIVE_REPAIR, UpstairsState.ACTIVE, SlotMode.FAULTED),
        (SlotState.RECONCILE, UpstairsState.GO_ACTIVE, SlotMode.NEW),
        (SlotState.RECONCILE, UpstairsState.ACTIVE, SlotMode.FAULTED),
        (SlotState.WAIT_QUORUM, UpstairsState.GO_ACTIVE, SlotMode.REPLACED),
        (SlotState.LIVE_REPAIR_READY, UpstairsState.ACTIVE, SlotMode.REPLACED),
        (SlotState.NEGOTIATING, UpstairsState.ACTIVE, SlotMode.REPLACED),
    ],
)
def test_the_mode_in_which_a_lost_member_comes_back(state, upstairs, mode):
    assert mode_after_loss(state, SlotMode.REPLACED, upstairs) is mode
