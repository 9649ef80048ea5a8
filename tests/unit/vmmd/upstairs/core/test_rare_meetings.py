"""Meetings that random runs come upon once in thousands, each set up on purpose."""

from __future__ import annotations

import pytest

from stairlib.model.geometry import Geometry
from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events
from vmmd.upstairs.core.repair_states import RepairPhase
from vmmd.upstairs.core.slot_states import SlotMode, SlotState


def active_world(seed=1, **more):
    world = World(seed, **more)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 20)
    world.submit([world.write(0, world.geometry.block_count), world.flush()])
    settle(world)
    assert world.run_until(lambda: all(all(d.durable_extents.flush) for d in world.members()), 20)
    return world


def settle(world):
    assert world.run_until(lambda: not world.in_flight, 30)


def slot(world, number):
    return world.upstairs.status().slots[number]


def test_a_leaving_member_and_one_being_filled_make_no_flush_durable():
    """The next machine will not ask the one, and cannot use the other."""
    # Large enough for a repair of many seconds.
    world = active_world(geometry=Geometry(512, 4, 60), delay=0.1)
    for address in ("d0:1", "d1:1"):
        world.crash(address)
    world.run_until(lambda: False, 0.3)
    world.ask(lambda key: events.Replace(key, "d2:1", "d3:1"))
    assert world.run_until(lambda: slot(world, 2).state is SlotState.LIVE_REPAIR, 20)
    world.submit([world.write(0, 2)])
    flush = world.flush()
    world.submit([flush])
    leaving, filled = world.daemons["d2:1"], world.daemons["d3:1"]
    number = world.upstairs.status().flush_number
    assert world.run_until(
        lambda: (
            max(leaving.durable_extents.flush) >= number
            and max(filled.durable_extents.flush) >= number
        ),
        10,
    )
    # Both answers are there.
    world.run_until(lambda: False, 0.3)
    assert slot(world, 2).state is SlotState.LIVE_REPAIR
    assert flush.token in world.in_flight
    assert world.counts["flush OK"] == 1


@pytest.mark.parametrize("seed", range(4))
def test_what_is_written_during_a_survey_is_repaired_too(seed):
    world = active_world(seed, delay=0.2)
    world.crash("d1:1")
    assert world.run_until(lambda: slot(world, 1).mode is SlotMode.FAULTED, 60)
    world.start("d1:1")

    def surveying():
        repair = world.upstairs._repair
        return repair is not None and repair.phase is RepairPhase.SURVEY and repair._states

    assert world.run_until(surveying, 30)
    # Its source has answered, or is about to: nothing of this extent differs by its stamps.
    world.submit([world.write(9, 1)])
    assert world.run_until(world.healthy, 60)
    world.submit([world.flush()])
    settle(world)
    contents = [dict(daemon.memory) for daemon in world.members()]
    assert contents[0] == contents[1] == contents[2]


def test_a_member_whose_flush_was_not_heard_of_does_not_go_back():
    """The blocks it flushed are not written again with what they held before."""
    for seed in range(40):
        world = active_world(seed, delay=0.05)
        world.submit([world.write(5, 1)])
        world.run_until(lambda: False, 0.2)
        world.submit([world.write(5, 1)])
        world.submit([world.flush()])
        daemon = world.daemons["d1:1"]
        number = world.upstairs.status().flush_number
        assert world.run_until(lambda d=daemon, n=number: d.durable_extents.flush[1] >= n, 10)
        newest = daemon.memory[5]
        world.break_links("d1:1")
        while slot(world, 1).state is SlotState.ACTIVE:
            world.step()
        while not world.healthy() or world.in_flight:
            world.step()
            assert daemon.memory[5] == newest
        for _ in range(50):
            world.step()
            assert daemon.memory[5] == newest
