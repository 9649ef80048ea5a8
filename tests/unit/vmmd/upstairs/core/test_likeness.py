"""Copies that are equal, though their stamps cannot say so, stay whole while the members are made
equal."""

from __future__ import annotations

import numpy as np
import pytest

from stairlib.wire.frame import OpKind
from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events
from vmmd.upstairs.core.likeness import _ranges


def unflushed(seed=7):
    """A world whose upstairs has gone while all members held the same unflushed write."""
    world = World(seed)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    world.submit([world.write(0, 1), world.flush()])
    assert world.run_until(lambda: not world.in_flight, 10)
    world.submit([world.write(3, 1)])
    assert world.run_until(lambda: all(world.daemons[t].dirty[0] for t in world.targets), 5)
    world.crash_upstairs()
    return world


def asked_of(world, monkeypatch):
    """(address, kind) of every control job from now on."""
    asked = []
    region = world.upstairs._region
    send = region.send_control

    def noted(member, kind, **options):
        asked.append((member.address, kind))
        return send(member, kind, **options)

    monkeypatch.setattr(region, "send_control", noted)
    return asked


def reads_all(world):
    world.submit([world.read(block, 1) for block in range(world.geometry.block_count)])
    assert world.run_until(lambda: not world.in_flight, 10)


def test_equal_copies_are_not_marked_and_nothing_is_copied(monkeypatch):
    world = unflushed()
    asked = asked_of(world, monkeypatch)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    kinds = {kind for _address, kind in asked}
    assert OpKind.EXTENT_DIGEST in kinds
    assert not kinds & {OpKind.REPAIR_BEGIN, OpKind.EXTENT_COPY, OpKind.REPAIR_END}
    extents = [world.daemons[t].durable_extents for t in world.targets]
    assert len({(each.generation[0], each.flush[0]) for each in extents}) == 1
    reads_all(world)


def test_a_copy_that_differs_is_filled_and_the_equal_one_stays_whole(monkeypatch):
    world = unflushed()
    other = world.daemons["d2:1"]
    del other.memory[3]
    asked = asked_of(world, monkeypatch)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    begun = [address for address, kind in asked if kind is OpKind.REPAIR_BEGIN]
    assert begun == ["d2:1"]
    reads_all(world)
    assert other.durable == world.daemons["d1:1"].durable == world.daemons["d0:1"].durable


def test_an_activation_is_not_refused_for_stamps_that_it_gave_itself():
    """The source has flushed, and the reconciliation begins anew before the copies are whole."""
    world = unflushed()
    for address in ("d1:1", "d2:1"):
        del world.daemons[address].memory[3]
    key = world.ask(events.Activate)
    generation = world.upstairs._region.generation
    source = world.daemons["d0:1"]
    assert world.run_until(lambda: source.durable_extents.generation[0] == generation, 5)
    assert not world.healthy()
    world.break_links("d2:1")
    assert world.run_until(world.healthy, 20)
    assert world.answers[key].error is None
    reads_all(world)


@pytest.mark.parametrize(
    ("extents", "found"),
    [
        ([], []),
        ([4], [(4, 1)]),
        ([0, 1, 2, 3, 4], [(0, 2), (2, 2), (4, 1)]),
        ([0, 2, 3, 7], [(0, 1), (2, 2), (7, 1)]),
    ],
)
def test_extents_are_asked_for_in_runs(extents, found):
    assert _ranges(np.array(extents, dtype=np.int64), 2) == found
