"""Pausing, resuming and cancelling a replacement, and many people who ask at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.core.replacement import RESTARTS_MAX
from stairlib.model.errors import StateError, UnavailableError
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import fleet_service_pb2 as fleet_pb
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as pb
from tests.contract.controlplane_house import SECONDS, House, house, refused, running
from tests.contract.test_controlplane_restarts import Gate

TOTAL = 8 << 30
REQUESTS = {
    "Pause": pb.PauseReplacementRequest,
    "Resume": pb.ResumeReplacementRequest,
    "Cancel": pb.CancelReplacementRequest,
    "Retry": pb.RetryReplacementRequest,
}


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "data") as found:
        found.vmmd.departs = True
        await found.create_running()
        yield found


async def say(home: House, word: str, identity: str) -> Any:
    call = getattr(home.replacements, f"{word}Replacement")
    return await call(REQUESTS[word](id=identity), timeout=SECONDS)


async def repairing(home: House, done: int = TOTAL // 2) -> str:
    """A replacement that has come half the way."""
    answer = await home.replace(home.vcr())
    await home.wait_replacement(answer.replacement_id, "REPAIR")
    await home.vmmd.progress("block2", 2, done, TOTAL)
    await home.wait_replacement(answer.replacement_id, lambda r: r.bytes_done > 0)
    return str(answer.replacement_id)


async def roles(home: House) -> dict[str, str]:
    fleet = await home.fleet.ListDownstairs(fleet_pb.ListDownstairsRequest(), timeout=SECONDS)
    return {each.address: fleet_pb.DownstairsRole.Name(each.role)[16:] for each in fleet.downstairs}


async def held(home: House, *, now: bool) -> None:
    await home.vmmd.until(lambda: home.vmmd.slot("block2", 2).repair_held is now)


# ---- pausing


async def test_a_paused_one_stands_still_over_restarts_of_both_and_goes_on(home: House) -> None:
    identity = await repairing(home)
    paused = (await say(home, "Pause", identity)).replacement
    assert (paused.state, paused.paused_in) == (
        pb.REPLACEMENT_STATE_PAUSED, pb.REPLACEMENT_STATE_REPAIR,
    )  # fmt: skip
    await held(home, now=True)
    assert (await say(home, "Pause", identity)).replacement.state == pb.REPLACEMENT_STATE_PAUSED
    again = await home.replace(home.vcr())
    assert again.result == disk_pb.REPLACE_RESULT_STARTED_ALREADY

    await home.control.__aexit__(None, None, None)
    # The machine was made again meanwhile, and knows nothing of it.
    home.vmmd.slot("block2", 2).repair_held = False
    async with running(home.data, home.vmmd, home.members) as second:
        await held(second, now=True)
        record = await second.replacement(identity)
        assert record.state == pb.REPLACEMENT_STATE_PAUSED
        assert record.bytes_done == TOTAL // 2
        resumed = (await say(second, "Resume", identity)).replacement
        assert resumed.state == pb.REPLACEMENT_STATE_REPAIR
        await held(second, now=False)
        assert (await say(second, "Resume", identity)).replacement.state == resumed.state
        await second.vmmd.finish("block2", 2)
        done = await second.wait_replacement(identity, "DONE")
    events = [each.event for each in done.transitions]
    assert events[3:6] == ["Applied", "PauseAsked", "ResumeAsked"]


async def test_paused_before_it_was_applied_it_is_not(home: House) -> None:
    gate = Gate(home.vmmd, "GetVolumeInfo")
    answer = await home.replace(home.vcr())
    async with asyncio.timeout(SECONDS):
        await gate.reached.wait()
    await say(home, "Pause", answer.replacement_id)
    gate.open()
    await held(home, now=True)
    assert home.vmmd.count("ReplaceVcr") == 0
    await say(home, "Resume", answer.replacement_id)
    await home.wait_replacement(answer.replacement_id, "REPAIR")
    await held(home, now=False)
    await home.vmmd.finish("block2", 2)
    await home.wait_replacement(answer.replacement_id, "DONE")


async def test_a_comparison_is_paused_and_made_anew(home: House) -> None:
    home.vmmd.quick = True
    gate = Gate(home.vmmd, "VerifyVolume")
    answer = await home.replace(home.vcr())
    async with asyncio.timeout(SECONDS):
        await gate.reached.wait()
    paused = (await say(home, "Pause", answer.replacement_id)).replacement
    assert paused.paused_in == pb.REPLACEMENT_STATE_VERIFY
    gate.open()
    await held(home, now=True)
    await say(home, "Resume", answer.replacement_id)
    await home.wait_replacement(answer.replacement_id, "DONE")
    assert home.vmmd.count("VerifyVolume") == 2


async def test_a_paused_one_says_that_vmmd_is_away(home: House) -> None:
    identity = await repairing(home)
    home.vmmd.failures["WatchVolume"] = [UnavailableError("vmmd is away")]
    await say(home, "Pause", identity)
    record = await home.wait_replacement(identity, lambda r: r.blocked_on)
    assert record.state == pb.REPLACEMENT_STATE_PAUSED
    assert record.HasField("blocked_since_time")
    await held(home, now=True)
    await home.wait_replacement(identity, lambda r: not r.blocked_on)


@pytest.mark.parametrize("word", ["Pause", "Resume", "Cancel"])
async def test_words_to_one_that_has_ended(home: House, word: str) -> None:
    home.vmmd.quick = True
    answer = await home.replace(home.vcr())
    await home.wait_replacement(answer.replacement_id, "DONE")
    code, error = await refused(say(home, word, answer.replacement_id))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == "REPLACEMENT_ENDED"
    assert "is DONE and cannot be" in error.message
    for text, expected in (
        ("not-an-id", grpc.StatusCode.INVALID_ARGUMENT),
        ("7a3e15d2-6d85-4b3e-9d3e-000000000000", grpc.StatusCode.NOT_FOUND),
    ):
        code, _ = await refused(say(home, word, text))
        assert code is expected


# ---- cancelling


async def test_cancelled_before_it_was_applied_leaves_everything_as_before(home: House) -> None:
    before = await home.disk()
    gate = Gate(home.vmmd, "GetVolumeInfo")
    answer = await home.replace(home.vcr())
    assert (await home.disk()).recorded_generation == 2
    async with asyncio.timeout(SECONDS):
        await gate.reached.wait()
    asked = asyncio.ensure_future(say(home, "Cancel", answer.replacement_id))
    await home.wait_replacement(answer.replacement_id, "CANCELLING")
    gate.open()
    cancelled = await asked
    assert cancelled.outcome == pb.CANCEL_OUTCOME_UNDONE
    assert "generation 1 are as before" in cancelled.reason
    assert cancelled.replacement.state == pb.REPLACEMENT_STATE_CANCELLED
    after = await home.disk()
    assert (after.vcr, after.recorded_generation) == (before.vcr, 1)
    assert not after.replacement_id
    assert home.vmmd.count("ReplaceVcr") == 0
    assert (await roles(home))[home.members[3].address] == "SPARE"
    assert (await say(home, "Cancel", answer.replacement_id)).outcome == cancelled.outcome

    again = await home.replace(home.vcr())
    assert again.result == disk_pb.REPLACE_RESULT_STARTED
    assert again.replacement_id != answer.replacement_id
    await home.wait_replacement(again.replacement_id, "REPAIR")
    await home.vmmd.finish("block2", 2)
    await home.wait_replacement(again.replacement_id, "DONE")


@pytest.mark.parametrize("first", ["", "Pause"])
async def test_cancelled_while_the_old_member_serves_it_stays(home: House, first: str) -> None:
    identity = await repairing(home)
    if first:
        await say(home, first, identity)
        await held(home, now=True)
    cancelled = await say(home, "Cancel", identity)
    assert cancelled.outcome == pb.CANCEL_OUTCOME_UNDONE
    assert "not blank any more" in cancelled.reason
    slot = home.vmmd.slot("block2", 2)
    assert (slot.address, slot.repair_held) == (home.members[2].address, False)
    assert (await home.disk()).recorded_generation == 1
    found = await roles(home)
    assert found[home.members[2].address] == "MEMBER"
    assert found[home.members[3].address] == "LEFTOVER", "never offered again"


async def test_cancelled_when_the_new_one_is_filled_it_is_finished_forward(home: House) -> None:
    home.vmmd.quick = True
    home.vmmd.departs = False
    gate = Gate(home.vmmd, "VerifyVolume")
    answer = await home.replace(home.vcr())
    async with asyncio.timeout(SECONDS):
        await gate.reached.wait()
    cancelled = await say(home, "Cancel", answer.replacement_id)
    assert cancelled.outcome == pb.CANCEL_OUTCOME_FINISHED_FORWARD
    assert "is filled and serves" in cancelled.reason
    gate.open()
    await home.wait_replacement(answer.replacement_id, "DONE")
    assert (await home.disk()).recorded_generation == 2


async def test_cancelled_when_the_old_one_was_let_go_it_is_replaced_again(home: House) -> None:
    home.vmmd.departs = False
    identity = await repairing(home)
    await say(home, "Pause", identity)
    await held(home, now=True)
    cancelled = await say(home, "Cancel", identity)
    assert cancelled.outcome == pb.CANCEL_OUTCOME_REPLACE_AGAIN
    assert "retry to go on" in cancelled.reason
    assert cancelled.replacement.state == pb.REPLACEMENT_STATE_FAILED
    assert (await home.disk()).recorded_generation == 2, "what the machine has is recorded"
    assert not home.vmmd.slot("block2", 2).repair_held, "nobody would end it"

    other = await home.replace(home.vcr(slots=(0, 1, 4), gen=3))
    assert other.result == disk_pb.REPLACE_RESULT_STARTED
    await home.wait_replacement(other.replacement_id, "REPAIR")
    await home.vmmd.finish("block2", 2)
    await home.wait_replacement(other.replacement_id, "DONE")
    code, error = await refused(say(home, "Cancel", identity))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == "REPLACEMENT_SUPERSEDED"


async def test_a_failed_one_is_undone(home: House) -> None:
    home.vmmd.failures["ReplaceVcr"] = [StateError("no")] * 20
    answer = await home.replace(home.vcr())
    await home.wait_replacement(answer.replacement_id, "FAILED")
    cancelled = await say(home, "Cancel", answer.replacement_id)
    assert cancelled.outcome == pb.CANCEL_OUTCOME_UNDONE
    assert (await home.disk()).recorded_generation == 1


async def test_the_old_one_leaves_while_it_is_being_undone(home: House) -> None:
    """It was there when the machine was asked, and the new one is filled when it is told."""
    identity = await repairing(home)
    gate = Gate(home.vmmd, "TakeBackReplacement")
    asked = asyncio.ensure_future(say(home, "Cancel", identity))
    async with asyncio.timeout(SECONDS):
        await gate.reached.wait()
    assert (await home.disk()).recorded_generation == 1
    await home.vmmd.finish("block2", 2)
    gate.open()
    cancelled = await asked
    assert cancelled.outcome == pb.CANCEL_OUTCOME_FINISHED_FORWARD
    assert (await home.disk()).recorded_generation == 2
    await home.wait_replacement(identity, "DONE")
    assert (await roles(home))[home.members[3].address] == "MEMBER"


@pytest.mark.parametrize("method", ["GetVolumeInfo", "TakeBackReplacement"])
async def test_a_restart_while_it_is_undone(home: House, method: str) -> None:
    identity = await repairing(home)
    gate = Gate(home.vmmd, method)
    asked = asyncio.ensure_future(refused(say(home, "Cancel", identity)))
    async with asyncio.timeout(SECONDS):
        await gate.reached.wait()
    await home.control.__aexit__(None, None, None)
    await asked
    gate.open()
    async with running(home.data, home.vmmd, home.members) as second:
        await second.wait_replacement(identity, "CANCELLED")
        assert (await second.disk()).recorded_generation == 1
        cancelled = await say(second, "Cancel", identity)
        assert cancelled.outcome == pb.CANCEL_OUTCOME_UNDONE


async def test_undone_when_no_machine_will_come(home: House) -> None:
    identity = await repairing(home)
    gate = Gate(home.vmmd, "TakeBackReplacement")
    asked = asyncio.ensure_future(say(home, "Cancel", identity))
    async with asyncio.timeout(SECONDS):
        await gate.reached.wait()
    (machine_id,) = home.vmmd.machines
    home.vmmd.failures["TakeBackReplacement"] = [StateError("it has ended", reason="MACHINE_ENDED")]
    await home.vmmd.set_machine(machine_id, "FAILED", "died")
    await home.wait_instance("FAILED")
    gate.open()
    assert (await asked).outcome == pb.CANCEL_OUTCOME_UNDONE


async def test_a_cancellation_that_waits_says_for_what(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.operations.replacements.CANCEL_SECONDS", 0.2)
    identity = await repairing(home)
    home.vmmd.failures["GetVolumeInfo"] = [UnavailableError("vmmd is away")] * 1000
    cancelled = await say(home, "Cancel", identity)
    assert cancelled.outcome == pb.CANCEL_OUTCOME_PENDING
    code, error = await refused(say(home, "Pause", identity))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == "REPLACEMENT_CANCELLING"
    record = await home.replacement(identity)
    assert "vmmd is away" in record.blocked_on
    home.vmmd.failures.clear()
    await home.wait_replacement(identity, "CANCELLED")


async def test_the_instance_of_a_paused_one_is_deleted(home: House) -> None:
    identity = await repairing(home)
    await say(home, "Pause", identity)
    await held(home, now=True)
    await home.instances.DeleteInstance(
        instance_pb.DeleteInstanceRequest(name="crub"), timeout=SECONDS
    )
    record = await home.replacement(identity)
    assert record.state == pb.REPLACEMENT_STATE_FAILED
    assert record.last_error


# ---- many at once


async def test_two_operators_at_once_get_one_replacement(home: House) -> None:
    """Different requests, at the same time: one runs, the other is told which."""
    wanted = [home.vcr(), home.vcr(slots=(0, 4, 2))]
    asked = [asyncio.ensure_future(home.replace(each)) for each in wanted]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    (started,) = [each for each in answers if isinstance(each, disk_pb.ReplaceVcrResponse)]
    (failed,) = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
    assert started.result == disk_pb.REPLACE_RESULT_STARTED
    assert failed.code() is grpc.StatusCode.ABORTED
    assert started.replacement_id in failed.details()
    listed = await home.replacements.ListReplacements(
        pb.ListReplacementsRequest(disk="block2"), timeout=SECONDS
    )
    assert [each.id for each in listed.replacements] == [started.replacement_id]


async def test_words_at_once_leave_one_outcome(home: House) -> None:
    identity = await repairing(home)
    words = ["Pause", "Resume", "Pause", "Cancel", "Resume", "Cancel"]
    await asyncio.gather(*(say(home, word, identity) for word in words), return_exceptions=True)
    await home.wait_replacement(identity, "CANCELLED")
    assert (await home.disk()).recorded_generation == 1


async def test_the_answer_to_a_request_id_outlives_the_control_plane(home: House) -> None:
    first = await home.replace(home.vcr(), requestId="r-1")
    await home.wait_replacement(first.replacement_id, "REPAIR")
    await home.control.__aexit__(None, None, None)
    async with running(home.data, home.vmmd, home.members) as second:
        assert await second.replace(second.vcr(), requestId="r-1") == first
        code, error = await refused(second.replace(second.vcr(gen=3), requestId="r-1"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert error.reason == "REQUEST_ID_REUSED"


async def test_the_same_request_id_at_once_is_one_request(home: House) -> None:
    answers = await asyncio.gather(*(home.replace(home.vcr(), requestId="r-1") for _ in range(4)))
    assert all(each == answers[0] for each in answers)
    assert answers[0].result == disk_pb.REPLACE_RESULT_STARTED


# ---- what does not move


async def test_a_repair_that_stands_still_is_begun_anew_and_in_the_end_failed(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.core.progress.STALL_SECONDS", 0.3)
    identity = await repairing(home)
    await home.vmmd.until(lambda: home.vmmd.count("RepairMember") == 1)
    ((_, asked),) = [call for call in home.vmmd.calls if call[0] == "RepairMember"]
    assert (asked.slot, asked.whole) == (2, False)
    record = await home.replacement(identity)
    assert record.restarts >= 1
    assert "no progress for 0.3 s" in record.last_error
    # It gets farther: the count begins anew.
    await home.vmmd.progress("block2", 2, TOTAL // 2 + (1 << 20), TOTAL)
    await home.wait_replacement(identity, lambda r: r.restarts == 0)
    failed = await home.wait_replacement(identity, "FAILED")
    assert f"begun anew {RESTARTS_MAX} times and did not move" in failed.last_error
    assert failed.failed_in == pb.REPLACEMENT_STATE_REPAIR
    monkeypatch.undo()
    await say(home, "Retry", identity)
    await home.vmmd.finish("block2", 2)
    await home.wait_replacement(identity, "DONE")


async def test_a_step_that_does_not_end_is_tried_again(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.core.replacement.STEP_SECONDS", 0.3)
    gate = Gate(home.vmmd, "ReplaceVcr")
    answer = await home.replace(home.vcr())
    record = await home.wait_replacement(answer.replacement_id, lambda r: r.attempt > 0)
    assert "the step APPLY did not end within 0.3 s" in record.last_error
    assert record.state == pb.REPLACEMENT_STATE_APPLY
    monkeypatch.undo()
    gate.open()
    await home.wait_replacement(answer.replacement_id, "REPAIR")
