"""Two rules that seeds alone do not show to be kept: only the last flush of a repair clears marks,
and of a write that failed it is remembered where it was."""

from __future__ import annotations

import pytest

from stairlib.model.geometry import Geometry
from stairlib.wire.frame import FLUSH_KEEPS_MARKS, FrameKind, OpKind
from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events
from vmmd.upstairs.core.repair_states import RepairPhase
from vmmd.upstairs.core.slot_states import SlotMode, SlotState


def active_world(**more):
    world = World(3, **more)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 20)
    world.submit([world.write(0, world.geometry.block_count), world.flush()])
    assert world.run_until(lambda: not world.in_flight, 30)
    return world


def flushes_of(monkeypatch, daemon, phase):
    """(phase of the repair, whether it clears marks) of each flush that reaches the daemon."""
    seen = []
    handle = daemon.handle

    def noted(session, frame):
        if frame.kind is FrameKind.REQUEST:
            seen.extend(
                (phase(), not int(op["flags"]) & FLUSH_KEEPS_MARKS)
                for op in frame.ops
                if int(op["kind"]) == OpKind.FLUSH
            )
        handle(session, frame)

    monkeypatch.setattr(daemon, "handle", noted)
    return seen


def test_of_all_flushes_in_a_repair_the_last_one_alone_clears_marks(monkeypatch):
    """A copy may hold what a flush in the middle does not cover on every member: were the extent
    whole by then, a power cut would leave it different from the others, and nobody would know."""
    world = active_world(geometry=Geometry(512, 4, 40), delay=0.05)
    world.crash("d2:1")
    world.ask(lambda key: events.Replace(key, "d2:1", "d3:1"))
    filled = world.daemons["d3:1"]

    def phase():
        repair = world.upstairs._repair
        return None if repair is None else repair.phase

    seen = flushes_of(monkeypatch, filled, phase)
    assert world.run_until(lambda: phase() is RepairPhase.COPY, 20)
    while phase() is RepairPhase.COPY:
        # The guest's own, while copies are under way.
        world.submit([world.write(0, 1), world.flush()])
        assert world.run_until(lambda: not world.in_flight, 20)
        if phase() is RepairPhase.COPY:
            assert filled.extents.incomplete == [True] * 40
    assert world.run_until(world.healthy, 30)
    repairing = [clears for when, clears in seen if when is not None]
    assert repairing.count(True) == 1
    in_the_middle = [clears for when, clears in seen if when is RepairPhase.COPY]
    assert len(in_the_middle) > 3
    assert not any(in_the_middle)


@pytest.mark.parametrize("discard", [False, True])
def test_where_a_write_failed_is_remembered_until_the_member_is_filled(discard):
    world = active_world()
    member = world.upstairs._region.slots[0]
    ill = world.daemons[member.address]
    ill.poisoned = True
    world.submit([world.write(world.geometry.blocks_per_extent, 1, discard=discard)])
    assert world.run_until(lambda: member.mode is SlotMode.FAULTED, 10)
    assert 1 in member.suspect_extents
    assert 0 not in member.suspect_extents
    world.crash(member.address)
    ill.poisoned = False
    world.start(member.address)
    assert world.run_until(lambda: member.state is SlotState.ACTIVE, 30)
    assert not member.suspect_extents
    world.submit([world.flush()])
    assert world.run_until(lambda: not world.in_flight, 30)
    assert ill.durable == world.daemons["d1:1"].durable
