"""A snapshot is taken by all three members at one place in the order of writes, or it is told who
has not taken it."""

from __future__ import annotations

import pytest

from stairlib.model.errors import DataError, StateError
from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events
from vmmd.upstairs.core.slot_states import SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState


@pytest.fixture
def world():
    made = World(1, delay=0.02)
    made.ask(events.Activate)
    assert made.run_until(made.healthy, 5)
    made.submit([made.write(0, made.geometry.block_count), made.flush()])
    assert made.run_until(lambda: not made.in_flight, 5)
    return made


def ask(world, name="before"):
    return world.ask(lambda key: events.Snapshot(key, name))


def answer(world, key, seconds=30):
    assert world.run_until(lambda: key in world.answers, seconds)
    return world.answers[key]


def snapshots(world, name="before"):
    return [world.daemons[target].snapshots.get(name) for target in world.targets]


def test_all_three_keep_what_was_sent_before_and_nothing_after(world):
    world.submit([world.write(0, 4)])
    key = ask(world)
    before = [block.values[-1] for block in world.blocks]
    for _ in range(5):
        world.submit([world.write(2, 8), world.write(14, 2, discard=True)])
    taken = answer(world, key)
    assert taken.error is None
    assert taken.value.name == "before"
    assert taken.value.generation == 1
    first, *others = snapshots(world)
    assert others == [first, first]
    size = world.geometry.block_size
    for number, value in enumerate(before):
        assert first.get(number, (b"", bytes(size)))[1] == value


def test_a_member_that_is_back_soon_takes_it_at_the_same_place(world):
    world.submit([world.write(0, 4)])
    key = ask(world)
    world.break_links("d1:1")
    world.submit([world.write(2, 8)])
    assert answer(world, key).error is None
    first, *others = snapshots(world)
    assert first is not None
    assert others == [first, first]


def test_it_needs_three(world):
    world.crash("d2:1")
    assert world.run_until(
        lambda: world.upstairs.status().slots[2].state is not SlotState.ACTIVE, 5
    )
    error = answer(world, ask(world)).error
    assert isinstance(error, StateError)
    assert error.reason == "SNAPSHOT_NEEDS_THREE"
    assert "slot 2 (d2:1)" in error.message
    assert snapshots(world) == [None] * 3
    world.submit([world.write(0, 1), world.flush()])
    world.start("d2:1")
    assert world.run_until(world.healthy, 30)
    assert answer(world, ask(world)).error is None


def test_a_member_that_is_being_filled_does_not_count(world):
    world.ask(lambda key: events.Replace(key, "d1:1", "d3:1"))
    error = answer(world, ask(world)).error
    assert error.reason == "SNAPSHOT_NEEDS_THREE"
    assert "d3:1" in error.message
    assert world.run_until(world.healthy, 30)


def test_who_refuses_is_told_and_the_flush_counts_all_the_same(world):
    world.daemons["d1:1"].snapshot_error = "no snapshot: the name is taken"
    world.submit([world.write(0, 4)])
    key = ask(world)
    flush = world.flush()
    world.submit([flush])
    error = answer(world, key).error
    assert isinstance(error, DataError)
    assert error.reason == "SNAPSHOT_FAILED"
    assert "slot 1 (d1:1)" in error.message
    assert "the name is taken" in error.message
    assert world.run_until(lambda: not world.in_flight, 5)
    assert world.counts["flush OK"] == 2
    assert world.healthy()
    assert snapshots(world)[0] is not None


def test_a_member_lost_for_good_meanwhile_ends_it(world):
    key = ask(world)
    world.crash("d1:1")
    error = answer(world, key, 60).error
    assert error.reason == "SNAPSHOT_FAILED"
    assert "slot 1 (d1:1)" in error.message


@pytest.mark.parametrize("ending", [events.Deactivate, None])
def test_the_end_of_the_volume_ends_it(world, ending):
    world.daemons["d1:1"].up = False
    key = ask(world)
    if ending is None:
        world.daemons["d0:1"].promoted = ("another", 9)
        world.break_links("d0:1")
        assert world.run_until(lambda: world.upstairs.state is UpstairsState.DISABLED, 20)
    else:
        world.ask(ending)
    assert answer(world, key, 60).error is not None


def test_not_while_it_is_not_active():
    world = World(2)
    assert answer(world, ask(world)).error.reason == "NOT_ACTIVE"


def test_not_of_a_read_only_set(world):
    world.restart_read_only()
    world.ask(events.Activate)
    assert world.run_until(lambda: world.upstairs.state is UpstairsState.ACTIVE, 10)
    assert answer(world, ask(world)).error.reason == "READ_ONLY"
