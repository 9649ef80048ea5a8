"""What the control plane begins unasked: members that are gone, and drains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from stairlib.model.errors import UnsupportedError
from stairwell.controlplane.v1 import fleet_service_pb2 as pb
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.contract.controlplane_house import House, fields, house, refused, running
from tests.contract.fleet_house import (
    drain,
    faulted,
    listed,
    lose,
    policy,
    register,
    second_disk,
    settle,
    start,
    wait_drain,
)
from tests.contract.fleet_house import running as replacements

# Two disks on h0 to h5, and three spares.
HOSTS = {number: f"h{number}" for number in range(9)}


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "data", downstairs=9) as found:
        await found.create_running(disks=[found.disk_json(), second_disk(found, 3, 4, 5)])
        await found.vmmd.set_volume("block3", "ACTIVE")
        await settle(found, HOSTS)
        yield found


# ----- the policy


async def test_the_policy_is_off_is_changed_by_fields_and_is_kept(tmp_path: Path) -> None:
    async with house(tmp_path / "data", downstairs=0) as first:
        answer = await first.fleet.GetFleetPolicy(pb.GetFleetPolicyRequest())
        assert not answer.policy.automatic
        assert (answer.policy.grace.seconds, answer.policy.at_once_max) == (600, 1)
        await policy(first, automatic=True, grace=90.5)
        await policy(first, at_once_max=3)
        script = first.vmmd
        await first.control.__aexit__(None, None, None)
        async with running(tmp_path / "data", script, []) as second:
            found = await policy(second, maintenance=True)
            assert (found.automatic, found.maintenance, found.at_once_max) == (True, True, 3)
            assert (found.grace.seconds, found.grace.nanos) == (90, 500_000_000)
            code, error = await refused(policy(second, at_once_max=0, grace=1e9))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert set(fields(error)) == {"at_once_max", "grace"}


# ----- members that are gone


async def test_nothing_is_replaced_unasked_by_default(home: House) -> None:
    await lose(home, 1)
    await policy(home, grace=0)
    await asyncio.sleep(0.3)
    answer = await home.replacements.ListReplacements(replacement_pb.ListReplacementsRequest())
    assert not answer.replacements
    assert await faulted(home, lambda found: True) == []


async def test_a_member_that_is_gone_is_replaced_by_itself(home: House) -> None:
    await lose(home, 1)
    await policy(home, automatic=True, grace=0)
    (record,) = await replacements(home, 1)
    assert (record.disk, record.slot, record.asked_by) == ("block2", 1, "automatic")
    assert record.new_target in home.targets(6, 7, 8)
    assert record.trace_id, "it has a trace, though nobody called"
    await home.wait_replacement(record.id, "REPAIR")
    await home.vmmd.finish("block2", 1)
    await home.wait_replacement(record.id, "DONE")
    await faulted(home, lambda found: not found)


async def test_the_grace_time_has_to_pass_and_is_forgotten_by_one_that_serves(home: House) -> None:
    await policy(home, automatic=True, grace=3600)
    await lose(home, 1)
    (first,) = await faulted(home, lambda found: found)
    assert "its grace time of 3600 s ends at" in first.waits_for
    assert first.trouble == "connection refused"
    await home.vmmd.finish("block2", 1)
    await faulted(home, lambda found: not found)
    await lose(home, 1)
    (second,) = await faulted(home, lambda found: found)
    assert second.since_time.ToNanoseconds() > first.since_time.ToNanoseconds()
    slot = home.vmmd.slot("block2", 1)
    slot.state = volume_pb.SLOT_STATE_LIVE_REPAIR
    await policy(home, grace=0)
    (third,) = await faulted(home, lambda found: "on its way back" in found[0].waits_for)
    assert third.since_time == second.since_time, "it does not serve yet"


async def test_maintenance_holds_what_is_begun_unasked(home: House) -> None:
    await policy(home, automatic=True, grace=0, maintenance=True)
    await lose(home, 1)
    await faulted(home, lambda found: found and "maintenance" in found[0].waits_for)
    one = await drain(home, "h5")
    await wait_drain(home, one.id, lambda d: "maintenance" in d.left[0].waits_for)
    answer = await start(home, slot=2)
    assert answer.replacement.asked_by == "operator", "who asks is not held"
    await home.vmmd.until(lambda: home.vmmd.slot("block2", 2).address == answer.new_target)
    await home.vmmd.finish("block2", 2)
    await home.wait_replacement(answer.replacement.id, "DONE")
    await policy(home, maintenance=False)
    found = await replacements(home, 2)
    assert {each.asked_by for each in found} >= {"operator"}


async def test_never_two_on_a_volume_nor_too_many_in_the_fleet(home: House) -> None:
    await policy(home, automatic=True, grace=0, maintenance=True, at_once_max=1)
    await lose(home, 0)
    await lose(home, 1)
    await lose(home, 2, "block3")
    await faulted(home, lambda found: len(found) == 3)
    await policy(home, maintenance=False)
    limit = "the fleet may have 1 at once"
    await faulted(home, lambda found: any(limit in each.waits_for for each in found))
    assert len(await replacements(home, 1)) == 1
    await policy(home, at_once_max=5)
    found = await replacements(home, 2)
    assert sorted(each.disk for each in found) == ["block2", "block3"]
    waiting = await faulted(home, lambda found: all("of its disk is" in x.waits_for for x in found))
    assert len(await replacements(home, 2)) == 2, "one on each volume, not three"
    assert len(waiting) == 3


async def test_a_slot_whose_automatic_replacement_failed_is_left_to_the_operator(
    home: House,
) -> None:
    home.vmmd.quick = True
    home.vmmd.failures["ReplaceVcr"] = [UnsupportedError("not in this test")]
    await lose(home, 1)
    await policy(home, automatic=True, grace=0)
    (record,) = await replacements(home, 1)
    await home.wait_replacement(record.id, "FAILED")
    (one,) = await faulted(home, lambda found: found and "operator" in found[0].waits_for)
    assert record.id in one.waits_for
    assert len(await replacements(home, 1)) == 1


async def test_no_spare_is_a_reason_to_wait_and_a_new_one_is_taken(home: House) -> None:
    for number in (6, 7, 8):
        await register(home, number, host="h0")
    await lose(home, 1)
    await policy(home, automatic=True, grace=0)
    (one,) = await faulted(home, lambda found: found and "no downstairs" in found[0].waits_for)
    assert home.members[7].address in one.waits_for
    await register(home, 7, host="h7")
    (record,) = await replacements(home, 1)
    assert record.new_target == home.members[7].address


async def test_since_when_a_member_is_gone_survives_a_restart(tmp_path: Path) -> None:
    async with house(tmp_path / "data") as first:
        await first.create_running()
        await settle(first, {number: f"h{number}" for number in range(5)})
        await policy(first, automatic=True, grace=3600)
        await lose(first, 1)
        (before,) = await faulted(first, lambda found: found)
        script, members = first.vmmd, first.members
        await first.control.__aexit__(None, None, None)
        async with running(tmp_path / "data", script, members) as second:
            (after,) = await faulted(second, lambda found: found)
            assert after.since_time == before.since_time
            await policy(second, grace=0)
            (record,) = await replacements(second, 1)
            assert record.slot == 1


# ----- drains


async def test_a_host_with_two_volumes_is_emptied_one_at_a_time(home: House) -> None:
    await register(home, 3, host="h0")
    # The best of the spares by far, were it not where nothing is placed any more.
    home.members[8].region.free_bytes = 1 << 50
    await register(home, 8, host="h0", reserved_for="block2")
    dry = await drain(home, "h0", validate_only=True)
    assert [each.disk for each in dry.left] == ["block2", "block3"]
    assert not (await home.fleet.ListDrains(pb.ListDrainsRequest())).drains
    one = await drain(home, "h0")
    assert (await drain(home, "h0")).id == one.id, "asked again it is the same"
    found = await wait_drain(home, one.id, lambda d: d.moves and d.left)
    assert [each.disk for each in found.moves] == ["block2"]
    assert "one volume at a time" in found.left[0].waits_for
    (record,) = await replacements(home, 1)
    assert record.asked_by == f"drain {one.id}"
    await home.wait_replacement(record.id, "REPAIR")
    await home.vmmd.finish("block2", 0)
    await wait_drain(home, one.id, lambda d: len(d.moves) == 2)
    second = (await replacements(home, 2))[0]
    assert {record.new_target, second.new_target} == set(home.targets(6, 7))
    await home.wait_replacement(second.id, "REPAIR")
    await home.vmmd.finish("block3", 0)
    done = await wait_drain(home, one.id, lambda d: d.state == pb.DRAIN_STATE_DONE)
    assert not done.left
    assert {each.state for each in done.moves} == {replacement_pb.REPLACEMENT_STATE_DONE}
    assert (await listed(home))[home.members[0].address].drain_id == one.id


async def test_a_drain_goes_on_after_a_restart_in_the_middle(tmp_path: Path) -> None:
    async with house(tmp_path / "data", downstairs=8) as first:
        await first.create_running(disks=[first.disk_json(), second_disk(first, 3, 4, 5)])
        await first.vmmd.set_volume("block3", "ACTIVE")
        await settle(first, {**{number: f"h{number}" for number in range(8)}, 3: "h0"})
        one = await drain(first, "h0")
        (record,) = await replacements(first, 1)
        await first.wait_replacement(record.id, "REPAIR")
        script, members = first.vmmd, first.members
        await first.control.__aexit__(None, None, None)
        async with running(tmp_path / "data", script, members) as second:
            await second.wait_replacement(record.id, "REPAIR")
            assert len((await second.fleet.GetDrain(pb.GetDrainRequest(id="h0"))).drain.moves) == 1
            await second.vmmd.finish("block2", 0)
            third = (await replacements(second, 2))[0]
            await second.wait_replacement(third.id, "REPAIR")
            await second.vmmd.finish("block3", 0)
            done = await wait_drain(second, one.id, lambda d: d.state == pb.DRAIN_STATE_DONE)
            assert len(done.moves) == 2


async def test_a_cancelled_drain_begins_nothing_more(home: House) -> None:
    await register(home, 3, host="h0")
    one = await drain(home, "h0")
    (record,) = await replacements(home, 1)
    # It stands still there, so that both answers tell the same of it.
    await home.wait_replacement(record.id, "REPAIR")
    ended = await home.fleet.CancelDrain(pb.CancelDrainRequest(id="h0"))
    assert ended.drain.state == pb.DRAIN_STATE_CANCELLED
    assert (await home.fleet.CancelDrain(pb.CancelDrainRequest(id=one.id))).drain == ended.drain
    await home.vmmd.finish("block2", 0)
    await home.wait_replacement(record.id, "DONE")
    await asyncio.sleep(0.3)
    assert len(await replacements(home, 1)) == 1
    again = await drain(home, "h0")
    assert again.id != one.id
    await replacements(home, 2)


async def test_a_move_that_failed_keeps_a_drain_from_being_done(home: House) -> None:
    home.vmmd.quick = True
    home.vmmd.failures["ReplaceVcr"] = [UnsupportedError("not in this test")]
    one = await drain(home, "h1")
    found = await wait_drain(home, one.id, lambda d: d.left and "FAILED" in d.left[0].waits_for)
    assert "not in this test" in found.left[0].waits_for
    assert found.state == pb.DRAIN_STATE_RUNNING
    await home.replacements.RetryReplacement(
        replacement_pb.RetryReplacementRequest(id=found.moves[0].replacement_id)
    )
    await wait_drain(home, one.id, lambda d: d.state == pb.DRAIN_STATE_DONE)


async def test_a_drain_of_nothing_known_is_refused(home: House) -> None:
    code, error = await refused(drain(home, "h77"))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "stairwell fleet list" in error.message
    code, error = await refused(drain(home, ""))
    assert fields(error) == {"target": "REQUIRED"}
    code, error = await refused(home.fleet.GetDrain(pb.GetDrainRequest(id="h0")))
    assert code is grpc.StatusCode.NOT_FOUND
