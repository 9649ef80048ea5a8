"""What a drain does next, and why the rest waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

from controlplane.core.drain import Drain, Plan, State, departing, members_left, plan, recorded
from controlplane.core.fleet import FleetPolicy, Place
from controlplane.core.replacement import Replacement
from controlplane.core.replacement import State as ReplacementState
from tests.unit.controlplane.core import records_made as made

DRAIN = Drain(UUID(int=5), "h0", 1.0, 1.0)
POLICY = FleetPolicy(at_once_max=2)
FIRST = made.disk(name="one")
SECOND = made.disk(name="two", key=UUID(int=20))
KEY = (FIRST.key, "sub_volumes[0]", 0)
PLACES = {made.TARGETS[0]: Place(made.TARGETS[0], "h0")}


def move(state: ReplacementState, number: int = 7, **changes: Any) -> Replacement:
    return made.replacement(
        number, state=state, slot=0, disk="one", old_target=made.TARGETS[0],
        asked_by=DRAIN.asked_by, **changes,
    )  # fmt: skip


def planned(
    disks: Any, moves: Any = (), running: Any = (), policy: FleetPolicy = POLICY, **held: Any
) -> Plan:
    left = members_left(DRAIN, disks, PLACES) + departing(DRAIN, running, PLACES)
    now = {KEY: made.replacement().new_target, **recorded(disks)}
    return plan(left, moves, running, now, policy, held.get("held", {}))


def test_what_is_left_is_what_the_requests_name() -> None:
    left = members_left(DRAIN, [SECOND, FIRST], PLACES)
    assert [(each.disk, each.slot, each.target) for each in left] == [
        ("one", 0, made.TARGETS[0]),
        ("two", 0, made.TARGETS[0]),
    ]
    alone = replace(DRAIN, target=made.TARGETS[1])
    assert [each.slot for each in members_left(alone, [FIRST], {})] == [1]
    whole = replace(DRAIN, target="127.0.0.1")
    assert len(members_left(whole, [FIRST], {})) == 3, "the host of the address"
    assert len(members_left(whole, [FIRST], PLACES)) == 2, "unless another host was told"


def test_one_volume_at_a_time() -> None:
    found = planned([FIRST, SECOND])
    assert found.begin is not None
    assert found.begin.disk == "one"
    assert "one volume at a time" in found.left[1].waits_for
    running = move(ReplacementState.REPAIR)
    found = planned([SECOND], [running], [running])
    assert found.begin is None
    assert not found.over
    assert str(running.id) in found.left[0].waits_for
    found = planned([SECOND], [replace(running, state=ReplacementState.DONE)])
    assert found.begin is not None


def test_it_waits_for_the_fleet_and_for_others_on_the_disk() -> None:
    others = [
        made.replacement(8, disk_key=UUID(int=80)),
        made.replacement(9, disk_key=UUID(int=90)),
    ]
    for running, policy, word in (
        (others, POLICY, "the fleet may have 2"),
        ((), replace(POLICY, maintenance=True), "maintenance"),
        ([made.replacement(8)], POLICY, "of its disk is running"),
    ):
        found = planned([FIRST], (), running, policy)
        assert found.begin is None
        assert word in found.left[0].waits_for
    assert planned([FIRST], held={KEY: "no spare"}).left[0].waits_for == "no spare"


def test_it_is_over_when_all_that_was_moved_is_whole() -> None:
    assert planned([]).over
    assert planned([], [move(ReplacementState.DONE)]).over
    failed = move(ReplacementState.FAILED, last_error="they differ")
    found = planned([], [failed])
    assert not found.over
    assert "they differ" in found.left[0].waits_for
    later = move(ReplacementState.DONE, 8)
    assert planned([], [failed, later]).over, "the newest of a slot counts"


def test_a_move_that_was_cancelled_is_not_begun_again() -> None:
    cancelled = move(ReplacementState.CANCELLED)
    found = planned([FIRST], [cancelled])
    assert found.begin is None
    assert str(cancelled.id) in found.left[0].waits_for
    assert planned([], [cancelled]).over, "the slot has another member now"


def test_what_somebody_else_moves_away_is_waited_for() -> None:
    other = move(ReplacementState.REPAIR, 9, disk_key=UUID(int=30))
    other = replace(other, asked_by="operator")
    found = planned([], (), [other])
    assert not found.over
    assert str(other.id) in found.left[0].waits_for


def test_a_failed_move_is_resolved_by_another_replacement_of_the_slot() -> None:
    failed = move(ReplacementState.FAILED)
    assert not planned([], [failed]).over
    again = made.volume(made.region(("x:1", *made.TARGETS[1:]), gen=9))
    assert planned([made.disk(name="one", construction=again)], [failed]).over


def test_states() -> None:
    assert [each for each in State if each.holds] == [State.RUNNING, State.DONE]
