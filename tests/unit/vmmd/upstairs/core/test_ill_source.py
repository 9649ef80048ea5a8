"""A member that can not write any more, when the members have to be made equal."""

from __future__ import annotations

from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events
from vmmd.upstairs.core.slot_states import SlotMode
from vmmd.upstairs.core.upstairs_states import UpstairsState


def written(world, *blocks):
    world.submit([*(world.write(block, 1) for block in blocks), world.flush()])
    assert world.run_until(lambda: not world.in_flight, 10)


def behind(*addresses):
    """A world whose upstairs has gone, and in which these members lack the last flush, if it does
    not need them."""
    world = World(7)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    written(world, 0)
    assert world.run_until(lambda: world.upstairs.quiet, 5)
    for address in addresses:
        world.crash(address)
    written(world, 0, 5)
    world.run_until(lambda: False, 1)
    world.crash_upstairs()
    for address in addresses:
        world.start(address)
    return world


def reads_all(world):
    world.submit([world.read(block, 1) for block in range(world.geometry.block_count)])
    assert world.run_until(lambda: not world.in_flight, 10)


def test_a_source_that_can_not_flush_is_still_a_source():
    world = behind("d2:1")
    world.daemons["d0:1"].poisoned = True
    world.ask(events.Activate)
    assert world.run_until(lambda: world.upstairs.state is UpstairsState.ACTIVE, 5)
    reads_all(world)
    assert world.daemons["d2:1"].durable == world.daemons["d1:1"].durable
    # The first write finds out; the other two go on.
    written(world, 9)
    ill = world.upstairs.status().slots[0]
    assert ill.mode is SlotMode.FAULTED
    assert "injected" in ill.last_error


def test_the_only_source_may_be_ill():
    world = behind("d2:1")
    newest = world.daemons["d0:1"]
    world.daemons["d1:1"].durable_extents = world.daemons["d2:1"].durable_extents.copy()
    world.daemons["d1:1"].durable = dict(world.daemons["d2:1"].durable)
    world.daemons["d1:1"].crash()
    world.start("d1:1")
    newest.poisoned = True
    world.ask(events.Activate)
    assert world.run_until(lambda: world.upstairs.state is UpstairsState.ACTIVE, 5)
    reads_all(world)
    assert world.daemons["d1:1"].durable == newest.durable


def test_a_source_that_can_not_be_read_gives_way_to_an_equal_one():
    world = behind("d2:1")
    resolve = world.daemons["d2:1"].resolve
    asked = []

    def without_d0(address):
        asked.append(address)
        return None if address == "d0:1" else resolve(address)

    world.daemons["d2:1"].resolve = without_d0
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    assert {"d0:1", "d1:1"} <= set(asked)
    reads_all(world)


def test_while_it_has_unflushed_data_the_status_says_who_is_ill_and_why():
    world = behind()
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    world.submit([world.write(3, 1)])
    assert world.run_until(lambda: all(world.daemons[t].dirty[0] for t in world.targets), 5)
    world.crash_upstairs()
    ill = world.daemons["d0:1"]
    ill.poisoned = True
    world.ask(events.Activate)
    assert world.run_until(lambda: bool(world.upstairs.status().reason), 5)
    reason = world.upstairs.status().reason
    assert "slot 0 (d0:1) left: FLUSH ended IO_ERROR: injected" in reason
    world.crash("d0:1")
    world.start("d0:1")
    assert world.run_until(world.healthy, 20)
    assert world.upstairs.status().reason == ""
