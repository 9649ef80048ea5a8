"""Blocks that were bad on one member are written again from another, and never over newer ones."""

from __future__ import annotations

import pytest

from stairlib.model.cipher import CIPHERS
from stairlib.wire.frame import OpStatus
from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events, limits
from vmmd.upstairs.core.slot_states import SlotMode, SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState

BLOCKS = 24


def active_world(seed=1, cipher="", **more):
    world = World(seed, cipher=cipher, **more)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    world.submit([world.write(0, BLOCKS), world.flush()])
    settle(world)
    assert world.run_until(lambda: all_equal(world), 5)
    return world


def settle(world):
    assert world.run_until(lambda: not world.in_flight, 20)


def all_equal(world):
    first, *others = [world.daemons[target] for target in world.targets]
    return all(other.durable == first.durable for other in others)


def rot(world, address, *blocks):
    """Bits flip on the medium and in the cache."""
    daemon = world.daemons[address]
    for content in (daemon.memory, daemon.durable):
        for block in blocks:
            context, data = content[block]
            content[block] = (context, bytes([data[0] ^ 1]) + data[1:])


def read_all(world, times=1):
    """Three reads at once, so that each member has one."""
    for _ in range(times):
        for _ in world.targets:
            world.submit([world.read(0, BLOCKS)])
        settle(world)


def healed(world):
    return world.upstairs.status().blocks_healed


@pytest.mark.parametrize("cipher", ["", *CIPHERS])
@pytest.mark.parametrize("whole", [True, False])
def test_a_bad_block_is_written_again_from_a_good_copy(cipher, whole):
    world = active_world(cipher=cipher)
    rot(world, "d1:1", 3, 4, 9)
    good = {block: world.daemons["d0:1"].memory[block] for block in range(BLOCKS)}
    if whole:
        read_all(world, 6)
    else:
        for _ in range(6):
            world.submit([world.read(block, 1) for block in (3, 4, 9)])
            settle(world)
    assert world.counts.get("read FAILED", 0) == 0
    assert healed(world) == 3
    status = world.upstairs.status()
    assert status.slots[1].bad_blocks == 3
    assert [slot.bad_blocks for slot in status.slots] == [0, 3, 0]
    assert world.run_until(lambda: all_equal(world), 5)
    # The same bytes under the same context everywhere: nothing was encrypted anew.
    assert world.daemons["d1:1"].memory == good
    assert world.run_until(
        lambda: len({tuple(world.daemons[t].durable_extents.flush) for t in world.targets}) == 1, 5
    )
    read_all(world, 6)
    assert healed(world) == 3


def test_what_was_never_written_is_discarded_where_it_is_not():
    world = active_world()
    world.submit([world.write(5, 1, discard=True), world.flush()])
    settle(world)
    assert world.run_until(lambda: all_equal(world), 5)
    daemon = world.daemons["d2:1"]
    daemon.memory[5] = daemon.durable[5] = (b"\1" * 32, bytes(512))
    read_all(world, 6)
    assert healed(world) == 1
    assert world.run_until(lambda: all_equal(world), 5)
    assert 5 not in daemon.memory


@pytest.mark.parametrize("seed", range(30))
def test_a_write_that_came_after_the_good_read_is_not_undone(seed):
    """The good read is on its way; meanwhile the guest writes the block."""
    world = active_world(seed, delay=0.05)
    rot(world, "d0:1", 7)
    # What the guest gets, as it writes the block at the same time, is not looked at.
    world.submit([world.read(7, 1)])
    while world.in_flight and not world.upstairs.status().read_mismatches:
        world.step()
    world.in_flight = {token: lambda *_: None for token in world.in_flight}
    world.submit([world.write(7, 1)])
    settle(world)
    world.run_until(lambda: False, 2)
    read_all(world)
    world.submit([world.flush()])
    settle(world)
    assert world.run_until(lambda: all_equal(world), 5)
    assert world.counts.get("read FAILED", 0) == 0


def test_a_read_that_fails_without_data_is_healed_too(monkeypatch):
    world = active_world()
    daemon = world.daemons["d1:1"]
    immediate = daemon._immediate

    def failing(kind, op, *rest):
        if kind.name == "READ":
            return OpStatus.IO_ERROR, 0, "medium error", [], b""
        return immediate(kind, op, *rest)

    monkeypatch.setattr(daemon, "_immediate", failing)
    read_all(world, 6)
    assert healed(world) > 0
    assert world.upstairs.status().slots[1].bad_blocks == 0
    assert "medium error" in world.upstairs.status().slots[1].last_error


def test_a_rotten_member_is_filled_anew(monkeypatch):
    monkeypatch.setattr(limits, "BAD_BLOCKS_MAX", 10)
    world = active_world()
    rot(world, "d1:1", *range(BLOCKS))
    world.submit([world.read(block, 1) for block in range(BLOCKS)])
    settle(world)
    for _ in range(6):
        if world.upstairs.status().slots[1].state is not SlotState.ACTIVE:
            break
        world.submit([world.read(block, 1) for block in range(BLOCKS)])
        settle(world)
    slot = world.upstairs.status().slots[1]
    assert slot.mode is SlotMode.FAULTED
    assert "were bad" in slot.last_error
    assert world.counts.get("read FAILED", 0) == 0
    assert world.upstairs.state is UpstairsState.ACTIVE


def test_healing_has_a_rate(monkeypatch):
    monkeypatch.setattr(limits, "HEALED_BLOCKS_PER_SECOND", 4)
    world = active_world()
    rot(world, "d0:1", *range(BLOCKS))
    rot(world, "d1:1", *range(BLOCKS))
    before = world.now
    for _ in range(20):
        world.submit([world.read(block, 1) for block in range(BLOCKS)])
        settle(world)
    assert 0 < healed(world) <= 4 * (world.now - before) + 8
    assert world.counts.get("read FAILED", 0) == 0


def test_nothing_is_written_to_a_read_only_set():
    world = active_world()
    for daemon in world.daemons.values():
        daemon.crash()
    world.restart_read_only()
    world.ask(events.Activate)
    assert world.run_until(lambda: world.upstairs.state is UpstairsState.ACTIVE, 10)
    assert world.run_until(world.healthy, 10)
    rot(world, "d1:1", 3)
    before = dict(world.daemons["d1:1"].memory)
    read_all(world, 6)
    assert world.upstairs.status().slots[1].bad_blocks > 0
    assert healed(world) == 0
    assert world.daemons["d1:1"].memory == before


def test_with_all_copies_bad_the_guest_is_told_and_nothing_is_written():
    world = active_world()
    for target in world.targets:
        rot(world, target, 3)
    world.submit([world.read(3, 1)])
    settle(world)
    assert world.counts["read FAILED"] == 1
    assert healed(world) == 0
