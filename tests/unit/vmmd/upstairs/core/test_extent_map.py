"""What is told of each extent of each member, in the situations that a member can be in."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest

from stairlib.model.extents import LETTERS, as_text, runs
from stairlib.model.geometry import Geometry
from tests.unit.vmmd.upstairs.world import World
from vmmd.block.backend import BlockOp, Request
from vmmd.upstairs.core import events, limits
from vmmd.upstairs.core.repair_limits import RepairLimits
from vmmd.upstairs.core.slot_states import SlotMode, SlotState


@pytest.fixture
def world():
    made = World(1)
    made.ask(events.Activate)
    assert made.run_until(made.healthy, 5)
    return made


def told(world, slot=None):
    texts = [as_text(states) for states in world.upstairs.extents()]
    return texts if slot is None else texts[slot]


def seen_until(world, condition, slot):
    """The different texts of a slot up to the condition."""
    seen = []

    def look():
        text = told(world, slot)
        if not seen or seen[-1] != text:
            seen.append(text)
        return condition()

    assert world.run_until(look, 60)
    return seen


def settle(world):
    assert world.run_until(lambda: not world.in_flight and world.upstairs.quiet, 10)


def slot_of(world, number):
    return world.upstairs.status().slots[number]


def test_nothing_is_known_before_the_members_were_compared():
    world = World(3)
    assert told(world) == ["6u"] * 3
    world.daemons["d1:1"].up = False
    world.ask(events.Activate)
    world.run_until(lambda: False, 2)
    assert told(world) == ["6u"] * 3


def test_what_is_unflushed_is_dirty_on_each_member_until_its_flush(world):
    assert told(world) == ["6s"] * 3
    # Extents of 4 blocks: the end of the second, the third.
    world.submit([world.write(7, 2)])
    # Once it is sent: small writes wait for each other for a moment.
    assert world.run_until(lambda: told(world) == ["s2d3s"] * 3, 0.1)
    world.submit([world.write(20, 1, discard=True)])
    assert world.run_until(lambda: told(world) == ["s2d2sd"] * 3, 0.1)
    world.submit([world.flush()])
    seen = seen_until(world, lambda: world.upstairs.quiet, 0)
    assert seen[-1] == "6s"
    assert told(world) == ["6s"] * 3


def test_a_member_away_for_a_moment_lacks_what_was_written_meanwhile(world):
    world.crash("d1:1")
    assert world.run_until(lambda: slot_of(world, 1).mode is SlotMode.OFFLINE, 5)
    world.submit([world.write(0, 1), world.flush()])
    settled = world.run_until(lambda: told(world, 0) == "6s", 5)
    assert settled
    assert told(world, 1) == "x5s"
    world.start("d1:1")
    assert world.run_until(world.healthy, 15)
    settle(world)
    assert told(world) == ["6s"] * 3


def test_a_repair_fills_only_what_differs(world):
    world.submit([world.write(0, 4), world.flush()])
    settle(world)
    world.crash("d1:1")
    world.submit([world.write(9, 1), world.write(14, 1), world.flush()])
    away = limits.OFFLINE_SECONDS_MAX + 5
    assert world.run_until(lambda: slot_of(world, 1).mode is SlotMode.FAULTED, away)
    assert told(world, 1) == "6u"
    world.start("d1:1")
    assert world.run_until(lambda: slot_of(world, 1).state is SlotState.LIVE_REPAIR, 30)
    seen = seen_until(world, world.healthy, 1)
    assert seen[0] in ("2s2x2s", "2s2w2s")
    assert "2s2c2s" in seen
    assert seen[-1] == "6s"
    assert told(world, 0) == told(world, 2) == "6s"


def test_a_replacement_fills_all_a_few_at_a_time_and_never_back(world):
    world.submit([world.write(number, 1) for number in range(0, 24, 3)] + [world.flush()])
    settle(world)
    world.feed(events.SetRepairLimit(RepairLimits(copies_in_flight=1)))
    world.ask(lambda key: events.Replace(key, "d2:1", "d3:1"))
    assert world.run_until(lambda: slot_of(world, 2).state is SlotState.LIVE_REPAIR, 10)
    seen = seen_until(world, world.healthy, 2)
    while "w" not in seen[0]:
        assert seen.pop(0) == "6x"
    assert seen[-1] == "6s"
    assert "6c" in seen
    for text in seen[:-1]:
        assert text.count("w") <= 1, "one at a time, as the limit says"
        assert set(text) <= set("123456cwx")
    # What came to be never stops being: copied extents only become more.
    copied = [_count(text, "c") for text in seen[:-1]]
    assert copied == sorted(copied)
    assert {0, 1, 2, 3, 4, 5, 6} == set(copied)


def test_a_reconciliation_tells_what_it_fills():
    world = World(5)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    world.submit([world.write(4, 4), world.flush()])
    settle(world)
    saved = world.daemons["d2:1"].saved()
    world.submit([world.write(12, 1), world.flush()])
    settle(world)
    world.put_back("d2:1", saved)
    world.start("d2:1")
    world.crash_upstairs()
    world.ask(events.Activate)
    assert world.run_until(lambda: slot_of(world, 2).state is SlotState.RECONCILE, 10)
    seen = seen_until(world, world.healthy, 2)
    assert seen[0] in ("3sx2s", "3sw2s")
    assert "3sc2s" in seen
    assert seen[-1] == "6s"


def test_looking_at_much_that_is_unflushed_is_quick():
    """As much as is kept before a flush is forced, on a region of the largest kind."""
    world = World(6, geometry=Geometry(512, 16, 12_800))
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    rng = np.random.default_rng(1)
    # One after the other: in as many frames as there can be.
    for first in rng.integers(0, 12_800 * 16, limits.ADMITTED_JOBS_MAX - 1).tolist():
        one = Request(BlockOp.WRITE, first, first, 1, bytes(512))
        world.upstairs.apply(events.GuestBatch([("key", [one])]), world.now)
    began = perf_counter()
    columns = [as_text(states) for states in world.upstairs.extents()]
    took = perf_counter() - began
    assert columns[0].count("d") > 1000
    # A few milliseconds; ten times that where other things run beside it.
    assert took < 0.1, f"{took * 1e3:.1f} ms"
    assert sum(map(len, columns)) < 40_000


def _count(text, letter):
    return sum(count for state, count in runs(text) if LETTERS[state] == letter)
