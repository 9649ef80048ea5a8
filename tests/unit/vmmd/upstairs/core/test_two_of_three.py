"""An activation that goes on with two members when the third stays away, and when it must not."""

from __future__ import annotations

import pytest

from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events
from vmmd.upstairs.core.slot_states import SlotMode, SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState

AFTER = 5.0


def settle(world):
    assert world.run_until(lambda: not world.in_flight, 20)


def slot(world, number):
    return world.upstairs.status().slots[number]


def durable(world, *addresses):
    world.submit([world.flush()])
    settle(world)
    first, *others = [world.daemons[address] for address in addresses]
    assert world.run_until(lambda: all(d.durable == first.durable for d in others), 5)


@pytest.fixture
def world():
    """Everything is on all three; then the upstairs and its daemons die, and d2 does not return."""
    made = World(1)
    made.ask(events.Activate)
    assert made.run_until(made.healthy, 5)
    made.submit([made.write(0, made.geometry.block_count)])
    durable(made, *made.targets)
    made.two_after = AFTER
    return made


def all_down(world):
    for address in world.daemons:
        world.crash(address)
    world.crash_upstairs()


def activate(world, *addresses):
    for address in addresses:
        world.start(address)
    return world.ask(events.Activate)


def read_all(world):
    world.submit([world.read(block, 1) for block in range(world.geometry.block_count)])
    settle(world)
    assert world.counts.get("read FAILED", 0) == 0


def test_two_serve_after_the_stated_time_and_the_third_is_filled(world):
    all_down(world)
    key = activate(world, "d0:1", "d1:1")
    assert not world.run_until(lambda: key in world.answers, AFTER - 1)
    reason = world.upstairs.status().reason
    assert "slot 2 (d2:1) is away" in reason
    assert "serves with two in" in reason
    assert world.run_until(lambda: key in world.answers, 3)
    assert world.answers[key].error is None
    assert world.upstairs.status().reason == ""
    read_all(world)
    world.submit([world.write(3, 4)])
    durable(world, "d0:1", "d1:1")
    assert slot(world, 2).mode is SlotMode.FAULTED
    world.start("d2:1")
    assert world.run_until(world.healthy, 30)
    assert slot(world, 2).repairs_completed == 1
    durable(world, *world.targets)
    read_all(world)


def test_it_is_off_unless_asked_for(world):
    world.two_after = 0.0
    all_down(world)
    key = activate(world, "d0:1", "d1:1")
    assert not world.run_until(lambda: key in world.answers, 120)
    assert world.upstairs.status().reason == ""


def test_one_is_never_enough(world):
    all_down(world)
    key = activate(world, "d0:1")
    assert not world.run_until(lambda: key in world.answers, 120)


def test_the_time_begins_when_two_are_there(world):
    all_down(world)
    key = activate(world, "d0:1")
    assert not world.run_until(lambda: key in world.answers, 3 * AFTER)
    world.start("d1:1")
    # One long reconnect delay, then the time itself.
    assert not world.run_until(lambda: key in world.answers, AFTER - 0.5)
    assert world.run_until(lambda: key in world.answers, 12)


def test_a_flush_that_one_of_the_two_missed_is_served(world):
    world.crash("d1:1")
    world.submit([world.write(0, 8)])
    durable(world, "d0:1", "d2:1")
    all_down(world)
    key = activate(world, "d0:1", "d1:1")
    assert world.run_until(lambda: key in world.answers, 3 * AFTER)
    read_all(world)
    durable(world, "d0:1", "d1:1")


def test_a_third_that_comes_while_the_two_are_made_equal_is_filled(world):
    world.crash("d1:1")
    world.submit([world.write(0, 24)])
    durable(world, "d0:1", "d2:1")
    all_down(world)
    world.delay = 0.1
    key = activate(world, "d0:1", "d1:1")
    assert world.run_until(lambda: slot(world, 1).state is SlotState.RECONCILE, 3 * AFTER)
    world.start("d2:1")
    # It is its turn to connect just now.
    world.upstairs._region.members[2].retry_at = 0.0
    assert world.run_until(lambda: slot(world, 2).state is SlotState.WAIT_QUORUM, 2)
    assert slot(world, 1).state is SlotState.RECONCILE
    assert world.run_until(lambda: key in world.answers, 30)
    assert world.run_until(world.healthy, 60)
    assert slot(world, 2).repairs_completed == 1
    read_all(world)


def refused(world, *addresses, why):
    key = activate(world, *addresses)
    assert not world.run_until(lambda: key in world.answers, 60)
    assert world.upstairs.state is UpstairsState.GO_ACTIVE
    assert "cannot serve with two" in world.upstairs.status().reason
    assert why in world.upstairs.status().reason
    return key


def test_not_with_a_new_region(world):
    """d1's disk is lost; d2 and the lost one may be the two that had the last flush."""
    world.targets[1] = "d3:1"
    all_down(world)
    key = refused(world, "d0:1", "d3:1", why="never a member")
    # Asked for again, the region is owned by now, and still holds nothing.
    world.crash_upstairs()
    key = refused(world, "d0:1", "d3:1", why="holds nothing")
    world.start("d2:1")
    assert world.run_until(lambda: key in world.answers, 20)


def test_not_with_a_member_that_was_being_filled(world):
    world.ask(lambda key: events.Replace(key, "d1:1", "d3:1"))
    filled = world.daemons["d3:1"]
    assert world.run_until(lambda: any(filled.durable_extents.incomplete), 5)
    world.targets[1] = "d3:1"
    all_down(world)
    refused(world, "d0:1", "d3:1", why="being filled")
    world.start("d2:1")
    assert world.run_until(world.healthy, 60)


def test_not_with_a_damaged_member(world):
    all_down(world)
    honest = world.daemons["d1:1"]._stamps

    def damaged():
        stamps = honest()
        stamps.flags[2] |= 4
        return stamps

    world.daemons["d1:1"]._stamps = damaged
    refused(world, "d0:1", "d1:1", why="damaged")


def test_not_with_a_member_put_in_the_place_of_another_meanwhile(world):
    """An old member that is welcome back holds what it held when it left."""
    all_down(world)
    world.daemons["d3:1"].copy_of(world.daemons["d2:1"])
    world.daemons["d3:1"].promoted = ("", 1)
    key = activate(world, "d0:1")
    world.ask(lambda key: events.Replace(key, "d1:1", "d3:1"))
    world.start("d3:1")
    assert not world.run_until(lambda: key in world.answers, 60)
    assert "in the place of another" in world.upstairs.status().reason


def test_not_when_nothing_was_ever_written():
    world = World(2)
    world.two_after = AFTER
    world.daemons["d2:1"].up = False
    world.crash_upstairs()
    refused(world, why="never a member")


def test_a_deactivation_ends_the_wait(world):
    all_down(world)
    key = activate(world, "d0:1", "d1:1")
    world.run_until(lambda: False, 1)
    gone = world.ask(events.Deactivate)
    assert world.run_until(lambda: gone in world.answers, 15)
    assert world.answers[gone].error is None
    assert world.answers[key].error is not None


def test_the_absent_one_is_replaced_before_and_after(world):
    all_down(world)
    key = activate(world, "d0:1", "d1:1")
    world.ask(lambda key: events.Replace(key, "d2:1", "d3:1"))
    assert world.run_until(lambda: key in world.answers, 3 * AFTER)
    world.start("d3:1")
    assert world.run_until(world.healthy, 30)
    read_all(world)
