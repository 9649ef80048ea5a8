"""Snapshots asked of an agent: the table, idempotent requests, and what a region's end asks."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downstaird.agent.core.intent import (
    SNAPSHOTS_ASKED_MAX,
    Intent,
    Wanted,
    destroyed,
    moved,
    requested,
    snapshot_asked,
    snapshot_moved,
    snapshot_unasked,
)
from downstaird.agent.core.region_states import RegionEvent, RegionState
from downstaird.agent.core.snapshot_wishes import (
    SNAPSHOT,
    Wish,
    Wishes,
    WishEvent,
    WishState,
    asked,
    unasked,
    wished,
)
from stairlib.model.errors import LimitError, NotFoundError, StateError
from stairlib.model.geometry import Geometry

E, S = WishEvent, WishState
ONE = uuid.UUID(int=1)


def created(source: str = "") -> Intent:
    intent = requested(Intent(), Wanted(ONE, Geometry(4096, 16, 4), source=source), 8810)
    intent = moved(intent, ONE, RegionEvent.CREATE_BEGUN)
    return moved(intent, ONE, RegionEvent.CREATE_DONE)


@given(st.sampled_from(S), st.lists(st.sampled_from(E), max_size=12))
def test_every_sequence_moves_by_the_table_and_a_deletion_always_leads_out(
    state: S, events: Sequence[E]
) -> None:
    for event in events:
        if SNAPSHOT.allows(state, event):
            state = SNAPSHOT.after(state, event)
    if state is not S.GONE:
        state = SNAPSHOT.after(state, E.DELETE_ASKED)
        assert state is S.GONE or SNAPSHOT.after(state, E.DELETE_DONE) is S.GONE


def test_the_same_again_is_the_same_record() -> None:
    once = asked((), "a")
    assert asked(once, "a") is once
    taking = wished(once, "a", E.TAKE_BEGUN)
    assert asked(taking, "a") is taking
    taken = wished(taking, "a", E.TAKE_DONE, flush=(3, 7))
    assert asked(taken, "a") is taken
    assert taken == (Wish("a", S.TAKEN, 3, 7),)
    going = unasked(taken, "a")
    assert unasked(going, "a") is going
    assert wished(going, "a", E.DELETE_DONE) == ()


def test_one_that_failed_says_why_and_is_tried_again_or_let_go() -> None:
    failed = wished(asked((), "a"), "a", E.TAKE_FAILED, reason="in use")
    assert failed == (Wish("a", S.FAILED, reason="in use"),)
    # The region is not asked: what has the name there may be another's.
    assert unasked(failed, "a") == ()
    assert asked(failed, "a") == (Wish("a"),)


def test_a_name_that_is_going_is_not_taken_meanwhile() -> None:
    with pytest.raises(StateError) as refused:
        asked(unasked((), "a"), "a")
    assert refused.value.reason == "SNAPSHOT_DELETING"


def test_only_created_writable_regions_have_snapshots() -> None:
    fresh = requested(Intent(), Wanted(ONE, Geometry(4096, 16, 4)), 8810)
    for change in (snapshot_asked, snapshot_unasked):
        with pytest.raises(StateError) as early:
            change(fresh, ONE, "a")
        assert early.value.reason == "REGION_NOT_CREATED"
        with pytest.raises(StateError, match="host:8810") as copy:
            change(created("host:8810"), ONE, "a")
        assert copy.value.reason == "READ_ONLY"
        with pytest.raises(NotFoundError):
            change(Intent(), ONE, "a")


def test_records_of_snapshots_are_bounded() -> None:
    intent = created()
    for number in range(SNAPSHOTS_ASKED_MAX):
        intent = snapshot_asked(intent, ONE, f"s{number}")
    assert snapshot_asked(intent, ONE, "s0") is intent
    with pytest.raises(LimitError) as failed:
        snapshot_asked(intent, ONE, "another")
    assert failed.value.reason == "SNAPSHOT_LIMIT"


@pytest.mark.parametrize(
    ("wishes", "there", "refused"),
    [
        ((), (), False),
        ((), ("theirs",), True),
        ((Wish("a"),), (), True),
        ((Wish("a", S.TAKING),), (), True),
        ((Wish("a", S.TAKEN),), ("a",), True),
        # Somebody deleted it at the region.
        ((Wish("a", S.TAKEN),), (), False),
        ((Wish("a", S.DELETING),), ("a",), False),
        ((Wish("a", S.FAILED),), (), False),
        ((Wish("a", S.FAILED),), ("a",), True),
    ],
)
def test_a_region_with_snapshots_goes_only_when_they_are_named(
    wishes: Wishes, there: Sequence[str], refused: bool
) -> None:
    intent = created()
    for wish in wishes:
        intent = with_wish(intent, wish)
    if refused:
        with pytest.raises(StateError) as failed:
            destroyed(intent, ONE, frozenset(there), with_snapshots=False)
        assert failed.value.reason == "REGION_HAS_SNAPSHOTS"
        assert "delete them first" in failed.value.message
    else:
        going = destroyed(intent, ONE, frozenset(there), with_snapshots=False)
        assert going.one(ONE).state is RegionState.TOMBSTONED
    going = destroyed(intent, ONE, frozenset(there), with_snapshots=True)
    # Asked for again, it is not refused for what may be half removed.
    assert destroyed(going, ONE, frozenset(there), with_snapshots=False) is going
    gone = moved(going, ONE, RegionEvent.DESTROY_DONE)
    assert gone.one(ONE).snapshots == ()


def with_wish(intent: Intent, wish: Wish) -> Intent:
    """By the events that lead there."""
    events: dict[S, tuple[E, ...]] = {
        S.REQUESTED: (),
        S.TAKING: (E.TAKE_BEGUN,),
        S.TAKEN: (E.TAKE_BEGUN, E.TAKE_DONE),
        S.FAILED: (E.TAKE_FAILED,),
    }
    if wish.state is S.DELETING:
        return snapshot_unasked(intent, ONE, wish.name)
    intent = snapshot_asked(intent, ONE, wish.name)
    for event in events[wish.state]:
        intent = snapshot_moved(intent, ONE, wish.name, event)
    return intent


def test_word_of_a_snapshot_that_was_let_go_changes_nothing() -> None:
    intent = snapshot_asked(created(), ONE, "a")
    let_go = snapshot_moved(snapshot_unasked(intent, ONE, "a"), ONE, "a", E.DELETE_DONE)
    assert snapshot_moved(let_go, ONE, "a", E.TAKE_DONE) is let_go
    going = destroyed(intent, ONE, frozenset(), with_snapshots=True)
    assert snapshot_moved(going, ONE, "a", E.TAKE_BEGUN) is going
