"""A member that comes back with less on its disk than it had confirmed."""

from __future__ import annotations

import numpy as np
import pytest

from stairlib.wire.frame import FLAG_DIRTY, FLAG_FAULTED, FLAG_INCOMPLETE
from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events, limits
from vmmd.upstairs.core.events import ExtentStamps
from vmmd.upstairs.core.returning import what_is_missing
from vmmd.upstairs.core.slot_states import SlotMode, SlotState

ADDRESS = "d1:1"


@pytest.fixture
def world():
    made = World(1)
    made.ask(events.Activate)
    assert made.run_until(made.healthy, 5)
    return made


def flushed(world, block=0):
    world.submit([world.write(block, 1), world.flush()])
    assert world.run_until(lambda: not world.in_flight and world.upstairs.quiet, 10)


def slot(world):
    return world.upstairs.status().slots[1]


def comes_back_with(world, saved):
    """The daemon is down for a moment; its directory is another one afterwards."""
    world.put_back(ADDRESS, saved)
    assert world.run_until(lambda: slot(world).mode is SlotMode.OFFLINE, 5)
    world.start(ADDRESS)
    assert world.run_until(lambda: slot(world).state is not SlotState.WAIT_CONNECT, 40)


def is_repaired(world):
    assert world.run_until(lambda: slot(world).mode is SlotMode.FAULTED, 5)
    reason = slot(world).last_error
    assert world.run_until(world.healthy, 30)
    assert slot(world).repairs_completed == 1
    world.submit([world.flush()])
    assert world.run_until(lambda: not world.in_flight and world.upstairs.quiet, 10)
    assert world.daemons[ADDRESS].durable == world.daemons["d0:1"].durable
    return reason


def test_an_older_copy_is_repaired_and_never_replayed_onto(world):
    flushed(world)
    saved = world.daemons[ADDRESS].saved()
    flushed(world, 5)
    comes_back_with(world, saved)
    reason = is_repaired(world)
    assert "MEMBER_OUTDATED" in reason
    assert "flush 2 of generation 1" in reason
    assert "older copy" in reason


def test_a_blank_copy_is_noticed_too(world):
    saved = world.daemons[ADDRESS].saved()
    flushed(world)
    comes_back_with(world, saved)
    assert "MEMBER_OUTDATED" in is_repaired(world)


def test_a_copy_that_lacks_only_a_discard_is_noticed(world):
    flushed(world)
    saved = world.daemons[ADDRESS].saved()
    world.submit([world.write(0, 1, discard=True), world.flush()])
    assert world.run_until(lambda: not world.in_flight and world.upstairs.quiet, 10)
    comes_back_with(world, saved)
    assert "MEMBER_OUTDATED" in is_repaired(world)


def test_a_copy_from_before_the_activation_is_noticed_by_what_was_told(world):
    saved = world.daemons[ADDRESS].saved()
    flushed(world)
    world.crash_upstairs()
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 10)
    comes_back_with(world, saved)
    reason = is_repaired(world)
    assert "extent 0 was of generation 1, flush 1" in reason


def test_a_copy_from_before_a_repair_is_noticed(world):
    flushed(world)
    old = world.daemons[ADDRESS].saved()
    world.crash(ADDRESS)
    world.submit([world.write(5, 1), world.flush()])
    assert world.run_until(
        lambda: slot(world).mode is SlotMode.FAULTED, limits.OFFLINE_SECONDS_MAX + 5
    )
    world.start(ADDRESS)
    assert world.run_until(world.healthy, 30)
    assert world.run_until(lambda: world.upstairs.quiet, 5)
    world.run_until(lambda: False, 1)
    comes_back_with(world, old)
    assert world.run_until(lambda: slot(world).mode is SlotMode.FAULTED, 5)
    assert "MEMBER_OUTDATED" in slot(world).last_error
    assert world.run_until(world.healthy, 30)
    assert world.daemons[ADDRESS].memory == world.daemons["d0:1"].memory


def test_a_member_that_leaves_as_it_was_filled_is_compared_again(world):
    """Before it told what it has then, nobody could know an older copy from the right one."""
    flushed(world)
    world.crash(ADDRESS)
    world.submit([world.write(5, 1), world.flush()])
    assert world.run_until(
        lambda: slot(world).mode is SlotMode.FAULTED, limits.OFFLINE_SECONDS_MAX + 5
    )
    saved = world.daemons[ADDRESS].saved()
    world.start(ADDRESS)
    assert world.run_until(world.healthy, 30)
    comes_back_with(world, saved)
    assert world.run_until(lambda: slot(world).mode is SlotMode.FAULTED, 5)
    assert "MEMBER_UNKNOWN" in slot(world).last_error
    assert world.run_until(world.healthy, 30)
    assert world.daemons[ADDRESS].memory == world.daemons["d0:1"].memory


def test_a_copy_from_the_middle_of_a_repair_is_not_whole(world):
    flushed(world)
    saved = world.daemons[ADDRESS].saved()
    saved["durable_extents"].incomplete[3] = True
    comes_back_with(world, saved)
    assert "MEMBER_NOT_WHOLE" in is_repaired(world)


def test_the_same_copy_is_replayed_onto(world):
    flushed(world)
    saved = world.daemons[ADDRESS].saved()
    world.crash(ADDRESS)
    world.submit([world.write(7, 2)])
    world.daemons[ADDRESS].put_back(saved)
    world.start(ADDRESS)
    assert world.run_until(world.healthy, 30)
    assert slot(world).repairs_completed == 0


def test_an_older_copy_of_the_last_member_does_not_undo_what_two_had_flushed(world):
    """The others are behind by nothing that was flushed: all are compared, the older copy loses."""
    flushed(world)
    saved = world.daemons[ADDRESS].saved()
    flushed(world, 9)
    for address in ("d0:1", "d2:1"):
        world.crash(address)
    assert world.run_until(
        lambda: [s.mode for s in world.upstairs.status().slots].count(SlotMode.FAULTED) == 2,
        limits.OFFLINE_SECONDS_MAX + 5,
    )
    comes_back_with(world, saved)
    assert world.run_until(lambda: slot(world).mode is SlotMode.FAULTED, 5)
    for address in ("d0:1", "d2:1"):
        world.start(address)
    assert world.run_until(world.healthy, 60)
    world.submit([world.read(9, 1)])
    assert world.run_until(lambda: not world.in_flight, 10)
    assert world.daemons[ADDRESS].memory == world.daemons["d0:1"].memory


def stamps(*extents):
    table = np.array(extents, dtype=np.uint64)
    return ExtentStamps(table[:, 0], table[:, 1], table[:, 2].astype(np.uint8))


@pytest.mark.parametrize(
    ("before", "now", "flushed", "code"),
    [
        ([(2, 5, 0)], [(2, 5, 0)], (2, 5), ""),
        ([(1, 9, 0)], [(2, 3, 0)], (2, 3), ""),
        ([(2, 5, 0)], [(2, 4, 0)], (0, 0), "MEMBER_OUTDATED"),
        ([(2, 1, 0)], [(1, 9, 0)], (0, 0), "MEMBER_OUTDATED"),
        ([(2, 5, FLAG_DIRTY)], [(2, 4, 0)], (0, 0), "MEMBER_OUTDATED"),
        # What was marked then had no stamp of its own.
        ([(2, 5, FLAG_INCOMPLETE)], [(1, 1, 0)], (0, 0), ""),
        ([(2, 5, FLAG_FAULTED)], [(1, 1, 0)], (0, 0), ""),
        ([(2, 5, 0), (2, 6, 0)], [(2, 5, 0), (2, 6, 0)], (2, 7), "MEMBER_OUTDATED"),
        (None, [(2, 5, 0)], (2, 5), "MEMBER_UNKNOWN"),
        (None, [(2, 5, 0)], (2, 6), "MEMBER_OUTDATED"),
        ([(2, 6, 0)], [(3, 1, 0)], (2, 6), ""),
        ([(2, 5, 0)], [(2, 5, FLAG_INCOMPLETE)], (2, 5), "MEMBER_NOT_WHOLE"),
        ([(2, 5, 0)], [(2, 5, FLAG_FAULTED)], (2, 5), "MEMBER_NOT_WHOLE"),
        ([(2, 5, 0)], [(2, 5, FLAG_DIRTY)], (2, 5), ""),
    ],
)
def test_what_counts_as_missing(before, now, flushed, code):
    found = what_is_missing(stamps(*before) if before else None, stamps(*now), flushed)
    assert found.split(":")[0] == code
