"""The comparison of members: step by step, under load, with members that differ or go."""

from __future__ import annotations

import pytest

from stairlib.model.errors import UnavailableError
from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events, limits


@pytest.fixture
def world(monkeypatch):
    # Two extents a step: three steps for the six.
    monkeypatch.setattr(limits, "DIGEST_BLOCKS_PER_OP", 8)
    made = World(5)
    made.ask(events.Activate)
    assert made.run_until(made.healthy, 5)
    return made


def verify(world, *, load=False):
    key = world.ask(events.Verify)
    while key not in world.answers:
        if load and world.rng.random() < 0.2:
            world.submit([world.write(0, 1), world.write(1, 2, discard=True)])
        world.step()
    return world.answers[key]


def rows(answer):
    return {slot: digests.tolist() for slot, digests in answer.value.by_slot.items()}


def test_equal_members_are_equal_in_every_extent_under_writes(world):
    for _ in range(3):
        found = rows(verify(world, load=True))
        assert sorted(found) == [0, 1, 2]
        assert len(found[0]) == world.geometry.extent_count
        assert found[0] == found[1] == found[2]


def test_a_block_that_differs_shows_in_its_extent(world):
    per_extent = world.geometry.blocks_per_extent
    world.daemons["d1:1"].memory[4 * per_extent] = (b"\x01" * 32, b"?" * 512)
    found = rows(verify(world))
    assert [a != b for a, b in zip(found[0], found[1], strict=True)] == [False] * 4 + [True, False]
    assert found[0] == found[2]


def test_a_step_is_asked_for_when_the_one_before_was_answered(world):
    region = world.upstairs._region
    asked: list[int] = []
    send = region.send_control

    def counted(member, kind, **fields):
        asked.append(fields["offset"])
        return send(member, kind, **fields)

    region.send_control = counted
    key = world.ask(events.Verify)
    assert asked == [0, 0, 0]
    assert world.run_until(lambda: key in world.answers, 5)
    assert asked == [0, 0, 0, 2, 2, 2, 4, 4, 4]


def test_a_member_that_goes_is_left_out(world):
    key = world.ask(events.Verify)
    world.break_links("d2:1")
    assert world.run_until(lambda: key in world.answers, 5)
    found = rows(world.answers[key])
    assert sorted(found) == [0, 1]
    assert found[0] == found[1]


def test_without_any_member_it_ends(world):
    key = world.ask(events.Verify)
    for address in ("d0:1", "d1:1", "d2:1"):
        world.break_links(address)
    assert world.run_until(lambda: key in world.answers, 60)
    assert isinstance(world.answers[key].error, UnavailableError)
