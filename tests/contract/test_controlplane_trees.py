"""Disks that are more than one region: replacements anywhere in the tree, and disks of any kind."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from stairlib.model.errors import StateError
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import fleet_service_pb2 as fleet_pb
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.contract.controlplane_house import (
    PARENT,
    SECONDS,
    VOLUME,
    House,
    document_disk,
    fields,
    house,
    refused,
    volume_json,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
# Members by region; the last two of the sixteen are spares.
MEMBERS = {
    "sub_volumes[0]": (0, 1, 2),
    "sub_volumes[1]": (3, 4, 5),
    "read_only_parent.sub_volumes[0]": (6, 7, 8),
    "read_only_parent.sub_volumes[1].sub_volumes[0]": (9, 10, 11),
    "read_only_parent.read_only_parent": (12, 13, 14),
}
SPARE, SPARE_2 = 15, 16


def tree(home: House, gen: int = 1, **targets: int) -> dict[str, Any]:
    """Two regions over a parent of a region and a nested volume, over a parent's parent.

    `targets` names the member of one slot anew: the slot's own member by its number, as `m3=15`.
    """

    def region(path: str, **more: Any) -> dict[str, Any]:
        slots = tuple(targets.get(f"m{each}", each) for each in MEMBERS[path])
        found = home.region_json(*slots, gen=gen, **more)
        found["extent_count"] = 64 if path == "sub_volumes[1]" else 128
        return found

    shared: dict[str, Any] = {"read_only": True, "owner": PARENT}
    nested = volume_json(
        region("read_only_parent.sub_volumes[1].sub_volumes[0]", **shared), id=str(PARENT)
    )
    parent = volume_json(
        region("read_only_parent.sub_volumes[0]", **shared),
        nested,
        id=PARENT,
        read_only_parent=region("read_only_parent.read_only_parent", **shared),
    )
    return volume_json(region("sub_volumes[0]"), region("sub_volumes[1]"), read_only_parent=parent)


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "data", downstairs=17) as found:
        for slot in range(6, 15):
            found.members[slot].region.read_only = True
        for slot in (3, 4, 5):
            found.members[slot].region.geometry.extent_count = 64
        await found.create_running(
            disks=[{**document_disk(), "volume_construction_request": tree(found)}]
        )
        yield found


def fit(home: House, path: str) -> None:
    """Makes the spares such that they can join the region."""
    for slot in (SPARE, SPARE_2):
        spare = home.members[slot].region
        spare.read_only = path.startswith("read_only_parent")
        spare.geometry.extent_count = 64 if path == "sub_volumes[1]" else 128


async def roles(home: House) -> dict[str, str]:
    answer = await home.fleet.ListDownstairs(fleet_pb.ListDownstairsRequest(), timeout=SECONDS)
    name = fleet_pb.DownstairsRole.Name
    return {each.address: name(each.role).rpartition("_")[2] for each in answer.downstairs}


@pytest.mark.parametrize("path", MEMBERS)
async def test_a_replacement_in_any_region(home: House, path: str) -> None:
    fit(home, path)
    old, slot = MEMBERS[path][1], 1
    wanted = tree(home, 2, **{f"m{old}": SPARE})
    answer = await home.replace(wanted)
    record = answer.replacement
    assert answer.result == disk_pb.REPLACE_RESULT_STARTED
    assert answer.path == f"{path}.opts.target[1]"
    assert (record.region_path, record.slot) == (path, slot)
    extents = 64 if path == "sub_volumes[1]" else 128
    assert record.extents_total == extents
    total = record.bytes_total
    assert total == extents * 16384 * 4096

    await home.wait_replacement(answer.replacement_id, "REPAIR")
    again = await home.replace(wanted)
    assert again.result == disk_pb.REPLACE_RESULT_STARTED_ALREADY
    await home.vmmd.progress("block2", slot, total // 2, total, path)
    seen = await home.wait_replacement(answer.replacement_id, lambda r: r.bytes_done > 0)
    assert seen.bytes_done == total // 2
    await home.vmmd.finish("block2", slot, path)
    await home.wait_replacement(answer.replacement_id, "DONE")

    verified = [request for name, request in home.vmmd.calls if name == "VerifyVolume"]
    assert [each.region_path for each in verified] == [path]
    late = await home.replace(wanted)
    assert late.result == disk_pb.REPLACE_RESULT_COMPLETED_ALREADY
    assert late.replacement_id == answer.replacement_id
    code, _ = await refused(home.replace(tree(home, 1)))
    assert code is INVALID, "the first request is not what is recorded any more"
    found, shared = await roles(home), path.startswith("read_only_parent")
    old_address, new_address = home.targets(old, SPARE)
    assert found.get(old_address) == (None if shared else "RETIRED")
    assert found.get(new_address) == (None if shared else "MEMBER")


async def test_no_difference_of_a_tree(home: House) -> None:
    code, error = await refused(home.replace(tree(home)))
    assert (code, error.reason) == (INVALID, "NO_DIFFERENCE")


async def test_the_second_region_after_the_first(home: House) -> None:
    """Each replacement starts from what the one before has left."""
    home.vmmd.quick = True
    first = await home.replace(tree(home, 2, m1=SPARE))
    await home.wait_replacement(first.replacement_id, "DONE")
    path = "read_only_parent.read_only_parent"
    home.members[SPARE_2].region.read_only = True
    second = await home.replace(tree(home, 2, m1=SPARE, m14=SPARE_2))
    assert second.replacement.region_path == path
    await home.wait_replacement(second.replacement_id, "DONE")
    vcr = (await home.disk()).vcr
    assert vcr.sub_volumes[0].opts.target[1] == home.members[SPARE].address
    below = vcr.read_only_parent.read_only_parent
    assert below.opts.target[2] == home.members[SPARE_2].address


async def test_two_regions_at_once_are_refused(home: House) -> None:
    code, error = await refused(home.replace(tree(home, 2, m1=SPARE, m13=SPARE_2)))
    assert code is INVALID
    assert set(fields(error).values()) == {"TWO_TARGETS_CHANGED"}


async def test_another_region_s_trouble_does_not_fail_it(home: House) -> None:
    home.vmmd.quick = True
    fit(home, "sub_volumes[0]")
    parent = volume_pb.ExtentDifference(region_path="read_only_parent.sub_volumes[0]", extent=3)
    report = volume_pb.VerifyReport(equal=False, members_compared=2, differences=[parent])
    home.vmmd.reports.append(report)
    answer = await home.replace(tree(home, 2, m1=SPARE))
    await home.wait_replacement(answer.replacement_id, "DONE")


async def test_its_own_region_s_trouble_does(home: House) -> None:
    home.vmmd.quick = True
    path = "read_only_parent.sub_volumes[0]"
    fit(home, path)
    differs = volume_pb.ExtentDifference(region_path=path, extent=3)
    report = volume_pb.VerifyReport(equal=False, members_compared=3, differences=[differs])
    home.vmmd.reports.append(report)
    answer = await home.replace(tree(home, 2, m7=SPARE))
    failed = await home.wait_replacement(answer.replacement_id, "FAILED")
    assert f"extent 3 of {path}" in failed.last_error


@pytest.mark.parametrize("path", ["sub_volumes[1]", "read_only_parent.read_only_parent"])
async def test_a_target_that_does_not_fit_the_region(home: House, path: str) -> None:
    """Geometry and access are those of the region the target is for, not of another one."""
    home.members[SPARE].region.read_only = path == "sub_volumes[1]"
    home.members[SPARE].region.geometry.extent_count = 64
    code, error = await refused(home.replace(tree(home, 2, **{f"m{MEMBERS[path][2]}": SPARE})))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == (
        "TARGET_READ_ONLY_MISMATCH" if path == "sub_volumes[1]" else "TARGET_GEOMETRY_MISMATCH"
    )
    assert error.metadata["field"] == f"vcr.{path}.opts.target[2]"


async def test_a_target_that_serves_another_region_of_the_same_disk(home: House) -> None:
    """Under another address: filling it would destroy a good member of the other region."""
    answer = await home.replace(tree(home, 2, m1=SPARE))
    home.vmmd.slot("block2", 0, "sub_volumes[0]").region_id = home.members[0].region.id
    await home.wait_replacement(answer.replacement_id, "REPAIR")
    await home.vmmd.finish("block2", 1)
    await home.wait_replacement(answer.replacement_id, "DONE")
    home.members[SPARE_2].region.id = home.members[0].region.id
    home.members[SPARE_2].region.geometry.extent_count = 64
    code, error = await refused(home.replace(tree(home, 2, m1=SPARE, m4=SPARE_2)))
    assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TARGET_IN_USE")
    assert home.members[0].address in error.message


async def test_a_parent_s_target_that_never_arrived_is_replaced_from_what_runs(
    home: House,
) -> None:
    home.vmmd.quick = True
    path = "read_only_parent.sub_volumes[0]"
    fit(home, path)
    refusal = StateError("not now", reason="SIBLING_IN_TROUBLE")
    home.vmmd.failures["ReplaceVcr"] = [refusal] * 11
    first = await home.replace(tree(home, 2, m7=SPARE))
    await home.wait_replacement(first.replacement_id, "FAILED")
    second = await home.replace(tree(home, 2, m7=SPARE_2))
    await home.wait_replacement(second.replacement_id, "DONE")
    sent = [request for name, request in home.vmmd.calls if name == "ReplaceVcr"][-1]
    targets = sent.original.read_only_parent.sub_volumes[0].opts.target
    assert targets[1] == home.members[7].address


async def test_a_parent_serves_several_disks(home: House) -> None:
    """Its members are nobody's own: a second disk over them, and one gone, change no role."""
    before = await roles(home)
    parents = {
        home.members[slot].address
        for path in MEMBERS if path.startswith("read_only_parent") for slot in MEMBERS[path]
    }  # fmt: skip
    assert not parents & set(before)
    other = tree(home, m0=SPARE, m1=SPARE_2)
    other["id"] = str(uuid4())
    del other["sub_volumes"][1]
    other["sub_volumes"][0]["opts"] |= {
        "id": other["id"], "target": ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]
    }  # fmt: skip
    disk = {**document_disk(), "name": "other", "slot": 1, "volume_construction_request": other}
    await home.create("second", disks=[disk])
    await home.instances.DeleteInstance(
        instance_pb.DeleteInstanceRequest(name="second"), timeout=SECONDS
    )
    after = await roles(home)
    assert {each: after[each] for each in before} == before


async def test_a_machine_made_again_has_no_region_below_its_generation(home: House) -> None:
    (machine,) = home.vmmd.machines
    await home.vmmd.lose(machine)
    await home.vmmd.until(lambda: machine in home.vmmd.machines)
    assert {each.generation for each in home.vmmd.volumes["block2"].regions} == {2}


# ----- disks that are no volume, or have no region


async def created(home: House, vcr: dict[str, Any]) -> disk_pb.Disk:
    await home.create_running(disks=[{**document_disk(), "volume_construction_request": vcr}])
    return await home.disk()


async def deleted(home: House) -> None:
    await home.instances.DeleteInstance(
        instance_pb.DeleteInstanceRequest(name="crub"), timeout=SECONDS
    )
    listed = await home.disks.ListDisks(disk_pb.ListDisksRequest(), timeout=SECONDS)
    assert list(listed.disks) == []


async def test_a_disk_that_is_a_bare_region(tmp_path: Path) -> None:
    async with house(tmp_path / "data") as home:
        disk = await created(home, home.region_json(0, 1, 2))
        assert (disk.id, disk.recorded_generation, disk.vcr.type) == (VOLUME, 1, "region")
        answer = await home.replace(home.region_json(0, 1, 3, gen=2))
        assert (answer.path, answer.replacement.region_path) == ("opts.target[2]", "")
        await home.wait_replacement(answer.replacement_id, "REPAIR")
        await home.vmmd.progress("block2", 2, 1 << 30, 8 << 30, "")
        await home.wait_replacement(answer.replacement_id, lambda r: r.bytes_done == 1 << 30)
        await home.vmmd.finish("block2", 2, "")
        await home.wait_replacement(answer.replacement_id, "DONE")
        (verified,) = [request for name, request in home.vmmd.calls if name == "VerifyVolume"]
        assert verified.HasField("region_path")
        again = await home.replace(home.region_json(0, 1, 3, gen=2))
        assert again.result == disk_pb.REPLACE_RESULT_COMPLETED_ALREADY
        _, error = await refused(home.start_scrub())
        assert error.reason == "NO_PARENT"
        assert (await roles(home))[home.members[2].address] == "RETIRED"
        await deleted(home)


SOURCES = {
    "file": {"type": "file", "id": VOLUME, "block_size": 4096, "path": "/srv/disk.img"},
    "url": {"type": "url", "id": VOLUME, "block_size": 4096, "url": "http://host/disk.img"},
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("inside", ["bare", "sub-volume", "parent alone"])
async def test_a_disk_without_any_region(tmp_path: Path, kind: str, inside: str) -> None:
    source = copy.deepcopy(SOURCES[kind])
    vcr = {
        "bare": source,
        "sub-volume": volume_json({**source, "id": PARENT}),
        "parent alone": volume_json(read_only_parent={**source, "id": PARENT}),
    }[inside]
    async with house(tmp_path / "data", downstairs=0) as home:
        disk = await created(home, vcr)
        assert (disk.id, disk.recorded_generation) == (VOLUME, 0)
        for _ in range(2):
            (machine,) = home.vmmd.machines
            await home.vmmd.lose(machine)
            await home.vmmd.until(lambda: bool(home.vmmd.machines))
        code, error = await refused(home.replace(vcr))
        assert code is INVALID
        assert set(fields(error).values()) <= {"NOT_COMPARABLE", "NO_DIFFERENCE"}
        code, error = await refused(home.start_scrub())
        assert error.reason == ("NOTHING_TO_COPY_INTO" if inside == "parent alone" else "NO_PARENT")
        await deleted(home)
