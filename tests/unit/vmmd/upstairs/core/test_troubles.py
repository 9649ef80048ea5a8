"""Trouble in the middle of something else: members lost during a repair, a second replacement
during the first, deactivation at any moment, limits that are reached. Whatever it is, every request
ends, nothing stays owed, and the set is whole again."""

from __future__ import annotations

import pytest

from stairlib.model.geometry import Geometry
from tests.unit.vmmd.upstairs.world import World
from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.upstairs.core import events, limits
from vmmd.upstairs.core.events import ReplaceResult
from vmmd.upstairs.core.slot_states import SlotMode, SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState

EXTENTS = 40


def slot(world, number):
    return world.upstairs.status().slots[number]


def replace(world, old, new):
    return world.answers[world.ask(lambda key: events.Replace(key, old, new))]


def settle(world, seconds=30.0):
    assert world.run_until(lambda: not world.in_flight, seconds), "a request does not end"


def nothing_is_owed(world):
    """After everything has settled: no job of any kind waits for an answer."""
    control = world.upstairs._region.control
    return world.run_until(
        lambda: world.upstairs.quiet and not world.in_flight and not control._jobs, 5
    )


@pytest.fixture
def world():
    made = World(11, geometry=Geometry(512, 4, EXTENTS), spares=2)
    made.ask(events.Activate)
    assert made.run_until(made.healthy, 5)
    made.submit([made.write(0, 4 * EXTENTS), made.flush()])
    settle(made)
    return made


@pytest.fixture
def repairing(world):
    """d3 is being filled in the place of d2."""
    replace(world, "d2:1", "d3:1")
    assert world.run_until(lambda: done(world) > 3, 5)
    return world


def done(world):
    repair = slot(world, 2).repair
    return repair.extents_done if repair is not None else -1


def load(world, blocks=range(0, 4 * EXTENTS, 3)):
    world.submit([world.write(block, 1) for block in blocks if world.free(block, 1)])
    world.submit([world.read(1, 2), world.flush()])


# ---- during a live repair


@pytest.mark.parametrize("other", ["d0:1", "d1:1"])
def test_another_member_is_lost_for_a_moment(repairing, other):
    load(repairing)
    repairing.break_links(other)
    load(repairing)
    settle(repairing)
    assert repairing.run_until(repairing.healthy, 30)
    assert slot(repairing, 2).repairs_completed == 1
    assert [slot(repairing, n).repairs_completed for n in (0, 1)] == [0, 0]
    assert nothing_is_owed(repairing)


def test_another_member_is_lost_for_long_and_filled_after_this_one(repairing):
    load(repairing)
    repairing.crash("d0:1")
    assert repairing.run_until(lambda: slot(repairing, 2).state is SlotState.ACTIVE, 30)
    assert repairing.run_until(
        lambda: slot(repairing, 0).mode is SlotMode.FAULTED, limits.OFFLINE_SECONDS_MAX + 2
    )
    load(repairing)
    settle(repairing)
    repairing.start("d0:1")
    assert repairing.run_until(repairing.healthy, 30)
    assert slot(repairing, 0).repairs_completed == 1
    assert nothing_is_owed(repairing)


def test_all_sources_are_lost_and_come_back(repairing):
    """The leaving member is one of them."""
    load(repairing)
    for source in ("d0:1", "d1:1", "d2:1"):
        repairing.crash(source)
    assert repairing.run_until(lambda: slot(repairing, 0).state is not SlotState.ACTIVE, 5)
    load(repairing)
    for source in ("d0:1", "d1:1", "d2:1"):
        repairing.start(source)
    settle(repairing, 60)
    assert repairing.run_until(repairing.healthy, 60)
    assert nothing_is_owed(repairing)


def test_the_member_is_lost_with_its_copies_in_flight(repairing):
    load(repairing)
    repairing.crash("d3:1")
    assert repairing.run_until(lambda: slot(repairing, 2).repairs_aborted == 1, 5)
    load(repairing)
    settle(repairing)
    assert nothing_is_owed(repairing)
    repairing.start("d3:1")
    assert repairing.run_until(repairing.healthy, 30)
    assert "lost" in repairing.repairs[0].error


def test_the_member_cannot_write_and_the_reason_is_told(repairing):
    repairing.daemons["d3:1"].write_error_rate = 1.0
    load(repairing)
    assert repairing.run_until(lambda: slot(repairing, 2).repairs_aborted > 0, 5)
    settle(repairing)
    assert slot(repairing, 2).mode is SlotMode.FAULTED
    assert slot(repairing, 2).last_error
    repairing.daemons["d3:1"].write_error_rate = 0.0
    # A daemon whose flush has failed takes no more before it is started again.
    repairing.crash("d3:1")
    repairing.start("d3:1")
    assert repairing.run_until(repairing.healthy, 60)
    assert nothing_is_owed(repairing)


def test_the_new_member_is_replaced_in_the_middle(repairing):
    load(repairing)
    assert replace(repairing, "d3:1", "d4:1").value.result is ReplaceResult.STARTED
    load(repairing)
    assert slot(repairing, 2).departing_address == "d2:1"
    assert repairing.run_until(repairing.healthy, 30)
    assert slot(repairing, 2).address == "d4:1"
    assert nothing_is_owed(repairing)


def test_a_member_of_another_slot_cannot_be_replaced_meanwhile(repairing):
    refused = replace(repairing, "d0:1", "d4:1").error
    assert refused.reason == "REPLACEMENT_RUNNING"
    assert "slot 2" in refused.message
    assert repairing.run_until(repairing.healthy, 30)
    assert replace(repairing, "d0:1", "d4:1").value.result is ReplaceResult.STARTED
    assert repairing.run_until(repairing.healthy, 30)


# ---- during a reconciliation


@pytest.fixture
def reconciling(world):
    """d1 lacks everything and is being filled from d0."""
    world.daemons["d1:1"].durable.clear()
    world.daemons["d1:1"].durable_extents.generation = [0] * EXTENTS
    world.daemons["d1:1"].crash()
    world.crash_upstairs()
    world.daemons["d1:1"].up = True
    world.key = world.ask(events.Activate)
    assert world.run_until(lambda: slot(world, 1).state is SlotState.RECONCILE, 5)
    return world


def test_the_member_that_is_filled_is_replaced(reconciling):
    world = reconciling
    assert replace(world, "d1:1", "d3:1").value.result is ReplaceResult.STARTED
    assert world.run_until(lambda: world.key in world.answers, 30)
    assert world.answers[world.key].error is None
    assert world.run_until(world.healthy, 30)
    world.submit([world.read(0, 4 * EXTENTS)])
    settle(world)
    assert nothing_is_owed(world)


@pytest.mark.parametrize("member", ["d0:1", "d1:1", "d2:1"])
def test_any_member_is_lost_and_all_begin_again(reconciling, member):
    world = reconciling
    world.break_links(member)
    assert world.run_until(lambda: world.key in world.answers, 30)
    assert world.answers[world.key].error is None
    assert world.run_until(world.healthy, 30)
    world.submit([world.read(0, 4 * EXTENTS)])
    settle(world)


def test_why_the_comparison_began_again_is_not_told_of_a_set_that_is_let_go(reconciling):
    world = reconciling
    world.crash("d1:1")
    assert world.run_until(lambda: "tried again" in world.upstairs.status().reason, 5)
    world.ask(events.Deactivate)
    assert world.run_until(lambda: world.upstairs.state is UpstairsState.INITIALIZING, 30)
    assert world.upstairs.status().reason == ""


# ---- other members away


def test_a_member_is_replaced_while_another_is_away(world):
    world.crash("d0:1")
    assert world.run_until(lambda: slot(world, 0).state is not SlotState.ACTIVE, 5)
    load(world)
    assert replace(world, "d2:1", "d3:1").value.result is ReplaceResult.STARTED
    assert world.run_until(lambda: slot(world, 2).address == "d3:1" and done(world) < 0, 30)
    assert world.run_until(lambda: slot(world, 2).state is SlotState.ACTIVE, 30)
    world.start("d0:1")
    assert world.run_until(world.healthy, 60)
    assert nothing_is_owed(world)


def all_failed(world, *, back):
    """Each member was away for too long, and these are back."""
    for address in world.targets:
        world.crash(address)
    gone = limits.OFFLINE_SECONDS_MAX + 5
    assert world.run_until(
        lambda: all(s.mode is SlotMode.FAULTED for s in world.upstairs.status().slots), gone
    )
    for address in back:
        world.start(address)
    ready = [slot(world, list(world.targets).index(address)).slot for address in back]
    assert world.run_until(
        lambda: all(slot(world, n).state is SlotState.LIVE_REPAIR_READY for n in ready), 30
    )


def test_one_that_is_gone_is_replaced_while_nobody_serves(world):
    # The flush is on all three, not on two of them alone.
    assert world.run_until(lambda: world.upstairs.quiet, 5)
    all_failed(world, back=("d0:1", "d1:1"))
    assert not world.run_until(world.healthy, 30), "the third is compared as well, if it can be"
    assert "slot 2 (d2:1) is " in world.upstairs.status().reason
    assert replace(world, "d2:1", "d3:1").value.result is ReplaceResult.STARTED
    assert world.run_until(world.healthy, 30)
    assert slot(world, 2).address == "d3:1"
    world.submit([world.read(0, 4 * EXTENTS)])
    settle(world)
    assert nothing_is_owed(world)


def test_nobody_is_replaced_while_another_is_away_and_nobody_serves(world):
    all_failed(world, back=("d0:1",))
    refused = replace(world, "d2:1", "d3:1").error
    assert refused.reason == "NO_SOURCE"
    assert "slot 1 (d1:1) is " in refused.message
    # Nor the one that is back, which may hold what the others lack.
    refused = replace(world, "d0:1", "d3:1").error
    assert refused.reason == "REPLACEMENT_RUNNING"
    assert "slot 0 (d0:1) is back" in refused.message
    world.start("d1:1")
    world.start("d2:1")
    assert world.run_until(world.healthy, 60)


def test_who_may_lack_a_write_does_not_stand_for_the_set(world):
    assert world.run_until(lambda: world.upstairs.quiet, 5)
    world.crash("d1:1")
    assert world.run_until(lambda: slot(world, 1).mode is SlotMode.OFFLINE, 5)
    world.submit([world.write(0, 4)])
    all_failed(world, back=("d0:1", "d1:1"))
    refused = replace(world, "d2:1", "d3:1").error
    assert refused.reason == "NO_SOURCE"
    assert "was never answered" in refused.message
    assert "restart the instance" in refused.message
    world.start("d2:1")
    assert world.run_until(world.healthy, 60)
    assert nothing_is_owed(world)


def test_who_was_being_filled_does_not_stand_for_the_set(repairing):
    """All that d2 had may be on d2 alone."""
    load(repairing)
    for address in ("d0:1", "d1:1", "d2:1", "d3:1"):
        repairing.crash(address)
    assert repairing.run_until(
        lambda: slot(repairing, 0).mode is slot(repairing, 1).mode is SlotMode.FAULTED,
        limits.OFFLINE_SECONDS_MAX + 5,
    )
    for address in ("d1:1", "d3:1"):
        repairing.start(address)
    assert repairing.run_until(
        lambda: (
            slot(repairing, 1).state is SlotState.LIVE_REPAIR_READY
            and slot(repairing, 2).state is SlotState.LIVE_REPAIR_READY
        ),
        30,
    )
    refused = replace(repairing, "d0:1", "d4:1").error
    assert refused.reason == "NO_SOURCE"
    assert "d3:1" in refused.message or "d1:1" in refused.message
    # Nor is the set compared without the member that is leaving, and it says so.
    repairing.start("d0:1")
    assert not repairing.run_until(repairing.healthy, 30)
    assert "slot 2 (d2:1, which is leaving) is " in repairing.upstairs.status().reason
    repairing.start("d2:1")
    assert repairing.run_until(repairing.healthy, 60)
    assert repairing.upstairs.status().reason == ""


# ---- deactivation


def activating(world):
    world.crash("d0:1")
    world.crash_upstairs()
    world.ask(events.Activate)
    world.run_until(lambda: False, 0.5)


def reconcile(world):
    world.daemons["d1:1"].durable_extents.generation = [0] * EXTENTS
    world.daemons["d1:1"].crash()
    world.crash_upstairs()
    world.daemons["d1:1"].up = True
    world.ask(events.Activate)
    assert world.run_until(lambda: slot(world, 1).state is SlotState.RECONCILE, 5)


def repair(world):
    replace(world, "d2:1", "d3:1")
    assert world.run_until(lambda: done(world) > 3, 5)
    load(world)


def all_away(world):
    for address in world.targets:
        world.crash(address)
    assert world.run_until(lambda: slot(world, 0).state is not SlotState.ACTIVE, 5)
    load(world)


def one_hangs(world):
    load(world)
    for link in world.links.values():
        if link.server.address == "d0:1":
            link.to_server_at = world.now + 1000


def under_load(world):
    load(world)
    world.ask(events.Verify)


def too_much(world):
    world.submit([world.read(n % 8, 1) for n in range(4 * limits.ADMITTED_JOBS_MAX)])
    assert world.upstairs.status().guest_waiting


MOMENTS = [activating, reconcile, repair, all_away, one_hangs, under_load, too_much]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_a_deactivation_ends_at_any_moment(world, moment):
    moment(world)
    key, again = world.ask(events.Deactivate), world.ask(events.Deactivate)
    settle(world, limits.DEACTIVATE_SECONDS_MAX + 1)
    assert world.run_until(lambda: key in world.answers, limits.DEACTIVATE_SECONDS_MAX + 1)
    assert again in world.answers
    assert world.upstairs.state is UpstairsState.INITIALIZING
    assert all(s.state is SlotState.WAIT_CONNECT for s in world.upstairs.status().slots) or (
        moment is one_hangs
    )
    assert nothing_is_owed(world)
    for daemon in world.daemons.values():
        daemon.up = True
    key = world.ask(lambda key: events.Activate(key, world.generation + 1))
    assert world.run_until(lambda: key in world.answers, 30)
    assert world.answers[key].error is None


# ---- limits


def test_a_member_away_is_given_up_by_bytes(world, monkeypatch):
    monkeypatch.setattr(limits, "OFFLINE_BYTES_MAX", 16 * 512)
    world.crash("d1:1")
    assert world.run_until(lambda: slot(world, 1).mode is SlotMode.OFFLINE, 5)
    world.submit([world.write(0, 16)])
    assert slot(world, 1).mode is SlotMode.OFFLINE
    world.submit([world.write(16, 1)])
    # Once they are sent: they are held for a moment.
    assert world.run_until(lambda: slot(world, 1).mode is SlotMode.FAULTED, 1)
    assert "bytes held" in slot(world, 1).last_error


def test_a_member_away_is_not_given_up_while_writes_need_it(world, monkeypatch):
    """The third is being filled: the guest waits, and nothing fails when both are well again."""
    monkeypatch.setattr(limits, "OFFLINE_JOBS_MAX", 20)
    monkeypatch.setattr(limits, "ADMITTED_JOBS_MAX", 30)
    world.crash("d2:1")
    assert world.run_until(
        lambda: slot(world, 2).mode is SlotMode.FAULTED, limits.OFFLINE_SECONDS_MAX + 2
    )
    load(world)
    settle(world)
    world.start("d2:1")
    assert world.run_until(lambda: slot(world, 2).state is SlotState.LIVE_REPAIR, 30)
    world.crash("d1:1")
    assert world.run_until(lambda: slot(world, 1).mode is SlotMode.OFFLINE, 5)
    world.submit([world.write(block, 1) for block in range(0, 4 * EXTENTS, 2)])
    world.submit([world.flush()])
    world.break_links("d2:1")
    world.run_until(lambda: False, 5)
    assert slot(world, 1).mode is SlotMode.OFFLINE
    assert world.in_flight, "the flush waits"
    world.start("d1:1")
    settle(world)
    assert world.run_until(world.healthy, 30)
    assert not [name for name in world.counts if "OK" not in name], world.counts
    assert slot(world, 1).repairs_completed == 0
    assert nothing_is_owed(world)


def test_a_member_away_is_given_up_by_time(world):
    world.crash("d1:1")
    assert world.run_until(lambda: slot(world, 1).mode is SlotMode.OFFLINE, 5)
    assert not world.run_until(
        lambda: slot(world, 1).mode is SlotMode.FAULTED, limits.OFFLINE_SECONDS_MAX - 1
    )
    assert world.run_until(lambda: slot(world, 1).mode is SlotMode.FAULTED, 2)
    assert "away for 20 s" in slot(world, 1).last_error


@pytest.mark.parametrize(("name", "most"), [("JOBS", 64), ("BYTES", 64 * 512)])
def test_flushes_bound_what_would_have_to_be_sent_again(world, monkeypatch, name, most):
    """No flush is asked for, and none comes by time."""
    world.upstairs._region.flushes.timeout_seconds = 1e9
    monkeypatch.setattr(limits, f"REPLAY_{name}_FLUSH", most)
    log = world.upstairs._region.log
    kept = []
    for number in range(400):
        world.submit([world.write(number % 100, 1)])
        world.run_until(lambda: False, 0.01)
        kept.append((log.jobs, log.payload_bytes))
    settle(world)
    # Twice: what came before a flush is kept until its answers are there.
    assert max(jobs for jobs, _ in kept) < 2 * 64
    assert max(size for _, size in kept) < 2 * 64 * 512


def test_writes_wait_while_a_member_hangs_in_its_flush(world, monkeypatch):
    """It answers writes, so nothing else would ever hold them up."""
    monkeypatch.setattr(limits, "REPLAY_JOBS_MAX", 200)
    monkeypatch.setattr(limits, "REPLAY_JOBS_FLUSH", 100)
    daemon = world.daemons["d1:1"]
    assert daemon.session is not None
    send = daemon.session.send
    held = []
    later, daemon.later = daemon.later, lambda _seconds, call: held.append(call)
    for number in range(300):
        world.submit([world.write(number % 150, 1)])
        world.run_until(lambda: False, 0.002)
    assert world.upstairs.status().guest_waiting > 0
    assert world.upstairs._region.log.jobs <= 200 + 10
    assert slot(world, 1).state is SlotState.ACTIVE
    daemon.later = later
    for call in held:
        call()
    assert daemon.session.send is send
    settle(world)
    assert world.counts["write OK"] == 301


def test_requests_wait_for_bytes_as_well(world, monkeypatch):
    monkeypatch.setattr(limits, "ADMITTED_BYTES_MAX", 8 * 512)
    world.submit([world.write(8 * n, 8) for n in range(10)])
    assert world.upstairs.status().guest_waiting > 0
    settle(world)
    assert world.counts["write OK"] == 11


def test_what_waits_is_ended_when_the_volume_is_disabled(world):
    # A read goes to one of three.
    count = 4 * limits.ADMITTED_JOBS_MAX
    requests = [Request(BlockOp.READ, object(), 0, 1) for _ in range(count)]
    found = []
    for request in requests:
        world.in_flight[request.token] = lambda status, _data, _owned: found.append(status)
    world.submit(requests)
    assert world.upstairs.status().guest_waiting > 0
    world.feed(events.Notice(next(iter(world.links)), "NO_LONGER_ACTIVE another"))
    assert not world.in_flight
    assert set(found) <= {BlockStatus.ABORTED, BlockStatus.OK}
    assert found.count(BlockStatus.ABORTED) >= limits.ADMITTED_JOBS_MAX
