"""Disks plugged into a running machine and taken out, over gRPC: in the store with the instance,
whatever becomes of the machine, of vmmd or of the control plane."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from stairlib.model.errors import StateError, UnavailableError, UnsupportedError
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import fleet_service_pb2 as fleet_pb
from stairwell.controlplane.v1 import instance_service_pb2 as pb
from tests.contract.controlplane_house import (
    SECONDS,
    House,
    document_disk,
    fields,
    house,
    refused,
    running,
)

MORE = "5e6e1c0b-5a0e-4b3c-9a55-0c9d7a3f2e41"
# The members of the second disk.
SLOTS = (3, 4, 5)


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "data", downstairs=9) as found:
        await found.create_running()
        yield found


def more_disk(home: House, **changes: Any) -> dict[str, Any]:
    """A disk like the document's, with members of its own."""
    region = home.region_json(*SLOTS, owner=MORE)
    vcr = {"type": "volume", "id": MORE, "block_size": 4096, "sub_volumes": [region]}
    return {
        **document_disk(), "name": "more", "slot": 4, "volume_construction_request": vcr, **changes
    }  # fmt: skip


def plug(home: House, disk: dict[str, Any] | None = None, **more: Any) -> Any:
    request = json_format.ParseDict(
        {"name": "crub", "disk": disk if disk is not None else more_disk(home), **more},
        pb.PlugDiskRequest(),
    )
    return home.instances.PlugDisk(request, timeout=SECONDS)


def unplug(home: House, disk: str = "more", **more: Any) -> Any:
    return home.instances.UnplugDisk(pb.UnplugDiskRequest(disk=disk, **more), timeout=SECONDS)


async def roles(home: House) -> dict[str, int]:
    answer = await home.fleet.ListDownstairs(fleet_pb.ListDownstairsRequest(), timeout=SECONDS)
    return {each.address: each.role for each in answer.downstairs}


async def test_a_plugged_disk_is_recorded_and_a_machine_made_again_has_it(home: House) -> None:
    answer = await plug(home)
    assert sorted(answer.instance.disks) == ["block2", "more"]
    assert (await home.disk("more")).pci_path == "0.20.0"
    request = next(each for name, each in home.vmmd.calls if name == "PlugDisk")
    assert request.disk.pci_path == "0.20.0"
    assert request.disk.volume_construction_request.sub_volumes[0].gen == 1
    (machine,) = home.vmmd.machines
    await home.vmmd.die(machine)
    await home.vmmd.until(lambda: home.vmmd.count("EnsureMachine") == 2)
    again = home.vmmd.specs[machine]
    assert sorted(disk.name for disk in again.disks) == ["block2", "more"]
    assert {disk.volume_construction_request.sub_volumes[0].gen for disk in again.disks} == {2}, (
        "above what their members were promoted to"
    )


async def test_a_control_plane_and_a_vmmd_that_restart_bring_it_back(home: House) -> None:
    await plug(home)
    await home.control.__aexit__(None, None, None)
    (machine,) = home.vmmd.machines
    await home.vmmd.lose(machine)
    async with running(home.data, home.vmmd, home.members) as later:
        await later.vmmd.until(lambda: later.vmmd.count("EnsureMachine") == 2)
        removable = {disk.name: disk.removable for disk in later.vmmd.specs[machine].disks}
        # As it was when it was plugged: it can still be unplugged.
        assert removable == {"block2": False, "more": True}
        assert (await later.disk("more")).instance == "crub"


async def test_the_same_request_again_has_one_effect(home: House) -> None:
    first = await plug(home, request_id="one")
    assert await plug(home, request_id="one") == first
    assert await plug(home) == first
    assert home.vmmd.count("PlugDisk") == 1
    code, error = await refused(plug(home, more_disk(home, slot=5)))
    assert (code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "DISK_EXISTS")


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"slot": 3}, grpc.StatusCode.ALREADY_EXISTS, "SLOT_TAKEN"),
        ({"name": "block2"}, grpc.StatusCode.ALREADY_EXISTS, "DISK_EXISTS"),
        ({"slot": 8}, grpc.StatusCode.INVALID_ARGUMENT, "SLOT_OUT_OF_RANGE"),
        ({"device": "floppy"}, grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_DEVICE"),
        ({"volume_construction_request": None}, grpc.StatusCode.INVALID_ARGUMENT, "MISSING"),
    ],
)
async def test_a_disk_that_cannot_be_leaves_nothing(
    home: House, changes: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    before = home.state()
    got, error = await refused(plug(home, more_disk(home, **changes)))
    assert got is code
    assert reason in (error.reason, *fields(error).values())
    assert all(field.startswith("disk") for field in fields(error))
    assert home.state() == before
    assert not home.vmmd.count("PlugDisk")


async def test_members_of_another_disk_are_refused(home: House) -> None:
    before = home.state()
    disk = more_disk(home)
    disk["volume_construction_request"]["sub_volumes"][0]["opts"]["target"] = home.targets(2, 3, 4)
    code, error = await refused(plug(home, disk))
    assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TARGET_IN_USE")
    assert home.state() == before


@pytest.mark.parametrize(
    "refusal",
    [
        UnsupportedError("there is nobody to see it", reason="NEEDS_PROCESSOR"),
        StateError("a new disk needs a running machine", reason="NOT_RUNNING"),
    ],
)
async def test_what_the_machine_refuses_is_not_recorded(home: House, refusal: Any) -> None:
    def without_generations() -> list[Any]:
        # A generation is not handed out twice, whatever became of it.
        return [table for index, table in enumerate(home.state()) if index != 2]

    before = without_generations()
    home.vmmd.failures["PlugDisk"] = [refusal]
    _code, error = await refused(plug(home))
    assert error.reason == refusal.reason
    assert without_generations() == before
    await plug(home)


async def test_an_answer_that_is_lost_leaves_a_disk_that_is_recorded(home: House) -> None:
    home.vmmd.failures["PlugDisk"] = [UnavailableError("away", reason="QEMU_SILENT")]
    code, error = await refused(plug(home))
    assert (code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "QEMU_SILENT")
    assert "send the same request again" in error.message
    assert (await home.disk("more")).name == "more"
    # The machine has it not.
    answer = await plug(home)
    assert sorted(answer.instance.disks) == ["block2", "more"]
    assert home.vmmd.count("PlugDisk") == 2


async def test_an_unplugged_disk_is_forgotten_and_its_regions_are_retired(home: House) -> None:
    await plug(home)
    answer = await unplug(home, request_id="two")
    assert list(answer.instance.disks) == ["block2"]
    assert await unplug(home, request_id="two") == answer
    (machine,) = home.vmmd.machines.values()
    assert list(machine.disks) == ["block2"]
    retired = fleet_pb.DOWNSTAIRS_ROLE_RETIRED
    found = await roles(home)
    assert [found[address] for address in home.targets(*SLOTS)] == [retired] * 3
    code, _ = await refused(home.disks.GetDisk(disk_pb.GetDiskRequest(name="more")))
    assert code is grpc.StatusCode.NOT_FOUND
    code, _ = await refused(unplug(home))
    assert code is grpc.StatusCode.NOT_FOUND
    # The same regions again, above what they were promoted to.
    await plug(home)
    request = [each for name, each in home.vmmd.calls if name == "PlugDisk"][-1]
    assert request.disk.volume_construction_request.sub_volumes[0].gen == 2


async def test_a_guest_that_holds_on_keeps_its_disk(home: House) -> None:
    await plug(home)
    held = UnavailableError("the guest did not let it go", reason="GUEST_HOLDS_DISK")
    home.vmmd.failures["UnplugDisk"] = [held]
    _code, error = await refused(unplug(home))
    assert error.reason == "GUEST_HOLDS_DISK"
    assert (await home.disk("more")).name == "more"


async def test_a_disk_that_the_machine_lost_can_be_unplugged(home: House) -> None:
    await plug(home)
    (machine,) = home.vmmd.machines.values()
    machine.disks.remove("more")
    await unplug(home)
    code, _ = await refused(home.disks.GetDisk(disk_pb.GetDiskRequest(name="more")))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_unplugging_ends_a_replacement(home: House) -> None:
    await plug(home)
    await home.vmmd.set_volume("more", "ACTIVE")
    vcr = more_disk(home)["volume_construction_request"]
    vcr["sub_volumes"][0]["opts"]["target"] = home.targets(3, 4, 6)
    vcr["sub_volumes"][0]["gen"] = 2
    started = await home.replace(vcr, name="more")
    await unplug(home)
    record = await home.wait_replacement(started.replacement_id, "FAILED")
    assert "unplugged" in record.last_error


async def test_an_instance_that_has_ended_takes_no_disk(home: House) -> None:
    (machine,) = home.vmmd.machines
    await home.vmmd.set_machine(machine, "DESTROYED")
    await home.wait_instance("DESTROYED")
    for call in (plug(home), unplug(home, "block2")):
        code, error = await refused(call)
        assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INSTANCE_ENDED")
