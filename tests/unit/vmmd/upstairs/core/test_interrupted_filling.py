"""A filling that is interrupted, and whose source then does not come back: no older copy takes its
place as if nothing had been lost."""

from __future__ import annotations

import numpy as np
import pytest

from stairlib.model.geometry import Geometry
from stairlib.wire.frame import FLAG_INCOMPLETE, FLAG_TOWARDS
from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events
from vmmd.upstairs.core.events import ExtentStamps
from vmmd.upstairs.core.live_repair import LiveRepair
from vmmd.upstairs.core.slot_states import SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState


def settle(world):
    assert world.run_until(lambda: not world.in_flight, 10)


def marked(world, address):
    return any(world.daemons[address].durable_extents.incomplete)


def interrupted(seed):
    """d0 and d1 hold a flush that d2 missed; d0 is the source of a reconciliation that ends when
    d1 has been marked and d2 has not. None when d2 was the first."""
    world = World(seed)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    world.submit([world.write(0, world.geometry.block_count), world.flush()])
    settle(world)
    assert world.run_until(lambda: all(world.daemons["d2:1"].durable_extents.flush), 5)
    world.crash("d2:1")
    world.submit([world.write(0, 4), world.flush()])
    settle(world)
    # Unflushed: d0, the first of two dirty ones, is what the others are filled from.
    world.submit([world.write(1, 1)])
    assert world.run_until(lambda: world.daemons["d1:1"].dirty[0], 5)
    # The other dirty one is not equal to it: it would stay whole.
    del world.daemons["d1:1"].memory[1]
    world.crash_upstairs()
    world.start("d2:1")
    world.ask(events.Activate)
    assert world.run_until(lambda: marked(world, "d1:1") or marked(world, "d2:1"), 5)
    for address in ("d0:1", "d1:1", "d2:1"):
        world.crash(address)
    world.crash_upstairs()
    return None if marked(world, "d2:1") else world


@pytest.fixture
def world():
    return next(found for found in map(interrupted, range(100)) if found is not None)


def activated(world):
    world.crash_upstairs()
    key = world.ask(events.Activate)
    assert world.run_until(lambda: key in world.answers, 20)
    return world.answers[key].error


def test_the_older_copy_of_a_third_member_is_refused_until_the_source_is_back(world):
    for address in ("d1:1", "d2:1"):
        world.start(address)
    world.targets[0] = "d3:1"
    error = activated(world)
    assert error.reason == "NO_WHOLE_COPY"
    found = world.daemons["d0:1"].durable_extents
    assert error.metadata["needed_generation"] == str(found.generation[0])
    assert error.metadata["needed_flush"] == str(found.flush[0])
    assert "older" in error.message
    assert "replaced last" in world.upstairs.status().reason
    assert world.upstairs.state is UpstairsState.DISABLED

    world.start("d0:1")
    world.targets[0] = "d0:1"
    assert activated(world) is None
    assert world.run_until(world.healthy, 20)
    world.submit([world.read(block, 1) for block in range(world.geometry.block_count)])
    settle(world)


def test_whoever_has_lost_the_source_for_good_may_say_so(world):
    """By new regions in the place of those that were filled from it: what is left is older."""
    for address in ("d1:1", "d2:1"):
        world.start(address)
    world.targets[0] = "d3:1"
    assert activated(world).reason == "NO_WHOLE_COPY"
    world.crash("d1:1")
    world.daemons["d1:1"].recreate("region-9")
    world.start("d1:1")
    assert activated(world) is None
    assert world.run_until(world.healthy, 20)
    assert world.daemons["d1:1"].memory == world.daemons["d2:1"].memory


def test_a_later_repair_that_can_tell_nothing_keeps_what_an_earlier_one_told():
    world = World(5)
    region = world.upstairs._region
    region.flushes.proven = 7
    target = region.members[2]
    old = [(1, 4), (1, 9), (1, 4), (1, 4), (0, 0), (0, 0)]
    flags = [FLAG_INCOMPLETE | FLAG_TOWARDS] * 3 + [FLAG_INCOMPLETE, 0, FLAG_INCOMPLETE]
    flags[5] |= FLAG_TOWARDS
    stamps = np.array(old, dtype=np.uint64)
    target.stamps = ExtentStamps(stamps[:, 0], stamps[:, 1], np.array(flags, dtype=np.uint8))
    generations = np.ones(6, dtype=np.uint64)
    flushes = np.array([8, 8, 7, 8, 8, 8], dtype=np.uint64)
    made = LiveRepair(region, target)._marks(np.arange(6), generations, flushes)
    assert made[["told", "generation", "flush"]].tolist() == [
        (1, 1, 4),
        (0, 1, 8),  # the source is older than that: it may not be demanded
        (1, 1, 7),
        (0, 1, 8),
        (0, 1, 8),
        (0, 1, 8),
    ]


def test_the_source_itself_serves_without_what_it_had_not_flushed(world):
    for address in ("d0:1", "d1:1", "d2:1"):
        world.start(address)
    assert activated(world) is None
    world.submit([world.read(block, 1) for block in range(world.geometry.block_count)])
    settle(world)
    assert not any(marked(world, target) for target in world.targets)


def test_a_live_repair_marks_with_what_the_source_has_durably():
    world = World(3, geometry=Geometry(512, 4, 12))
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    world.submit([world.write(0, 24), world.flush()])
    settle(world)
    world.ask(lambda key: events.Replace(key, "d2:1", "d3:1"))
    filled = world.daemons["d3:1"]
    assert world.run_until(lambda: any(filled.durable_extents.incomplete), 5)
    assert world.upstairs.status().slots[2].state is SlotState.LIVE_REPAIR
    source = world.daemons["d0:1"].durable_extents
    for extent, (told, generation, flush) in enumerate(filled.durable_extents.towards):
        # That nothing was flushed is not told: the guest's next flush would make it untrue.
        assert told == (extent < 6)
        assert (generation, flush) == (source.generation[extent], source.flush[extent])
    assert world.run_until(world.healthy, 20)


def test_a_flush_that_only_the_leaving_member_has_is_not_demanded():
    """It did not end well. The machine that is made next does not know the member that left."""
    world = World(4, geometry=Geometry(512, 4, 12), delay=0.05)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    world.submit([world.write(0, 48), world.flush()])
    settle(world)
    for address in ("d0:1", "d1:1"):
        world.crash(address)
    world.submit([world.write(0, 4), world.flush()])
    leaving = world.daemons["d2:1"]
    before = leaving.durable_extents.flush[0]
    assert world.run_until(lambda: leaving.durable_extents.flush[0] > before, 5)
    world.ask(lambda key: events.Replace(key, "d2:1", "d3:1"))
    filled = world.daemons["d3:1"]
    assert world.run_until(lambda: any(filled.durable_extents.incomplete), 20)
    assert not filled.durable_extents.towards[0][0]
    for address in ("d2:1", "d3:1"):
        world.crash(address)
    world.targets[2] = "d3:1"
    for address in world.targets:
        world.start(address)
    assert activated(world) is None
