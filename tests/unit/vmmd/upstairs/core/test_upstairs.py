"""Conversations with three model downstairs: one situation each."""

from __future__ import annotations

import pytest

from stairlib.model.geometry import Geometry
from tests.unit.vmmd.upstairs.world import World
from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.upstairs.core import events, limits
from vmmd.upstairs.core.events import ReplaceResult
from vmmd.upstairs.core.slot_states import SlotMode, SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState


@pytest.fixture
def world():
    made = World(1)
    made.ask(events.Activate)
    assert made.run_until(made.healthy, 5)
    return made


def settle(world, seconds=10.0):
    assert world.run_until(lambda: not world.in_flight, seconds)


def slot(world, number):
    return world.upstairs.status().slots[number]


def replace(world, old, new):
    return world.answers[world.ask(lambda key: events.Replace(key, old, new))]


def status_of(world, request):
    found = []
    world.in_flight[request.token] = lambda status, data, _owned: found.append((status, data))
    world.submit([request])
    assert world.run_until(lambda: bool(found), 30)
    return found[0]


def test_generation_zero_is_refused():
    world = World(2)
    key = world.ask(lambda key: events.Activate(key, 0))
    assert world.answers[key].error.reason == "GENERATION_ZERO"


def test_a_generation_not_above_the_recorded_one_names_both(world):
    world.submit([world.write(0, 1), world.flush()])
    settle(world)
    for daemon in world.daemons.values():
        daemon.promoted = ("", 0)
    world.generation = 0
    world.crash_upstairs()
    key = world.ask(events.Activate)
    assert world.run_until(lambda: key in world.answers, 5)
    error = world.answers[key].error
    assert error.reason == "GENERATION_TOO_LOW"
    assert error.metadata == {"requested": "1", "required": "2"}
    assert world.upstairs.state is UpstairsState.DISABLED


def test_activation_waits_for_all_three():
    world = World(3)
    world.daemons["d1:1"].up = False
    key = world.ask(events.Activate)
    assert not world.run_until(lambda: key in world.answers, 30)
    assert "refused" in slot(world, 1).last_error
    world.start("d1:1")
    assert world.run_until(lambda: key in world.answers, 15)
    assert world.answers[key].error is None


def test_two_targets_with_one_region_are_refused():
    world = World(4)
    world.daemons["d2:1"].region_id = "region-0"
    world.ask(events.Activate)
    assert not world.run_until(world.healthy, 3)
    errors = [slot(world, number).last_error for number in range(3)]
    assert any("region-0" in error for error in errors)


def test_writes_are_acknowledged_at_once_and_reads_see_them(world):
    world.submit([world.write(3, 2)])
    assert not world.in_flight
    world.submit([world.read(2, 4)])
    settle(world)


def test_a_write_fails_with_fewer_than_two_members(world):
    world.crash("d0:1")
    world.crash("d1:1")
    assert world.run_until(
        lambda: slot(world, 1).mode is SlotMode.FAULTED, limits.OFFLINE_SECONDS_MAX + 2
    )
    size = world.geometry.block_size
    write = Request(BlockOp.WRITE, "w", 0, 1, bytes(size))
    assert status_of(world, write)[0] is BlockStatus.FAILED
    assert status_of(world, Request(BlockOp.FLUSH, "f"))[0] is BlockStatus.FAILED
    assert status_of(world, Request(BlockOp.READ, "r", 0, 1))[0] is BlockStatus.OK


def test_requests_past_the_end_are_refused_whole(world):
    count = world.geometry.block_count
    assert status_of(world, Request(BlockOp.READ, "r", count - 1, 2))[0] is (
        BlockStatus.OUT_OF_RANGE
    )


def test_requests_of_any_size_are_cut_and_put_together():
    world = World(5, geometry=Geometry(512, 16384, 2))
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    length = (9 << 20) // 512
    world.submit([world.write(5, length)])
    world.submit([world.read(0, length + 20)])
    settle(world)
    assert world.counts == {"write OK": 1, "read OK": 1}


def test_requests_above_the_limits_wait_and_are_done_in_the_end(world):
    requests = [world.write(number % 8, 1) for number in range(8)]
    batch = requests * 1 + [world.read(number % 24, 1) for number in range(3 * 1500)]
    world.submit(batch)
    assert world.upstairs.status().guest_waiting > 0
    settle(world, 60)
    assert world.counts["read OK"] == 4500


def test_a_member_away_for_long_is_given_up_and_repaired(world):
    world.submit([world.write(0, 4), world.flush()])
    settle(world)
    world.crash("d1:1")
    assert world.run_until(lambda: slot(world, 1).mode is SlotMode.OFFLINE, 5)
    for _ in range(limits.OFFLINE_JOBS_MAX + 1):
        world.submit([world.write(1, 1)])
    assert world.run_until(lambda: slot(world, 1).mode is SlotMode.FAULTED, 30)
    settle(world)
    world.start("d1:1")
    assert world.run_until(world.healthy, 30)
    assert slot(world, 1).repairs_completed == 1
    assert slot(world, 1).repaired_bytes == world.repairs[-1].bytes_copied > 0
    assert world.repairs[-1].extents < world.geometry.extent_count


def test_a_member_back_soon_is_replayed_without_repair(world):
    world.crash("d1:1")
    world.submit([world.write(0, 4), world.flush()])
    settle(world)
    world.start("d1:1")
    assert world.run_until(world.healthy, 30)
    assert world.run_until(lambda: world.upstairs.quiet, 5)
    assert slot(world, 1).repairs_completed == 0
    assert world.daemons["d1:1"].memory == world.daemons["d0:1"].memory


def test_a_damaged_reply_is_read_from_another_member_and_counted(world):
    world.submit([world.write(0, 8)])
    for name in ("d0:1", "d1:1"):
        world.daemons[name].corrupt_rate = 1.0
    for _ in range(6):
        world.submit([world.read(0, 8)])
        settle(world)
    assert world.counts["read OK"] == 6
    assert world.upstairs.status().read_mismatches > 0
    world.daemons["d2:1"].corrupt_rate = 1.0
    world.submit([world.read(0, 8)])
    settle(world)
    assert world.counts["read FAILED"] == 1


def test_a_flush_fails_once_when_acknowledged_writes_are_lost(world):
    world.submit([world.write(0, 1)])
    for daemon in list(world.daemons.values())[:3]:
        daemon.write_error_rate = 1.0
    world.submit([world.write(1, 1)])
    assert world.run_until(
        lambda: all(s.mode is SlotMode.FAULTED for s in world.upstairs.status().slots), 5
    )
    for daemon in world.daemons.values():
        daemon.write_error_rate = 0.0
    assert world.run_until(world.healthy, 60)
    assert status_of(world, Request(BlockOp.FLUSH, "f1"))[0] is BlockStatus.FAILED
    assert status_of(world, Request(BlockOp.FLUSH, "f2"))[0] is BlockStatus.OK


def test_what_is_written_is_flushed_without_being_asked(world):
    world.submit([world.write(0, 1)])
    assert not world.daemons["d0:1"].durable
    assert world.run_until(lambda: bool(world.daemons["d0:1"].durable), 2)


def test_a_newer_upstairs_disables_the_older(world):
    link = next(iter(world.links))
    world.feed(events.Notice(link, "NO_LONGER_ACTIVE taken over by another"))
    status = world.upstairs.status()
    assert status.state is UpstairsState.DISABLED
    assert "taken over" in status.reason
    read = Request(BlockOp.READ, "r", 0, 1)
    assert status_of(world, read)[0] is BlockStatus.ABORTED


def test_deactivation_ends_though_a_member_hangs(world):
    world.submit([world.write(0, 1)])
    link = next(link for link in world.links.values() if link.server.address == "d0:1")
    link.to_server_at = world.now + 1000
    key = world.ask(events.Deactivate)
    assert world.run_until(lambda: key in world.answers, limits.DEACTIVATE_SECONDS_MAX + 1)
    assert world.answers[key].error is None
    assert world.upstairs.state is UpstairsState.INITIALIZING


# ---- replacement


def test_the_same_request_again_tells_how_far_it_is(world):
    assert replace(world, "d2:1", "d3:1").value.result is ReplaceResult.STARTED
    assert replace(world, "d2:1", "d3:1").value.result is ReplaceResult.STARTED_ALREADY
    assert world.run_until(world.healthy, 10)
    assert replace(world, "d2:1", "d3:1").value.result is ReplaceResult.COMPLETED_ALREADY


def test_addresses_in_use_and_unknown_ones(world):
    assert replace(world, "d2:1", "d1:1").error.reason == "TARGET_IN_USE"
    assert replace(world, "d2:1", "d2:1").error.reason == "TARGET_IN_USE"
    assert replace(world, "x:1", "y:1").value.result is ReplaceResult.MISSING


def test_another_slot_must_wait_until_the_first_is_filled(world):
    world.daemons["d4:1"] = world.daemons["d3:1"]
    replace(world, "d2:1", "d3:1")
    assert replace(world, "d1:1", "d4:1").error.reason == "REPLACEMENT_RUNNING"


def test_the_old_member_serves_until_the_new_one_is_filled(world):
    world.submit([world.write(0, 8), world.flush()])
    settle(world)
    world.daemons["d3:1"].up = False
    replace(world, "d2:1", "d3:1")
    assert slot(world, 2).departing_address == "d2:1"
    world.crash("d0:1")
    world.crash("d1:1")
    world.submit([world.read(0, 8)])
    settle(world)
    assert world.counts["read OK"] == 1
    for name in ("d0:1", "d1:1", "d3:1"):
        world.start(name)
    assert world.run_until(world.healthy, 60)
    assert slot(world, 2).departing_address == ""


def test_a_replacement_can_be_taken_back(world):
    world.daemons["d3:1"].up = False
    replace(world, "d2:1", "d3:1")
    assert replace(world, "d3:1", "d2:1").value.result is ReplaceResult.STARTED
    assert slot(world, 2).address == "d2:1"
    assert slot(world, 2).state is SlotState.ACTIVE


def test_a_third_member_away_does_not_block(world):
    world.submit([world.write(0, 8), world.flush()])
    settle(world)
    world.crash("d0:1")
    assert world.run_until(lambda: slot(world, 0).state is not SlotState.ACTIVE, 5)
    world.crash("d2:1")
    assert world.run_until(lambda: slot(world, 2).state is not SlotState.ACTIVE, 5)
    assert replace(world, "d2:1", "d3:1").value.result is ReplaceResult.STARTED
    assert world.run_until(lambda: slot(world, 2).state is SlotState.ACTIVE, 15)


def test_before_activation_a_member_is_simply_another_one():
    world = World(6)
    world.daemons["d1:1"].up = False
    key = world.ask(events.Activate)
    world.run_until(lambda: False, 1)
    assert replace(world, "d1:1", "d3:1").value.result is ReplaceResult.STARTED
    assert world.run_until(lambda: key in world.answers, 5)
    assert world.healthy()


def test_the_source_of_a_reconciliation_cannot_be_replaced(world):
    world.submit([world.write(0, 8), world.flush()])
    settle(world)
    world.daemons["d1:1"].durable.clear()
    world.daemons["d1:1"].durable_extents.generation = [0] * world.geometry.extent_count
    world.daemons["d1:1"].crash()
    world.crash_upstairs()
    world.daemons["d1:1"].up = True
    world.ask(events.Activate)
    assert world.run_until(lambda: slot(world, 0).state is SlotState.RECONCILE, 5)
    assert replace(world, "d0:1", "d3:1").error.reason == "ONLY_COPY"


def test_nor_can_the_only_source_of_one_that_was_interrupted(world):
    world.submit([world.write(0, 24), world.flush()])
    settle(world)
    # Unflushed everywhere: of three dirty copies the first is what the others are filled from.
    world.submit([world.write(0, 24)])
    assert world.run_until(lambda: all(d.dirty[0] for d in world.members()), 5)
    world.crash_upstairs()
    world.ask(events.Activate)
    assert world.run_until(lambda: slot(world, 1).state is SlotState.RECONCILE, 5)
    world.break_links("d2:1")
    assert world.run_until(lambda: slot(world, 0).state is SlotState.WAIT_CONNECT, 5)
    assert replace(world, "d0:1", "d3:1").error.reason == "ONLY_COPY"
    assert replace(world, "d1:1", "d3:1").error is None
    assert world.run_until(world.healthy, 60)


def test_a_source_lost_during_the_copy_is_replaced_by_another():
    world = World(7, geometry=Geometry(512, 4, 40))
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    world.submit([world.write(0, 160), world.flush()])
    settle(world)
    replace(world, "d2:1", "d3:1")
    assert world.run_until(
        lambda: slot(world, 2).repair is not None and slot(world, 2).repair.extents_done > 3, 5
    )
    world.crash("d0:1")
    assert world.run_until(lambda: slot(world, 2).state is SlotState.ACTIVE, 10)
    assert [repair.error for repair in world.repairs] == [""]


def test_a_repair_begins_again_after_the_new_member_was_lost():
    world = World(8, geometry=Geometry(512, 4, 40))
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    world.submit([world.write(0, 160), world.flush()])
    settle(world)
    replace(world, "d2:1", "d3:1")
    assert world.run_until(lambda: slot(world, 2).state is SlotState.LIVE_REPAIR, 5)
    world.break_links("d3:1")
    assert world.run_until(lambda: slot(world, 2).repairs_aborted == 1, 5)
    world.submit([world.write(1, 1)])
    assert world.run_until(world.healthy, 20)
    assert slot(world, 2).repairs_completed == 1
