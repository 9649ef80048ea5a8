"""Instances and disks over gRPC, against a vmmd that answers, is away, or forgets."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf import json_format

from controlplane.cli.watch import wanted_reached
from controlplane.machines import DEATHS_MAX
from stairlib.model.errors import StateError, UnavailableError
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import fleet_service_pb2 as fleet_pb
from stairwell.controlplane.v1 import instance_service_pb2 as pb
from stairwell.vmmd.v1 import guest_service_pb2 as guest_pb
from stairwell.vmmd.v1 import machine_service_pb2 as machine_pb
from tests.contract.controlplane_house import (
    SECONDS,
    VOLUME,
    House,
    document_disk,
    fields,
    house,
    refused,
    running,
)
from tests.contract.controlplane_peers import ScriptedVmmd, serving_vmmd

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "data") as found:
        yield found


def set_state(home: House, state: Any, name: str = "") -> Any:
    return home.instances.SetInstanceState(
        pb.SetInstanceStateRequest(name=name, state=state), timeout=SECONDS
    )


async def test_create_makes_the_machine(home: House) -> None:
    instance = await home.create()
    assert instance.state == pb.INSTANCE_STATE_CREATING
    assert list(instance.disks) == ["block2"]
    (spec,) = home.vmmd.specs.values()
    assert spec.id == instance.id
    (disk,) = spec.disks
    assert disk.pci_path == "0.19.0"
    assert disk.volume_construction_request.sub_volumes[0].gen == 1
    fleet = await home.fleet.ListDownstairs(fleet_pb.ListDownstairsRequest(), timeout=SECONDS)
    assert {each.address for each in fleet.downstairs} == set(home.targets(0, 1, 2))
    assert {each.volume_id for each in fleet.downstairs} == {VOLUME}


async def test_how_long_two_copies_wait_is_kept_and_handed_on(home: House) -> None:
    instance = await home.create(activateWithTwoAfter="90.5s")
    assert instance.activate_with_two_after.ToTimedelta().total_seconds() == 90.5
    (spec,) = home.vmmd.specs.values()
    assert spec.disks[0].activate_with_two_after == instance.activate_with_two_after
    for wrong in ("0.5s", "86401s", "-1s"):
        code, error = await refused(home.create("other", activateWithTwoAfter=wrong))
        assert (code, fields(error)) == (INVALID, {"activate_with_two_after": "OUT_OF_RANGE"})
    assert not (await home.create("third", disks=[])).HasField("activate_with_two_after")


async def test_two_copies_do_not_serve_while_a_replacement_is_unfinished(home: House) -> None:
    """The member that was put in another's place may not have been filled."""
    instance = await home.create_running(activateWithTwoAfter="90s")
    answer = await home.replace(home.vcr())
    await home.wait_replacement(answer.replacement_id, "REPAIR")
    await home.vmmd.lose(instance.id)
    assert not await made_again(home, 2)
    await home.vmmd.set_machine(instance.id, "RUNNING")
    await home.vmmd.set_volume("block2", "ACTIVE")
    await home.vmmd.finish("block2", 2)
    await home.wait_replacement(answer.replacement_id, "DONE")
    await home.vmmd.lose(instance.id)
    assert await made_again(home, 3)


async def test_a_machine_whose_process_dies_is_made_again_until_it_keeps_dying(home: House) -> None:
    instance = await home.create()
    await set_state(home, pb.REQUESTED_STATE_RUN)
    await home.vmmd.set_machine(instance.id, "RUNNING")
    await home.wait_instance("RUNNING")
    for times in range(1, DEATHS_MAX + 1):
        await home.vmmd.die(instance.id)
        await home.vmmd.until(lambda times=times: home.vmmd.count("EnsureMachine") == times + 1)
        await home.vmmd.until(
            lambda: home.vmmd.machines[instance.id].state == machine_pb.MACHINE_STATE_STARTING
        )
        (region,) = home.vmmd.specs[instance.id].disks[0].volume_construction_request.sub_volumes
        assert region.gen == times + 1, "fenced off from the one before"
        await home.vmmd.set_machine(instance.id, "RUNNING")
        await home.wait_instance("RUNNING")
    await home.vmmd.die(instance.id)
    failed = await home.wait_instance("FAILED")
    assert f"signal 9), {DEATHS_MAX + 1} times in 600 s" in failed.reason
    assert home.vmmd.count("EnsureMachine") == DEATHS_MAX + 1


async def test_a_machine_that_dies_while_it_is_stopped_has_ended(home: House) -> None:
    instance = await home.create_running()
    await set_state(home, pb.REQUESTED_STATE_STOP)
    await home.vmmd.die(instance.id)
    ended = await home.wait_instance("DESTROYED")
    assert "signal 9" in ended.reason
    assert home.vmmd.count("EnsureMachine") == 1


async def test_run_and_watch(home: House) -> None:
    await home.create()
    call = home.instances.WatchInstance(pb.WatchInstanceRequest())
    seen: list[pb.Instance] = [(await call.read()).instance]
    answer = await set_state(home, pb.REQUESTED_STATE_RUN)
    assert answer.instance.state == pb.INSTANCE_STATE_STARTING
    seen.append((await call.read()).instance)
    for state in ("RUNNING", "STOPPING", "STOPPED", "DESTROYED"):
        await home.vmmd.set_machine(answer.instance.id, state)
        seen.append((await call.read()).instance)
    assert await call.read() is grpc.aio.EOF
    names = [pb.InstanceState.Name(each.state)[15:] for each in seen]
    assert names == ["CREATING", "STARTING", "RUNNING", "STOPPING", "STOPPED", "DESTROYED"]
    generations = [each.state_generation for each in seen]
    assert generations == sorted(set(generations))


async def test_a_reboot_that_is_over_before_it_is_answered_has_been_one(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asked waits for a running machine of a later state than the answer's."""
    await home.create_running()

    async def at_once(machine_id: str) -> None:
        for state in ("REBOOTING", "RUNNING"):
            await home.vmmd.set_machine(machine_id, state)
            await home.wait_instance(state)

    monkeypatch.setattr(home.vmmd, "reboot", at_once)
    answer = await set_state(home, pb.REQUESTED_STATE_REBOOT)
    now = await home.wait_instance("RUNNING")
    assert wanted_reached(pb.REQUESTED_STATE_REBOOT, answer.instance, now)


async def test_vmmd_s_refusal_of_a_state_comes_through(home: House) -> None:
    await home.create()
    home.vmmd.failures["SetMachineState"] = [
        StateError("a reboot needs a running machine", reason="NOT_RUNNING", state="CREATING")
    ]
    code, error = await refused(set_state(home, pb.REQUESTED_STATE_REBOOT))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == "NOT_RUNNING"
    code, error = await refused(set_state(home, pb.REQUESTED_STATE_UNSPECIFIED))
    assert (code, fields(error)) == (INVALID, {"state": "UNKNOWN_STATE"})
    code, _ = await refused(set_state(home, pb.REQUESTED_STATE_RUN, "nothing"))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_an_instance_that_has_ended_takes_no_state_but_stopped(home: House) -> None:
    instance = await home.create()
    await home.vmmd.set_machine(instance.id, "DESTROYED")
    await home.wait_instance("DESTROYED")
    before = home.state()
    code, error = await refused(set_state(home, pb.REQUESTED_STATE_RUN))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == "INSTANCE_ENDED"
    answer = await set_state(home, pb.REQUESTED_STATE_STOP)
    assert answer.instance.state == pb.INSTANCE_STATE_DESTROYED
    assert home.state() == before
    assert home.vmmd.count("SetMachineState") == 0


def wrong(**changes: Any) -> Any:
    """A request of the document's disk with changes."""

    def make(home: House) -> dict[str, Any]:
        disk = home.disk_json()
        region = disk["volume_construction_request"]["sub_volumes"][0]
        request: dict[str, Any] = {"name": "crub", "disks": [disk]}
        for key, value in changes.items():
            where = {"name": request, "id": request, "gen": region}.get(key, disk)
            if key in ("block_size", "extent_count"):
                where = region
            if key == "target":
                where = region["opts"]
            if key == "disk_name":
                key = "name"
            where[key] = value
        return request

    return make


VCR = "disks[0].volume_construction_request"


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (wrong(name=""), "name"),
        (wrong(name="two words"), "name"),
        (wrong(name=str(uuid4())), "name"),
        (wrong(id="x"), "id"),
        (wrong(device="ide"), "disks[0].device"),
        (wrong(disk_name=""), "disks[0].name"),
        (wrong(slot=8), "disks[0].slot"),
        (wrong(block_size=1000), f"{VCR}.sub_volumes[0].block_size"),
        (wrong(extent_count=0), f"{VCR}.sub_volumes[0].extent_count"),
        (wrong(target=["127.0.0.1:8810", "127.0.0.1:8820"]), f"{VCR}.sub_volumes[0].opts.target"),
        (wrong(target=["127.0.0.1:1", "x", "127.0.0.1:3"]), f"{VCR}.sub_volumes[0].opts.target[1]"),
        (wrong(volume_construction_request=None), VCR),
    ],
)
async def test_a_request_that_is_not_well_formed(home: House, make: Any, field: str) -> None:
    before = home.state()
    request = json_format.ParseDict(make(home), pb.CreateInstanceRequest())
    code, error = await refused(home.instances.CreateInstance(request, timeout=SECONDS))
    assert code is INVALID
    assert field in fields(error), fields(error)
    assert home.state() == before
    assert home.vmmd.count("EnsureMachine") == 0


async def test_disks_that_collide(home: House) -> None:
    twice = [home.disk_json(), home.disk_json()]
    code, error = await refused(home.create(disks=twice))
    assert code is INVALID
    assert {
        "disks[1].name": "DUPLICATE_NAME",
        "disks[1].slot": "DUPLICATE_SLOT",
        "disks[1].volume_construction_request.id": "DUPLICATE_VOLUME",
    }.items() <= fields(error).items()


async def test_what_exists_already(home: House) -> None:
    await home.create()
    before = home.state()
    disk = home.disk_json(slots=(3, 4, 2))
    for name, changed in (("crub", []), ("other", [home.disk_json()]), ("other", [disk])):
        code, _ = await refused(home.create(name, disks=changed))
        assert code is grpc.StatusCode.ALREADY_EXISTS
    disk["name"] = "block3"
    disk["volume_construction_request"]["id"] = str(uuid4())
    code, error = await refused(home.create("other", disks=[disk]))
    assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TARGET_IN_USE")
    assert error.metadata["field"] == f"{VCR}.sub_volumes[0].opts.target[2]"
    assert home.state() == before


async def test_nothing_is_left_when_vmmd_cannot_make_it(home: House) -> None:
    before = home.state()
    home.vmmd.failures["EnsureMachine"] = [UnavailableError("no room")]
    code, _ = await refused(home.create())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert home.state() == before
    await home.create()


async def test_vmmd_is_away(tmp_path: Path) -> None:
    script = ScriptedVmmd(address="127.0.0.1:1")
    async with running(tmp_path, script, []) as home:
        before = home.state()
        code, error = await refused(home.create(disks=[document_disk()]))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "cannot reach vmmd at 127.0.0.1:1" in error.message
        assert home.state() == before


async def test_a_request_id_makes_one_instance(home: House) -> None:
    first = await home.create(requestId="r-1")
    again = await home.create(requestId="r-1")
    assert first == again
    assert home.vmmd.count("EnsureMachine") == 1


async def test_the_only_one_needs_no_name_and_several_do(home: House) -> None:
    get = home.instances.GetInstance
    code, error = await refused(get(pb.GetInstanceRequest(), timeout=SECONDS))
    assert code is grpc.StatusCode.NOT_FOUND
    first = await home.create()
    found = await get(pb.GetInstanceRequest(), timeout=SECONDS)
    assert found.instance.id == first.id
    found = await get(pb.GetInstanceRequest(name=first.id), timeout=SECONDS)
    assert found.instance.name == "crub"
    await home.create("second", disks=[])
    code, error = await refused(get(pb.GetInstanceRequest(), timeout=SECONDS))
    assert (code, error.reason) == (INVALID, "NAME_NEEDED")
    assert "crub, second" in error.message


async def test_pages(home: House) -> None:
    for number in range(5):
        await home.create(f"vm{number}", disks=[])
    names: list[str] = []
    token = ""
    for _ in range(3):
        answer = await home.instances.ListInstances(
            pb.ListInstancesRequest(page_size=2, page_token=token), timeout=SECONDS
        )
        names += [each.name for each in answer.instances]
        token = answer.next_page_token
    assert names == [f"vm{number}" for number in range(5)]
    assert token == ""
    code, error = await refused(
        home.instances.ListInstances(pb.ListInstancesRequest(page_token="?"), timeout=SECONDS)
    )
    assert (code, fields(error)) == (INVALID, {"page_token": "BAD_PAGE_TOKEN"})


async def test_delete_frees_the_names_and_fails_the_replacement(home: House) -> None:
    instance = await home.create_running()
    answer = await home.replace(home.vcr())
    await home.instances.DeleteInstance(pb.DeleteInstanceRequest(name="crub"), timeout=SECONDS)
    assert instance.id not in home.vmmd.machines
    record = await home.wait_replacement(answer.replacement_id, "FAILED")
    assert "deleted" in record.last_error
    again = await home.create()
    assert again.id != instance.id
    spec = home.vmmd.specs[again.id]
    generation = spec.disks[0].volume_construction_request.sub_volumes[0].gen
    assert generation == 2, "above the one its members were promoted to"


async def test_a_disk_with_what_its_machine_says(home: House) -> None:
    await home.create_running()
    get = home.disks.GetDisk
    for name in ("block2", VOLUME):
        disk = (await get(disk_pb.GetDiskRequest(name=name), timeout=SECONDS)).disk
        assert (disk.name, disk.id, disk.instance) == ("block2", VOLUME, "crub")
        assert (disk.pci_path, disk.recorded_generation) == ("0.19.0", 1)
        assert disk.volume.nbd_uri
        assert list(disk.vcr.sub_volumes[0].opts.target) == home.targets(0, 1, 2)
    code, _ = await refused(get(disk_pb.GetDiskRequest(name="x"), timeout=SECONDS))
    assert code is grpc.StatusCode.NOT_FOUND
    home.vmmd.failures["GetVolumeInfo"] = [UnavailableError("away")]
    disk = (await get(disk_pb.GetDiskRequest(name="block2"), timeout=SECONDS)).disk
    assert not disk.HasField("volume")
    listed = await home.disks.ListDisks(disk_pb.ListDisksRequest(instance="crub"), timeout=SECONDS)
    assert [each.name for each in listed.disks] == ["block2"]


async def test_a_disk_is_watched_through_a_replacement(home: House) -> None:
    await home.create_running()
    call = home.disks.WatchDisk(disk_pb.WatchDiskRequest(name="block2"))
    first = (await call.read()).disk
    assert not first.replacement_id
    answer = await home.replace(home.vcr())
    async with asyncio.timeout(SECONDS):
        while (seen := (await call.read()).disk).replacement_id != answer.replacement_id:
            pass
        assert seen.recorded_generation == 2
        while home.members[3].address != seen.volume.regions[0].slots[2].address:
            seen = (await call.read()).disk
        await home.vmmd.finish("block2", 2)
        while seen.replacement_id:
            seen = (await call.read()).disk
    call.cancel()


async def test_verify(home: House) -> None:
    await home.create_running()
    answer = await home.disks.VerifyDisk(
        disk_pb.VerifyDiskRequest(name="block2", read_data=True), timeout=SECONDS
    )
    assert answer.report.equal
    # The control plane looks at its machines meanwhile.
    [asked] = [request for method, request in home.vmmd.calls if method == "VerifyVolume"]
    assert asked.read_data


async def test_a_key_is_never_shown_nor_stored_in_clear(home: House) -> None:
    key = base64.b64encode(bytes(range(32))).decode()
    disk = home.disk_json()
    disk["volume_construction_request"]["sub_volumes"][0]["opts"]["key"] = key
    await home.create(disks=[disk])
    (spec,) = home.vmmd.specs.values()
    assert key in str(spec.disks[0].volume_construction_request), "the machine needs it"
    shown = await home.disks.GetDisk(disk_pb.GetDiskRequest(name="block2"), timeout=SECONDS)
    assert key not in str(shown)
    stored = b"".join(path.read_bytes() for path in home.data.iterdir() if path.is_file())
    assert key.encode() not in stored
    mode = (home.data / "secret.key").stat().st_mode
    assert mode & 0o777 == 0o600


async def test_a_workload_passes_through_and_ends_with_its_caller(home: House) -> None:
    await home.create_running()
    call = home.instances.RunGuestWorkload(
        pb.RunGuestWorkloadRequest(workload=guest_pb.Workload(disk="block2"))
    )
    assert (await call.read()).report.ios == 1
    assert home.vmmd.workloads_running == 1
    call.cancel()
    async with asyncio.timeout(SECONDS), home.vmmd.changed:
        await home.vmmd.changed.wait_for(lambda: home.vmmd.workloads_running == 0)


async def test_spares_are_asked_what_they_are(home: House) -> None:
    register = home.fleet.RegisterDownstairs
    spare = home.members[4]
    answer = await register(
        fleet_pb.RegisterDownstairsRequest(address=spare.address), timeout=SECONDS
    )
    assert answer.downstairs.role == fleet_pb.DOWNSTAIRS_ROLE_SPARE
    assert answer.downstairs.region_id == spare.region.id
    assert answer.downstairs.extent_count == 128
    await home.create()
    member = await register(
        fleet_pb.RegisterDownstairsRequest(address=home.members[0].address), timeout=SECONDS
    )
    assert member.downstairs.role == fleet_pb.DOWNSTAIRS_ROLE_MEMBER
    code, error = await refused(
        register(fleet_pb.RegisterDownstairsRequest(address="127.0.0.1:1"), timeout=SECONDS)
    )
    assert (code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "TARGET_UNREACHABLE")
    code, error = await refused(
        register(fleet_pb.RegisterDownstairsRequest(address="x"), timeout=SECONDS)
    )
    assert (code, fields(error)) == (INVALID, {"address": "BAD_ADDRESS"})


async def test_a_vmmd_that_restarts_gets_its_machines_again(tmp_path: Path) -> None:
    first, second = ScriptedVmmd(), ScriptedVmmd()
    async with AsyncExitStack() as stack:
        async with serving_vmmd(first) as address:
            first.address = address
            home = await stack.enter_async_context(running(tmp_path / "data", first, []))
            instance = await home.create(disks=[document_disk()])
            await set_state(home, pb.REQUESTED_STATE_RUN)
            await first.set_machine(instance.id, "RUNNING")
            await home.wait_instance("RUNNING")
        lost = await wait_reason(home, "last known state")
        assert lost.state == pb.INSTANCE_STATE_RUNNING
        await stack.enter_async_context(serving_vmmd(second, address))
        await home.wait_instance("STARTING")
        (spec,) = second.specs.values()
        assert spec.id == instance.id
        generation = spec.disks[0].volume_construction_request.sub_volumes[0].gen
        assert generation == 2, "a higher one, or its members would refuse it"
        await second.set_machine(instance.id, "RUNNING")
        found = await home.wait_instance("RUNNING")
        assert not found.reason


async def wait_reason(home: House, text: str) -> pb.Instance:
    call = home.instances.WatchInstance(pb.WatchInstanceRequest(name="crub"))
    try:
        async with asyncio.timeout(SECONDS):
            async for answer in call:
                if text in answer.instance.reason:
                    return answer.instance
        raise AssertionError("the watch ended")
    finally:
        call.cancel()


async def made_again(home: House, times: int) -> bool:
    """Once vmmd was asked for the machine so often: whether its disk may serve with two copies."""
    await home.vmmd.until(lambda: home.vmmd.count("EnsureMachine") >= times)
    request = [each for name, each in home.vmmd.calls if name == "EnsureMachine"][-1]
    return bool(request.spec.disks[0].activate_with_two_after.seconds == 90)


async def test_a_snapshot_of_a_disk(home: House) -> None:
    await home.create_running()

    def ask(name: str, **more: Any) -> Any:
        request = disk_pb.SnapshotDiskRequest(name="block2", snapshot=name, **more)
        return home.disks.SnapshotDisk(request, timeout=SECONDS)

    first = await ask("before-upgrade", request_id="one")
    (region,) = first.regions
    assert (region.generation, region.flush_number, len(region.targets)) == (1, 7, 3)
    assert await ask("before-upgrade", request_id="one") == first
    assert home.vmmd.count("Snapshot") == 1, "the same request sent again"
    for wrong in ("", "-x", "a/b", "a" * 65, "é"):
        code, error = await refused(ask(wrong))
        assert (code, fields(error)) == (INVALID, {"snapshot": "SNAPSHOT_NAME"})
    assert home.vmmd.count("Snapshot") == 1
    home.vmmd.failures["Snapshot"] = [
        StateError("a snapshot needs all three members", reason="SNAPSHOT_NEEDS_THREE")
    ]
    code, error = await refused(ask("later"))
    assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SNAPSHOT_NEEDS_THREE")
