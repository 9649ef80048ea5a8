"""Scrubs from the user's call to the recorded request without a parent, over real gRPC.

Those of `test_controlplane_scrub_restarts` lose a daemon on the way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from stairlib.model.errors import (
    DataError,
    NotFoundError,
    StairwellError,
    StateError,
    UnavailableError,
)
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.contract.controlplane_house import (
    PARENT,
    SECONDS,
    House,
    fields,
    house,
    refused,
    volume_json,
)

GIB_8 = 8 << 30
RUNNING, DONE = disk_pb.SCRUB_STATE_RUNNING, disk_pb.SCRUB_STATE_DONE
STOPPED, FAILED = disk_pb.SCRUB_STATE_STOPPED, disk_pb.SCRUB_STATE_FAILED
COPIED = volume_pb.SCRUB_STATE_DONE
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "data", downstairs=8) as found:
        await found.create_over()
        yield found


async def machine_scrubs(home: House) -> None:
    """Waits until the machine was told."""
    await home.wait_scrub(lambda each: each.bytes_total == GIB_8)


async def test_a_scrub_ends_with_a_request_without_the_parent(home: House) -> None:
    before = await home.disk()
    started = await home.start_scrub(bytes_per_second_max=1 << 20)
    assert (started.disk, started.path, started.state) == ("block2", "", RUNNING)
    await machine_scrubs(home)
    (asked,) = [request for name, request in home.vmmd.calls if name == "StartScrub"]
    assert (asked.disk, asked.path, asked.bytes_per_second_max) == ("block2", "", 1 << 20)

    await home.vmmd.scrub("block2", bytes_done=GIB_8 // 4, reason="the guest's writes")
    seen = await home.wait_scrub(lambda each: each.bytes_done > 0)
    assert (seen.bytes_done, seen.bytes_total) == (GIB_8 // 4, GIB_8)
    assert seen.blocked_on == "the guest's writes"
    assert (await home.disk()).vcr == before.vcr, "not before all is copied"

    await home.vmmd.scrub("block2", state=COPIED, reason="")
    done = await home.wait_scrub("DONE")
    disk = await home.disk()
    assert not disk.vcr.HasField("read_only_parent")
    assert [each.gen for each in disk.vcr.sub_volumes] == [2]
    assert disk.recorded_generation == done.recorded_generation == 2
    assert done.bytes_done == done.bytes_total == GIB_8
    assert (done.blocked_on, done.last_error) == ("", "")
    assert home.vmmd.count("StartScrub") == 1
    assert home.vmmd.count("ReplaceVcr") == 0


async def test_asked_again(home: House) -> None:
    first = await home.start_scrub()
    again = await home.start_scrub()
    assert (again.state, again.created_at) == (RUNNING, first.created_at)
    await machine_scrubs(home)
    await home.vmmd.scrub("block2", state=COPIED)
    done = await home.wait_scrub("DONE")
    assert await home.start_scrub() == done, "what was wished is so"
    assert home.vmmd.count("StartScrub") == 1


async def test_four_at_once_are_one(home: House) -> None:
    found = await asyncio.gather(*(home.start_scrub() for _ in range(4)))
    assert len({each.created_at for each in found}) == 1
    await machine_scrubs(home)
    assert home.vmmd.count("StartScrub") == 1


async def test_another_rate_reaches_the_machine_and_is_kept(home: House) -> None:
    await home.start_scrub()
    await machine_scrubs(home)
    await home.vmmd.scrub("block2", bytes_done=5)
    changed = await home.start_scrub(bytes_per_second_max=77)
    assert (changed.state, changed.bytes_per_second_max) == (RUNNING, 77)
    await home.wait_scrub(lambda each: each.bytes_done == 5)
    (scrub,) = home.vmmd.volumes["block2"].scrubs
    await home.vmmd.until(lambda: scrub.bytes_per_second_max == 77)
    await home.vmmd.scrub("block2", state=COPIED)
    assert (await home.wait_scrub("DONE")).bytes_per_second_max == 77


async def test_a_request_id_is_answered_once(home: House) -> None:
    first = await home.start_scrub(request_id="r-1")
    await machine_scrubs(home)
    await home.stop_scrub()
    assert await home.start_scrub(request_id="r-1") == first
    assert (await home.disk()).scrubs[0].state == STOPPED
    code, error = await refused(home.start_scrub(request_id="r-1", bytes_per_second_max=3))
    assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")


async def test_one_that_is_stopped_stays_so_and_may_be_started_again(home: House) -> None:
    await home.start_scrub()
    await machine_scrubs(home)
    stopped = await home.stop_scrub()
    assert stopped.state == STOPPED
    assert home.vmmd.volumes["block2"].scrubs[0].state == volume_pb.SCRUB_STATE_STOPPED
    assert await home.stop_scrub() == stopped
    assert (await home.disk()).vcr.HasField("read_only_parent")
    again = await home.start_scrub()
    assert again.created_at > stopped.created_at
    await home.wait_scrub(lambda each: each.bytes_total == GIB_8)
    await home.vmmd.scrub("block2", state=COPIED)
    await home.wait_scrub("DONE")
    code, error = await refused(home.stop_scrub())
    assert (code, error.reason) == (PRECONDITION, "SCRUB_DONE")


async def test_a_stop_that_cannot_reach_the_machine_changes_nothing(home: House) -> None:
    await home.start_scrub()
    await machine_scrubs(home)
    home.vmmd.failures["StopScrub"] = [UnavailableError("vmmd is away")]
    code, _ = await refused(home.stop_scrub())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert (await home.disk()).scrubs[0].state == RUNNING
    await home.vmmd.scrub("block2", state=COPIED)
    await home.wait_scrub("DONE")


async def test_a_machine_that_knows_of_none_has_stopped(home: House) -> None:
    await home.start_scrub()
    await machine_scrubs(home)
    home.vmmd.failures["StopScrub"] = [NotFoundError("scrub", "")]
    assert (await home.stop_scrub()).state == STOPPED


async def test_a_failure_at_the_machine_is_tried_again_and_said(home: House) -> None:
    home.vmmd.failures["StartScrub"] = [DataError("the parent cannot be read")] * 2
    await home.start_scrub()
    seen = await home.wait_scrub(lambda each: bool(each.last_error))
    assert seen.last_error == "the parent cannot be read"
    await machine_scrubs(home)
    await home.vmmd.scrub(
        "block2", state=volume_pb.SCRUB_STATE_FAILED, reason="block 7 of the parent is damaged"
    )
    failed = await home.wait_scrub(lambda each: "block 7" in each.last_error)
    assert failed.state == RUNNING
    home.vmmd.quick = True
    done = await home.wait_scrub("DONE")
    assert not done.last_error


async def test_a_failure_that_lasts_fails_it_and_it_may_be_started_again(home: House) -> None:
    home.vmmd.failures["StartScrub"] = [DataError("the parent cannot be read")] * 11
    await home.start_scrub()
    failed = await home.wait_scrub("FAILED")
    assert failed.last_error == "the parent cannot be read"
    assert (await home.disk()).vcr.HasField("read_only_parent")
    assert (await home.stop_scrub()).state == FAILED
    home.vmmd.quick = True
    assert (await home.start_scrub()).state == RUNNING
    await home.wait_scrub("DONE")


@pytest.mark.parametrize(
    "error",
    [
        NotFoundError("parent", "", "it has no parent"),
        StateError("it is read-only", reason="SCRUB_READ_ONLY"),
    ],
)
async def test_a_refusal_that_time_does_not_mend_fails_it_at_once(
    home: House, error: StairwellError
) -> None:
    home.vmmd.failures["StartScrub"] = [error]
    await home.start_scrub()
    failed = await home.wait_scrub("FAILED")
    assert failed.last_error == error.message
    assert home.vmmd.count("StartScrub") == 1


async def test_an_instance_that_does_not_run_is_waited_for_and_said(tmp_path: Path) -> None:
    async with house(tmp_path / "data", downstairs=8) as home:
        disk = {**home.disk_json(), "volume_construction_request": home.over_parent()}
        await home.create(disks=[disk])
        assert (await home.start_scrub()).state == RUNNING
        seen = await home.wait_scrub(lambda each: bool(each.blocked_on))
        assert "INITIALIZING" in seen.blocked_on
        assert home.vmmd.count("StartScrub") == 0
        home.vmmd.quick = True
        await home.vmmd.set_volume("block2", "ACTIVE")
        await home.wait_scrub("DONE")


async def test_a_deleted_instance_ends_its_scrub(home: House) -> None:
    await home.start_scrub()
    await machine_scrubs(home)
    await home.instances.DeleteInstance(
        instance_pb.DeleteInstanceRequest(name="crub"), timeout=SECONDS
    )
    assert await home.control.store.running_scrubs() == []
    assert home.control.scrub_driver.running == 0
    await home.create_over()
    assert list((await home.disk()).scrubs) == [], "another disk of the same name"


async def test_a_machine_that_ended_fails_it(home: House) -> None:
    await home.start_scrub()
    await machine_scrubs(home)
    (machine,) = home.vmmd.machines
    await home.vmmd.set_machine(machine, "DESTROYED")
    await home.wait_instance("DESTROYED")
    await home.vmmd.set_volume("block2", "INITIALIZING")
    await home.vmmd.scrub("block2", state=volume_pb.SCRUB_STATE_FAILED, reason="it stopped")
    failed = await home.wait_scrub("FAILED")
    assert "'crub' is DESTROYED" in failed.last_error
    code, error = await refused(home.start_scrub())
    assert (code, error.reason) == (PRECONDITION, "INSTANCE_ENDED")


@pytest.mark.parametrize(
    ("asked", "code", "reason"),
    [
        ({"name": ""}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"name": "nothing"}, grpc.StatusCode.NOT_FOUND, "DISK_NOT_FOUND"),
        ({"path": "sub_volumes[0]"}, grpc.StatusCode.NOT_FOUND, "VOLUME_NOT_FOUND"),
        ({"path": "read_only_parent"}, PRECONDITION, "NO_PARENT"),
        ({"bytes_per_second_max": 1 << 63}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ],
)
async def test_what_cannot_be_scrubbed(
    home: House, asked: dict[str, str], code: grpc.StatusCode, reason: str
) -> None:
    before = home.state()
    found, error = await refused(home.start_scrub(**asked))
    assert (found, error.reason) == (code, reason)
    assert home.state() == before
    assert home.vmmd.count("StartScrub") == 0


async def test_a_plain_disk_has_nothing_to_scrub_and_nothing_to_stop(tmp_path: Path) -> None:
    async with house(tmp_path / "data") as home:
        await home.create_running()
        code, error = await refused(home.start_scrub())
        assert (code, error.reason) == (PRECONDITION, "NO_PARENT")
        code, error = await refused(home.stop_scrub())
        assert (code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SCRUB_NOT_FOUND")


async def test_a_read_only_disk_takes_no_copy(tmp_path: Path) -> None:
    async with house(tmp_path / "data", downstairs=8) as home:
        vcr = home.over_parent()
        disk = {**home.disk_json(), "volume_construction_request": vcr, "read_only": True}
        await home.create_running(disks=[disk])
        code, error = await refused(home.start_scrub())
        assert (code, error.reason) == (PRECONDITION, "DISK_READ_ONLY")


async def test_volumes_of_one_disk_are_scrubbed_by_themselves(tmp_path: Path) -> None:
    async with house(tmp_path / "data", downstairs=11) as home:
        own = "77777777-3d6e-4d90-b2cb-56f1a1a42a89"
        below = volume_json(home.region_json(8, 9, 10, read_only=True, owner=own), id=own)
        nested = volume_json(home.region_json(3, 4, 2), id=PARENT, read_only_parent=below)
        vcr = {**home.over_parent((0, 1, 2)), "sub_volumes": []}
        vcr["sub_volumes"] = [home.region_json(0, 1, 2), nested]
        nested["sub_volumes"][0]["opts"]["target"][2] = "127.0.0.1:9"
        await home.create_over(vcr)
        await home.start_scrub()
        await home.start_scrub("sub_volumes[1]")
        for path in ("", "sub_volumes[1]"):
            await home.wait_scrub(lambda each: each.bytes_total > 0, path)
        await home.vmmd.scrub("block2", "sub_volumes[1]", state=COPIED)
        await home.wait_scrub("DONE", "sub_volumes[1]")
        disk = await home.disk()
        assert [(each.path, each.state) for each in disk.scrubs] == [
            ("", RUNNING), ("sub_volumes[1]", DONE),
        ]  # fmt: skip
        assert disk.vcr.HasField("read_only_parent")
        assert not disk.vcr.sub_volumes[1].HasField("read_only_parent")
        await home.vmmd.scrub("block2", state=COPIED)
        await home.wait_scrub("DONE")
        disk = await home.disk()
        assert not disk.vcr.HasField("read_only_parent")
        assert [disk.vcr.sub_volumes[0].gen, disk.vcr.sub_volumes[1].sub_volumes[0].gen] == [3, 3]


async def test_a_parent_is_not_dropped_by_hand(home: House) -> None:
    drops = home.over_parent((0, 1, 3), gen=2)
    del drops["read_only_parent"]
    for state in ("never", "running", "stopped"):
        if state == "running":
            await home.start_scrub()
            await machine_scrubs(home)
        elif state == "stopped":
            await home.stop_scrub()
        before = home.state()
        for more in ({}, {"validateOnly": True}):
            code, error = await refused(home.replace(drops, **more))
            assert (code, error.reason) == (PRECONDITION, "PARENT_NOT_SCRUBBED")
            assert "`stairwell disk scrub block2`" in error.message
        assert home.state() == before
    assert home.vmmd.count("ReplaceVcr") == 0


async def test_after_the_scrub_requests_have_no_parent_any_more(home: House) -> None:
    home.vmmd.quick = True
    await home.start_scrub()
    await home.wait_scrub("DONE")
    code, error = await refused(home.replace(home.over_parent((0, 1, 3), gen=2)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(error)["vcr.read_only_parent"] == "PARENT_SCRUBBED"
    wanted = home.over_parent((0, 1, 3), gen=2)
    del wanted["read_only_parent"]
    answer = await home.replace(wanted)
    assert answer.result == disk_pb.REPLACE_RESULT_STARTED
    await home.wait_replacement(answer.replacement_id, "DONE")
    again = await home.replace(wanted)
    assert again.result == disk_pb.REPLACE_RESULT_COMPLETED_ALREADY
