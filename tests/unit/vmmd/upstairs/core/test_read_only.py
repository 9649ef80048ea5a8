"""A read-only set with three model downstairs: one situation each."""

from __future__ import annotations

import itertools

import pytest

from tests.unit.vmmd.upstairs.world import World
from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.upstairs.core import events, limits
from vmmd.upstairs.core.events import ReplaceResult
from vmmd.upstairs.core.slot_states import SlotMode, SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState

SIZE = 512
ALL = ("d0:1", "d1:1", "d2:1")


def filled(seed=1):
    """All daemons hold the same, are read-only and up; the upstairs is not active."""
    world = World(seed)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    count = world.geometry.block_count
    world.submit([world.write(0, count), world.write(3, 1, discard=True), world.flush()])
    settle(world)
    key = world.ask(events.Deactivate)
    assert world.run_until(lambda: key in world.answers, 10)
    world.restart_read_only()
    return world


@pytest.fixture
def world():
    return filled()


@pytest.fixture
def active(world):
    activate(world)
    assert world.run_until(world.healthy, 5)
    return world


def activate(world, seconds=5.0, generation=None):
    key = world.ask(lambda key: events.Activate(key, generation))
    assert world.run_until(lambda: key in world.answers, seconds)
    assert world.answers[key].error is None


def settle(world, seconds=10.0):
    assert world.run_until(lambda: not world.in_flight, seconds)


def slot(world, number):
    return world.upstairs.status().slots[number]


def states(world):
    return [one.state for one in world.upstairs.status().slots]


def replace(world, old, new):
    return world.answers[world.ask(lambda key: events.Replace(key, old, new))]


def read_all(world):
    """Reads and checks every block a few times."""
    count = world.geometry.block_count
    for _ in range(4):
        world.submit([world.read(block, 1, owned=bool(block % 2)) for block in range(count)])
        settle(world, 30)
    assert "read FAILED" not in world.counts


def age(world, address, extent=0):
    """The daemon missed the last flush of an extent; its data there is another one."""
    daemon = world.daemons[address]
    daemon.durable_extents.flush[extent] -= 1
    for block in range(extent * 4, extent * 4 + 4):
        daemon.durable.pop(block, None)
    daemon.crash()
    daemon.up = True


@pytest.mark.parametrize("alone", ALL)
def test_one_member_is_enough(world, alone):
    for address in ALL:
        if address != alone:
            world.crash(address)
    activate(world)
    read_all(world)
    assert states(world).count(SlotState.ACTIVE) == 1
    for address in ALL:
        world.start(address)
    assert world.run_until(world.healthy, 15)
    read_all(world)


@pytest.mark.parametrize("missing", ALL)
def test_two_members_are_enough(world, missing):
    world.crash(missing)
    activate(world)
    read_all(world)
    assert world.upstairs.status().read_only


def test_activation_waits_for_the_first_member(world):
    for address in ALL:
        world.crash(address)
    key = world.ask(events.Activate)
    assert not world.run_until(lambda: key in world.answers, 30)
    assert "refused" in slot(world, 1).last_error
    world.start("d1:1")
    assert world.run_until(lambda: key in world.answers, 15)
    assert world.answers[key].error is None
    read_all(world)


def test_any_generation_activates(world):
    activate(world, generation=0)
    activate(world, generation=7)
    assert world.upstairs.state is UpstairsState.ACTIVE


def test_a_member_that_is_served_for_writing_is_refused_by_name(world):
    world.daemons["d2:1"].read_only = False
    activate(world)
    assert world.run_until(lambda: "READ_ONLY_MISMATCH" in slot(world, 2).last_error, 5)
    read_all(world)


def test_changes_are_refused_and_a_flush_has_nothing_to_do(active):
    data = bytes(SIZE)
    found = []
    requests = [
        Request(BlockOp.WRITE, "w", 0, 1, data),
        Request(BlockOp.WRITE_UNWRITTEN, "u", 0, 1, data),
        Request(BlockOp.DISCARD, "d", 0, 1),
        Request(BlockOp.FLUSH, "f"),
    ]
    for request in requests:
        active.in_flight[request.token] = lambda status, *_: found.append(status)
    active.submit(requests)
    assert found == [BlockStatus.READ_ONLY] * 3 + [BlockStatus.OK]
    read_all(active)


def test_a_lost_member_joins_again_without_being_filled(active):
    active.crash("d1:1")
    read_all(active)
    assert slot(active, 1).mode is SlotMode.OFFLINE
    active.start("d1:1")
    assert active.run_until(active.healthy, 15)
    assert slot(active, 1).repairs_completed == 0
    read_all(active)


def test_reads_wait_while_all_are_away_and_go_on_with_any(active):
    for address in ALL:
        active.crash(address)
    active.submit([active.read(0, 4)])
    assert not active.run_until(lambda: not active.in_flight, 5)
    active.start("d2:1")
    settle(active)
    assert active.counts == {"write OK": 2, "flush OK": 1, "read OK": 1}


def test_a_read_under_way_survives_the_loss_of_the_only_member(active):
    active.crash("d0:1")
    active.crash("d1:1")
    assert active.run_until(lambda: states(active).count(SlotState.ACTIVE) == 1, 5)
    active.submit([active.read(0, 4)])
    active.break_links("d2:1")
    settle(active)
    assert active.counts["read OK"] == 1


def test_reads_fail_when_all_are_away_for_long_and_succeed_when_one_is_back(active):
    for address in ALL:
        active.crash(address)
    active.submit([active.read(0, 4)])
    settle(active, limits.OFFLINE_SECONDS_MAX + 5)
    assert active.counts["read FAILED"] == 1
    assert active.upstairs.state is UpstairsState.ACTIVE
    active.start("d0:1")
    assert active.run_until(lambda: SlotState.ACTIVE in states(active), 15)
    active.submit([active.read(0, 4)])
    settle(active)
    assert active.counts["read OK"] == 1


@pytest.mark.parametrize("old", ALL)
def test_an_outdated_member_is_not_served_from(world, old):
    age(world, old)
    activate(world)
    number = ALL.index(old)
    assert world.run_until(lambda: "MEMBER_OUTDATED" in slot(world, number).last_error, 5)
    assert states(world).count(SlotState.ACTIVE) == 2
    read_all(world)
    # It is tried again, and serves once its region was made anew.
    world.daemons[old].copy_of(world.daemons[ALL[number - 1]])
    assert world.run_until(world.healthy, 30)
    read_all(world)


@pytest.mark.parametrize("new", ALL)
def test_the_older_ones_leave_when_a_newer_comes(world, new):
    old = [address for address in ALL if address != new]
    for address in old:
        age(world, address)
    world.crash(new)
    activate(world)
    assert states(world).count(SlotState.ACTIVE) == 2
    world.start(new)
    assert world.run_until(lambda: slot(world, ALL.index(new)).state is SlotState.ACTIVE, 15)
    assert states(world).count(SlotState.ACTIVE) == 1
    read_all(world)
    # What was seen once must not go back in time.
    world.crash(new)
    world.submit([world.read(0, 4)])
    settle(world, limits.OFFLINE_SECONDS_MAX + 5)
    assert world.counts["read FAILED"] == 1
    assert SlotState.ACTIVE not in states(world)


def test_the_first_to_come_does_not_serve_while_a_newer_one_is_being_reached(world):
    age(world, "d0:1")
    for _ in range(10):
        world.start_upstairs()
        activate(world)
        assert slot(world, 0).state is not SlotState.ACTIVE
        read_all(world)


def test_members_of_which_each_lacks_something_do_not_serve(world):
    age(world, "d0:1", extent=0)
    age(world, "d1:1", extent=1)
    world.crash("d2:1")
    key = world.ask(events.Activate)
    assert not world.run_until(lambda: key in world.answers, 10)
    assert "MEMBER_OUTDATED" in slot(world, 0).last_error
    assert "extent 1 " in slot(world, 1).last_error
    world.start("d2:1")
    assert world.run_until(lambda: key in world.answers, 15)
    assert slot(world, 2).state is SlotState.ACTIVE
    read_all(world)


def test_a_member_that_was_being_filled_does_not_serve_even_alone(world):
    world.daemons["d0:1"].durable_extents.incomplete[2] = True
    for address in ALL:
        world.crash(address)
    world.start("d0:1")
    key = world.ask(events.Activate)
    assert not world.run_until(lambda: key in world.answers, 10)
    assert "MEMBER_NOT_WHOLE: extent 2 " in slot(world, 0).last_error
    world.start("d1:1")
    assert world.run_until(lambda: key in world.answers, 15)
    read_all(world)


def test_a_member_is_replaced_by_a_copy_without_filling_it(active):
    active.daemons["d3:1"].copy_of(active.daemons["d0:1"])
    assert replace(active, "d1:1", "d3:1").value.result is ReplaceResult.STARTED
    assert slot(active, 1).departing_address == "d1:1"
    assert replace(active, "d1:1", "d3:1").value.result is ReplaceResult.STARTED_ALREADY
    refused = replace(active, "d2:1", "d9:1").error
    assert refused.reason == "REPLACEMENT_RUNNING"
    assert active.run_until(active.healthy, 5)
    assert replace(active, "d1:1", "d3:1").value.result is ReplaceResult.COMPLETED_ALREADY
    assert slot(active, 1).address == "d3:1"
    assert slot(active, 1).repairs_completed == 0
    read_all(active)


@pytest.mark.parametrize(
    ("what", "code"),
    [("blank", "MEMBER_OUTDATED"), ("newer", "MEMBER_DIFFERS"), ("torn", "MEMBER_NOT_WHOLE")],
)
def test_a_replacement_that_holds_other_data_does_not_serve(active, what, code):
    spare = active.daemons["d3:1"]
    if what != "blank":
        spare.copy_of(active.daemons["d0:1"])
        if what == "newer":
            spare.durable_extents.generation[1] += 5
        else:
            spare.durable_extents.incomplete[1] = True
        spare.crash()
        spare.up = True
    replace(active, "d1:1", "d3:1")
    assert active.run_until(lambda: code in slot(active, 1).last_error, 5)
    # The one that is to leave serves on until its successor can.
    assert slot(active, 1).departing_address == "d1:1"
    read_all(active)
    assert states(active).count(SlotState.ACTIVE) == 2
    assert replace(active, "d3:1", "d1:1").value.result is ReplaceResult.STARTED
    assert active.healthy()


@pytest.mark.parametrize("foreign", ALL)
def test_a_region_of_another_volume_does_not_serve_however_new(world, foreign):
    daemon = world.daemons[foreign]
    daemon.owner = "another volume"
    daemon.durable_extents.generation[0] += 9
    daemon.durable[0] = daemon.durable[1]
    daemon.crash()
    daemon.up = True
    activate(world)
    number = ALL.index(foreign)
    assert world.run_until(lambda: "OWNER_MISMATCH" in slot(world, number).last_error, 5)
    assert states(world).count(SlotState.ACTIVE) == 2
    read_all(world)
    # Nor later, when it comes after the others.
    world.break_links(foreign)
    assert world.run_until(lambda: slot(world, number).state is SlotState.NEGOTIATING, 15)
    read_all(world)
    assert states(world).count(SlotState.ACTIVE) == 2


def test_a_region_of_another_volume_does_not_serve_because_the_right_ones_do_not(world):
    foreign = world.daemons["d2:1"]
    foreign.owner = "another volume"
    age(world, "d0:1", extent=0)
    age(world, "d1:1", extent=1)
    world.ask(events.Activate)
    assert not world.run_until(lambda: SlotState.ACTIVE in states(world), 60)
    assert "OWNER_MISMATCH" in slot(world, 2).last_error


def test_an_empty_region_that_came_first_gives_way(world):
    world.daemons["d0:1"].recreate("region-9")
    world.crash("d1:1")
    world.crash("d2:1")
    activate(world)
    world.start("d1:1")
    world.start("d2:1")
    assert world.run_until(lambda: "MEMBER_OUTDATED" in slot(world, 0).last_error, 15)
    assert world.run_until(lambda: states(world).count(SlotState.ACTIVE) == 2, 15)
    read_all(world)


def test_a_set_may_be_read_by_an_upstairs_that_does_not_own_it(world):
    for daemon in world.daemons.values():
        daemon.owner = "a volume that was written before"
    activate(world)
    assert world.run_until(world.healthy, 5)
    read_all(world)


def test_a_replacement_of_another_volume_does_not_serve(active):
    spare = active.daemons["d3:1"]
    spare.copy_of(active.daemons["d0:1"])
    spare.owner = "another volume"
    replace(active, "d1:1", "d3:1")
    assert active.run_until(lambda: "OWNER_MISMATCH" in slot(active, 1).last_error, 5)
    read_all(active)


def test_a_set_without_any_member_left_is_saved_by_a_copy(active):
    active.daemons["d3:1"].copy_of(active.daemons["d0:1"])
    for address in ALL:
        active.crash(address)
    assert active.run_until(
        lambda: all(s.mode is SlotMode.FAULTED for s in active.upstairs.status().slots),
        limits.OFFLINE_SECONDS_MAX + 10,
    )
    assert replace(active, "d0:1", "d3:1").value.result is ReplaceResult.STARTED
    assert active.run_until(lambda: slot(active, 0).state is SlotState.ACTIVE, 15)
    active.submit([active.read(0, 24)])
    settle(active)
    assert active.counts["read OK"] == 1


def test_a_member_is_replaced_before_the_set_is_active(world):
    world.daemons["d3:1"].copy_of(world.daemons["d0:1"])
    for address in ALL:
        world.crash(address)
    key = world.ask(events.Activate)
    world.run_until(lambda: False, 3)
    assert replace(world, "d2:1", "d3:1").value.result is ReplaceResult.STARTED
    assert world.run_until(lambda: key in world.answers, 15)
    assert slot(world, 2).state is SlotState.ACTIVE
    read_all(world)


@pytest.mark.parametrize("away", [0, 1, 3])
def test_deactivation_ends_and_activation_follows(active, away):
    for address in ALL[:away]:
        active.crash(address)
    active.submit([active.read(0, 4)])
    key = active.ask(events.Deactivate)
    assert active.run_until(lambda: key in active.answers, limits.DEACTIVATE_SECONDS_MAX + 5)
    assert active.answers[key].error is None
    assert not active.in_flight
    active.counts.clear()
    for address in ALL:
        active.start(address)
    activate(active)
    assert active.run_until(active.healthy, 15)
    read_all(active)


def test_members_are_compared_without_a_flush(active):
    active.crash("d2:1")
    assert active.run_until(lambda: slot(active, 2).state is not SlotState.ACTIVE, 5)
    key = active.ask(events.Verify)
    assert active.run_until(lambda: key in active.answers, 10)
    digests = active.answers[key].value.by_slot
    assert sorted(digests) == [0, 1]
    for one, other in itertools.pairwise(digests.values()):
        assert one.tolist() == other.tolist()


def test_another_upstairs_in_its_place_ends_it(active):
    link = active.upstairs._region.members[0].link
    active.feed(events.Notice(link, "NO_LONGER_ACTIVE taken over by upstairs 1"))
    assert active.upstairs.state is UpstairsState.DISABLED
    assert "taken over" in active.upstairs.status().reason


def test_a_new_activation_compares_only_who_is_there(world):
    age(world, "d0:1")
    age(world, "d1:1")
    activate(world)
    assert world.run_until(lambda: slot(world, 2).state is SlotState.ACTIVE, 5)
    world.crash("d2:1")
    key = world.ask(events.Deactivate)
    assert world.run_until(lambda: key in world.answers, limits.DEACTIVATE_SECONDS_MAX + 5)
    activate(world)
    assert world.run_until(lambda: states(world).count(SlotState.ACTIVE) == 2, 15)
