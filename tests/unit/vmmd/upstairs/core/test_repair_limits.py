"""What limits do in the core: how they are divided, sent, and what is told of their effect."""

from __future__ import annotations

import pytest

from stairlib.model.geometry import Geometry
from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events, limits
from vmmd.upstairs.core.repair_limits import RepairLimits

EXTENTS = 40


@pytest.mark.parametrize(
    ("whole", "of", "members", "part"),
    [
        (RepairLimits(), 0, 1, RepairLimits()),
        (RepairLimits(100, 4), 1, 1, RepairLimits(100, 4)),
        (RepairLimits(100, 4), 2, 1, RepairLimits(50, 2)),
        (RepairLimits(100, 4), 3, 2, RepairLimits(66, 2)),
        # No limit is none for everybody; and nobody stands still.
        (RepairLimits(0, 1), 3, 1, RepairLimits(0, 1)),
        (RepairLimits(2, 1), 3, 1, RepairLimits(1, 1)),
    ],
)
def test_limits_are_of_all_members_together(whole, of, members, part):
    assert whole.share(of, members) == part


@pytest.fixture
def world():
    made = World(11, geometry=Geometry(512, 4, EXTENTS), spares=2)
    made.ask(events.Activate)
    assert made.run_until(made.healthy, 5)
    made.submit([made.write(0, 4 * EXTENTS), made.flush()])
    assert made.run_until(lambda: not made.in_flight, 5)
    return made


def repair_of(world):
    return world.upstairs.status().slots[2].repair


def begin(world, wanted):
    """A replacement of slot 2 under these limits; returns once it copies."""
    world.feed(events.SetRepairLimit(wanted))
    world.ask(lambda key: events.Replace(key, "d2:1", "d3:1"))
    assert world.run_until(lambda: repair_of(world) is not None, 5)


def running(world):
    return len(world.upstairs._repair.copies._running)


def test_no_more_copies_are_begun_than_may_be(world):
    begin(world, RepairLimits(0, 2))
    most = 0

    def over():
        nonlocal most
        copies = world.upstairs._repair
        if copies is not None and copies.copies is not None:
            most = max(most, running(world))
        return world.healthy() and copies is None

    assert world.run_until(over, 30)
    assert most == 2


def test_a_change_is_sent_at_once_and_shown(world):
    begin(world, RepairLimits())
    shown = repair_of(world)
    assert (shown.bytes_per_second_max, shown.copies_in_flight_max) == (0, limits.COPIES_IN_FLIGHT)
    sent = len(world.upstairs._region.control._jobs)
    world.feed(events.SetRepairLimit(RepairLimits(1000, 1)))
    assert len(world.upstairs._region.control._jobs) == sent + 1
    shown = repair_of(world)
    assert (shown.bytes_per_second_max, shown.copies_in_flight_max) == (1000, 1)
    world.feed(events.SetRepairLimit(RepairLimits(1000, 1)))
    assert len(world.upstairs._region.control._jobs) == sent + 1


def test_progress_within_an_extent_is_told_and_never_falls(world):
    begin(world, RepairLimits(0, 1))
    copies = world.upstairs._repair.copies
    assert world.run_until(lambda: copies.extents_done > 2, 5)
    done = copies.bytes_done
    assert done >= copies.extents_done * 4 * 512
    # As a member tells that has received half an extent since.
    copies._moved = copies.bytes_copied + 1024
    assert copies.bytes_done == copies.extents_done * 4 * 512 + 1024
    assert copies.bytes_moved == copies._moved
    # It cannot claim more than is under way.
    copies._moved = copies.bytes_copied + (1 << 40)
    assert copies.bytes_done <= (copies.extents_done + running(world)) * 4 * 512
    highest = copies.bytes_done
    copies._moved = 0
    assert copies.bytes_done == highest


def test_how_many_are_filled_and_what_they_received(world):
    assert world.upstairs.filling == (0, 0)
    begin(world, RepairLimits(0, 1))
    assert world.run_until(lambda: world.upstairs.filling[1] > 0, 5)
    assert world.upstairs.filling[0] == 1
    world.feed(events.HoldRepair(2, held=True))
    assert world.upstairs.filling[0] == 0, "what is held takes no part of the rate"
