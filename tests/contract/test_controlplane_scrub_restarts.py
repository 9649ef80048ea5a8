"""A scrub whose daemons end on the way, and a scrub beside a replacement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from controlplane.core import scrub as core
from controlplane.core.leases import Kind
from controlplane.core.parents import without_parent
from controlplane.core.scrub import step
from controlplane.store.place import Place
from controlplane.store.sql_store import SqlStore
from stairlib.model.errors import StateError, UnavailableError
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.contract.controlplane_house import SECONDS, House, fields, house, refused
from tests.contract.test_controlplane_restarts import Gate, again

GIB_8 = 8 << 30
COPIED = volume_pb.SCRUB_STATE_DONE


@asynccontextmanager
async def peers(tmp_path: Path) -> AsyncIterator[House]:
    """Peers that outlive the control planes of a test, and a first control plane."""
    async with house(tmp_path / "data", downstairs=8) as home:
        await home.create_over()
        yield home


async def reached(gate: Gate) -> None:
    async with asyncio.timeout(SECONDS):
        await gate.reached.wait()


async def told(home: House) -> None:
    """Waits until the machine copies and the control plane has seen it."""
    await home.wait_scrub(lambda each: each.bytes_total == GIB_8)


async def check_dropped(home: House, gen: int = 2) -> None:
    done = await home.wait_scrub("DONE")
    disk = await home.disk()
    assert not disk.vcr.HasField("read_only_parent")
    assert disk.recorded_generation == done.recorded_generation == gen


@pytest.mark.parametrize("method", ["GetVolumeInfo", "StartScrub", "WatchVolume"])
async def test_a_restart_while_the_machine_is_asked(tmp_path: Path, method: str) -> None:
    """The state was stored, and its effect was sent but not answered."""
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(peers(tmp_path))
        gate = Gate(home.vmmd, method)
        first = await home.start_scrub(bytes_per_second_max=9)
        await reached(gate)
        await home.control.__aexit__(None, None, None)
        gate.open()
        home.vmmd.quick = True
        second = await stack.enter_async_context(again(home))
        await check_dropped(second)
        (record,) = (await second.disk()).scrubs
        assert (record.created_at, record.bytes_per_second_max) == (first.created_at, 9)


async def test_a_restart_while_it_is_copied(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(peers(tmp_path))
        await home.start_scrub()
        await told(home)
        await home.vmmd.scrub("block2", bytes_done=GIB_8 // 2)
        await home.wait_scrub(lambda each: each.bytes_done == GIB_8 // 2)
        await home.control.__aexit__(None, None, None)
        second = await stack.enter_async_context(again(home))
        assert (await second.disk()).scrubs[0].bytes_done == GIB_8 // 2
        await home.vmmd.scrub("block2", state=COPIED)
        await check_dropped(second)


async def test_a_crash_between_the_copy_and_the_recorded_request(tmp_path: Path) -> None:
    """What was copied stays so: the drop needs no machine, even if there is none any more."""
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(peers(tmp_path))
        await home.start_scrub()
        await told(home)
        await home.control.__aexit__(None, None, None)
        store = await SqlStore.open(Place(home.data))
        epochs = {each.kind: each.epoch for each in await store.claim_leases(9)}
        (record,) = await store.running_scrubs()
        copied, _ = step(record, core.Copied(at=2000.0, bytes_total=GIB_8))
        await store.save_scrub(copied, epochs[Kind.SCRUB])
        await store.close()
        home.vmmd.failures["GetVolumeInfo"] = [UnavailableError("vmmd is away")] * 100
        asked = home.vmmd.count("StartScrub")
        second = await stack.enter_async_context(again(home))
        await check_dropped(second)
        assert home.vmmd.count("StartScrub") == asked


async def test_a_crash_right_after_the_request_was_recorded(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(peers(tmp_path))
        await home.start_scrub()
        await told(home)
        await home.control.__aexit__(None, None, None)
        store = await SqlStore.open(Place(home.data))
        epochs = {each.kind: each.epoch for each in await store.claim_leases(9)}
        (record,) = await store.running_scrubs()
        disk = await store.disk("block2")
        wanted = without_parent(disk.construction, "", disk="block2")
        copied, _ = step(record, core.Copied(at=2000.0, bytes_total=GIB_8))
        event = core.Dropped(at=2001.0, original=disk.construction, recorded=wanted)
        done, epoch = step(copied, event)[0], epochs[Kind.SCRUB]
        await store.drop_parent(done, disk.construction, wanted, epoch)
        await store.close()
        second = await stack.enter_async_context(again(home))
        await check_dropped(second)
        assert second.control.scrub_driver.running == 0


async def test_a_stopped_one_does_not_come_back(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(peers(tmp_path))
        await home.start_scrub()
        await told(home)
        await home.stop_scrub()
        await home.control.__aexit__(None, None, None)
        asked = home.vmmd.count("StartScrub")
        second = await stack.enter_async_context(again(home))
        await second.wait_scrub("STOPPED")
        assert second.control.scrub_driver.running == 0
        assert home.vmmd.count("StartScrub") == asked


async def test_vmmd_away_is_waited_for_and_said(tmp_path: Path) -> None:
    async with peers(tmp_path) as home:
        home.vmmd.failures["GetVolumeInfo"] = [UnavailableError("vmmd is away")] * 6
        await home.start_scrub()
        seen = await home.wait_scrub(lambda each: bool(each.blocked_on))
        assert seen.blocked_on == "vmmd is away"
        assert not seen.last_error
        home.vmmd.quick = True
        await check_dropped(home)


async def test_a_machine_that_is_made_again_is_asked_again(tmp_path: Path) -> None:
    async with peers(tmp_path) as home:
        await home.start_scrub(bytes_per_second_max=5)
        await told(home)
        await home.vmmd.scrub("block2", bytes_done=GIB_8 // 2)
        await home.wait_scrub(lambda each: each.bytes_done > 0)
        (machine,) = home.vmmd.machines
        await home.vmmd.lose(machine)
        seen = await home.wait_scrub(lambda each: bool(each.blocked_on))
        assert seen.state == disk_pb.SCRUB_STATE_RUNNING
        await home.wait_scrub(lambda each: "INITIALIZING" in each.blocked_on)
        made = home.vmmd.specs[machine].disks[0].volume_construction_request
        assert made.HasField("read_only_parent"), "it was not copied to the end"
        await home.vmmd.set_volume("block2", "ACTIVE")
        seen = await home.wait_scrub(lambda each: not each.blocked_on)
        assert seen.bytes_done == GIB_8 // 2, "what is shown does not fall"
        assert home.vmmd.volumes["block2"].scrubs[0].bytes_per_second_max == 5
        await home.vmmd.scrub("block2", state=COPIED)
        await check_dropped(home)
        await home.vmmd.lose(machine)
        await home.vmmd.until(lambda: machine in home.vmmd.machines)
        made = home.vmmd.specs[machine].disks[0].volume_construction_request
        assert not made.HasField("read_only_parent"), "the recorded request counts from now on"
        assert made.sub_volumes[0].gen > 2


async def test_another_request_recorded_meanwhile_is_kept(tmp_path: Path) -> None:
    async with peers(tmp_path) as home:
        await home.start_scrub()
        await told(home)
        raised = await home.replace(home.over_parent(gen=5, parent_gen=9))
        assert raised.result == disk_pb.REPLACE_RESULT_VCR_MATCHES
        await home.vmmd.scrub("block2", state=COPIED)
        # Above the highest one recorded before, though the parent had it.
        await check_dropped(home, gen=10)


async def test_a_request_recorded_at_the_last_moment_is_kept(tmp_path: Path) -> None:
    """Between the look at the recorded request and the drop somebody else was quicker."""
    async with peers(tmp_path) as home:
        store, real = home.control.store, home.control.store.drop_parent
        raised = home.over_parent(gen=5)

        async def late(record, original, wanted, epoch):
            store.drop_parent = real
            await home.replace(raised)
            await real(record, original, wanted, epoch)

        store.drop_parent = late
        home.vmmd.quick = True
        await home.start_scrub()
        await check_dropped(home, gen=6)


async def test_the_parent_is_dropped_after_a_running_replacement(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(peers(tmp_path))
        answer = await home.replace(home.over_parent((0, 1, 3), gen=2))
        await home.wait_replacement(answer.replacement_id, "REPAIR")
        await home.start_scrub()
        await told(home)
        await home.vmmd.scrub("block2", state=COPIED)
        seen = await home.wait_scrub(lambda each: answer.replacement_id in each.blocked_on)
        assert (seen.state, seen.bytes_done) == (disk_pb.SCRUB_STATE_RUNNING, GIB_8)
        assert (await home.disk()).vcr.HasField("read_only_parent")
        same = await home.replace(home.over_parent((0, 1, 3), gen=2))
        assert same.result == disk_pb.REPLACE_RESULT_STARTED_ALREADY
        # A restart of the control plane loses neither of the two.
        await home.control.__aexit__(None, None, None)
        second = await stack.enter_async_context(again(home))
        await second.wait_scrub(lambda each: answer.replacement_id in each.blocked_on)
        await home.vmmd.finish("block2", 2)
        await second.wait_replacement(answer.replacement_id, "DONE")
        await check_dropped(second, gen=3)
        region = (await second.disk()).vcr.sub_volumes[0]
        assert region.opts.target[2] == home.members[3].address, "the replacement is kept"


async def test_one_that_waits_for_a_replacement_may_be_stopped_and_ends_later(
    tmp_path: Path,
) -> None:
    async with peers(tmp_path) as home:
        answer = await home.replace(home.over_parent((0, 1, 3), gen=2))
        await home.wait_replacement(answer.replacement_id, "REPAIR")
        await home.start_scrub()
        await told(home)
        await home.vmmd.scrub("block2", state=COPIED)
        await home.wait_scrub(lambda each: answer.replacement_id in each.blocked_on)
        assert (await home.stop_scrub()).state == disk_pb.SCRUB_STATE_STOPPED
        assert home.vmmd.count("StopScrub") == 0, "the machine has ended it long ago"
        await home.vmmd.finish("block2", 2)
        await home.wait_replacement(answer.replacement_id, "DONE")
        assert (await home.disk()).vcr.HasField("read_only_parent")
        await home.start_scrub()
        await check_dropped(home, gen=3)


async def test_a_replacement_in_a_parent_that_goes_ends_with_the_reason(tmp_path: Path) -> None:
    async with house(tmp_path / "data", downstairs=9) as home:
        await home.create_over()
        home.members[8].region.read_only = True
        await home.start_scrub()
        await told(home)
        answer = await home.replace(home.over_parent(parents=(5, 6, 8), parent_gen=2))
        assert answer.path == "read_only_parent.sub_volumes[0].opts.target[2]"
        await home.wait_replacement(answer.replacement_id, "REPAIR")
        await home.vmmd.scrub("block2", state=COPIED)
        failed = await home.wait_replacement(answer.replacement_id, "FAILED")
        assert "copied into the volume meanwhile" in failed.last_error
        await check_dropped(home, gen=3)
        _, error = await refused(home.replace(home.over_parent(parents=(5, 6, 8), parent_gen=2)))
        assert fields(error)["vcr.read_only_parent"] == "PARENT_SCRUBBED"


async def test_a_replacement_that_is_to_be_verified_in_a_parent_that_goes(tmp_path: Path) -> None:
    async with house(tmp_path / "data", downstairs=9) as home:
        await home.create_over()
        home.members[8].region.read_only = True
        await home.start_scrub()
        await told(home)
        home.vmmd.quick = True
        home.vmmd.failures["VerifyVolume"] = [UnavailableError("vmmd is away")] * 100
        answer = await home.replace(home.over_parent(parents=(5, 6, 8), parent_gen=2))
        await home.wait_replacement(answer.replacement_id, lambda r: bool(r.blocked_on))
        await home.vmmd.scrub("block2", state=COPIED)
        failed = await home.wait_replacement(answer.replacement_id, "FAILED")
        assert failed.transitions[-2].state == pb.REPLACEMENT_STATE_VERIFY
        assert "copied into the volume meanwhile" in failed.last_error
        await check_dropped(home, gen=3)


async def test_a_failed_replacement_from_before_the_drop_is_not_taken_up_again(
    tmp_path: Path,
) -> None:
    async with peers(tmp_path) as home:
        refusal = StateError("slot 1 is OFFLINE", reason="SIBLING_IN_TROUBLE")
        home.vmmd.failures["ReplaceVcr"] = [refusal] * 11
        home.vmmd.quick = True
        answer = await home.replace(home.over_parent((0, 1, 3), gen=2))
        await home.wait_replacement(answer.replacement_id, "FAILED")
        await home.start_scrub()
        await check_dropped(home, gen=3)
        _, error = await refused(home.replace(home.over_parent((0, 1, 3), gen=2)))
        assert fields(error)["vcr.read_only_parent"] == "PARENT_SCRUBBED"
        # The target it did not reach can be brought in by a new one, in the recorded form.
        wanted = home.over_parent((0, 1, 4), gen=3)
        del wanted["read_only_parent"]
        second = await home.replace(wanted)
        await home.wait_replacement(second.replacement_id, "DONE")
        sent = [request for name, request in home.vmmd.calls if name == "ReplaceVcr"][-1]
        assert sent.original.sub_volumes[0].opts.target[2] == home.members[2].address
