"""Every bad input of a replacement: the code, the reason, the field, and that nothing changed."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as pb
from tests.contract.controlplane_house import SECONDS, VOLUME, House, fields, house, refused

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
REGION = "vcr.sub_volumes[0]"
TARGET = f"{REGION}.opts.target[2]"


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "data") as found:
        await found.create_running()
        yield found


async def check_unchanged(home: House, call: Any) -> tuple[grpc.StatusCode, Any]:
    """The refusal of the call, which must leave the store and the machine alone."""
    before = home.state()
    found = await refused(call)
    assert home.state() == before
    assert home.vmmd.count("ReplaceVcr") == 0
    return found


def region(vcr: dict[str, Any]) -> dict[str, Any]:
    return vcr["sub_volumes"][0]


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "generation zero": ({"gen": 0}, f"{REGION}.gen"),
    "another block size": ({"block_size": 512}, f"{REGION}.block_size"),
    "another extent size": ({"blocks_per_extent": 8192}, f"{REGION}.blocks_per_extent"),
    "another extent count": ({"extent_count": 64}, f"{REGION}.extent_count"),
    "another upstairs id": ({"opts": {"id": str(uuid4())}}, f"{REGION}.opts.id"),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_that_is_not_allowed(home: House, name: str) -> None:
    change, field = copy.deepcopy(CHANGES[name])
    vcr = home.vcr()
    options = {**region(vcr)["opts"], **change.pop("opts", {})}
    region(vcr).update(change, opts=options)
    code, error = await check_unchanged(home, home.replace(vcr))
    assert code is INVALID
    assert field in fields(error)
    assert field in error.message


async def test_a_generation_that_was_lowered(home: House) -> None:
    await home.replace(home.vcr(slots=(0, 1, 2), gen=5))
    code, error = await check_unchanged(home, home.replace(home.vcr(gen=4)))
    assert code is INVALID
    assert set(fields(error)) == {f"{REGION}.gen"}


async def test_two_targets_changed(home: House) -> None:
    code, error = await check_unchanged(home, home.replace(home.vcr(slots=(0, 4, 3))))
    assert code is INVALID
    assert {f"{REGION}.opts.target[1]", TARGET} <= set(fields(error))


async def test_a_new_target_that_is_a_sibling(home: House) -> None:
    code, error = await check_unchanged(home, home.replace(home.vcr(slots=(0, 1, 0))))
    assert code is INVALID
    assert any(path.startswith(f"{REGION}.opts.target[") for path in fields(error))


async def test_no_difference(home: House) -> None:
    same = home.vcr(slots=(0, 1, 2), gen=1)
    code, error = await check_unchanged(home, home.replace(same))
    assert code is INVALID
    assert error.reason == "NO_DIFFERENCE"
    assert fields(error) == {"vcr": "NO_DIFFERENCE"}


async def test_a_target_that_is_not_there(home: House) -> None:
    vcr = home.vcr()
    region(vcr)["opts"]["target"][2] = "127.0.0.1:1"
    code, error = await check_unchanged(home, home.replace(vcr))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert error.reason == "TARGET_UNREACHABLE"
    assert error.metadata["target"] == "127.0.0.1:1"
    assert error.metadata["field"] == TARGET
    assert "127.0.0.1:1" in error.message


async def test_a_target_that_is_something_else(home: House) -> None:
    vcr = home.vcr()
    region(vcr)["opts"]["target"][2] = home.vmmd.address
    code, error = await check_unchanged(home, home.replace(vcr))
    assert code is PRECONDITION
    assert error.reason == "NOT_A_DOWNSTAIRS"


async def test_a_target_of_another_geometry(home: House) -> None:
    home.members[3].region.geometry.extent_count = 64
    code, error = await check_unchanged(home, home.replace(home.vcr()))
    assert code is PRECONDITION
    assert error.reason == "TARGET_GEOMETRY_MISMATCH"
    assert "64 extents" in error.metadata["target_geometry"]
    assert "128 extents" in error.metadata["volume_geometry"]
    assert error.metadata["field"] == TARGET


async def test_an_encrypted_target(home: House) -> None:
    home.members[3].region.encrypted = True
    code, error = await check_unchanged(home, home.replace(home.vcr()))
    assert (code, error.reason) == (PRECONDITION, "TARGET_ENCRYPTION_MISMATCH")


async def test_a_target_that_is_encrypted_otherwise(tmp_path: Path) -> None:
    key = base64.b64encode(bytes(range(32))).decode()
    async with house(tmp_path / "data") as home:
        for member in home.members:
            member.region.encrypted, member.region.cipher = True, "aes-256-gcm"
        home.members[3].region.cipher = "aes-256-gcm-siv"
        disk = home.disk_json()
        region(disk["volume_construction_request"])["opts"]["key"] = key
        await home.create_running(disks=[disk])
        vcr = home.vcr()
        region(vcr)["opts"]["key"] = key
        code, error = await check_unchanged(home, home.replace(vcr))
        assert (code, error.reason) == (PRECONDITION, "TARGET_CIPHER_MISMATCH")
        assert error.metadata["target_cipher"] == "aes-256-gcm-siv"
        assert "--cipher aes-256-gcm" in error.message
        assert key not in str(error)
        home.members[3].region.cipher = "aes-256-gcm"
        await home.replace(vcr)


async def test_a_target_that_was_ours_under_another_key(tmp_path: Path) -> None:
    key = base64.b64encode(bytes(range(32))).decode()
    async with house(tmp_path / "data") as home:
        disk = home.disk_json()
        region(disk["volume_construction_request"])["opts"]["key"] = key
        for member in home.members:
            member.region.encrypted, member.region.cipher = True, "aes-256-gcm"
        await home.create_running(disks=[disk])
        owner = region(disk["volume_construction_request"])["opts"]["id"]
        for member in home.members:
            member.region.owner_id, member.region.key_check = owner, bytes(range(16))
        home.members[3].region.key_check = bytes(range(1, 17))
        vcr = home.vcr()
        region(vcr)["opts"]["key"] = key
        code, error = await check_unchanged(home, home.replace(vcr))
        assert (code, error.reason) == (PRECONDITION, "TARGET_KEY_MISMATCH")
        assert "create it anew" in error.message
        assert error.metadata["sibling"] in {member.address for member in home.members[:3]}
        home.members[3].region.key_check = bytes(range(16))
        await home.replace(vcr)


async def test_a_read_only_target(home: House) -> None:
    home.members[3].region.read_only = True
    code, error = await check_unchanged(home, home.replace(home.vcr()))
    assert (code, error.reason) == (PRECONDITION, "TARGET_READ_ONLY_MISMATCH")


async def test_a_target_that_serves_a_sibling_s_region(home: House) -> None:
    home.members[3].region.id = home.members[0].region.id
    code, error = await check_unchanged(home, home.replace(home.vcr()))
    assert (code, error.reason) == (PRECONDITION, "TARGET_IN_USE")
    assert home.members[0].address in error.message


async def test_a_target_owned_by_another_volume(home: House) -> None:
    home.members[3].region.owner_id = owner = str(uuid4())
    code, error = await check_unchanged(home, home.replace(home.vcr()))
    assert (code, error.reason) == (PRECONDITION, "TARGET_IN_USE")
    assert owner in error.message


async def test_a_target_with_a_session(home: House) -> None:
    home.members[3].region.owner_id = VOLUME
    home.members[3].region.active_session_id = str(uuid4())
    code, error = await check_unchanged(home, home.replace(home.vcr()))
    assert (code, error.reason) == (PRECONDITION, "TARGET_IN_USE")


async def test_a_target_this_volume_owned_before_is_welcome_back(home: House) -> None:
    home.members[3].region.owner_id = VOLUME
    answer = await home.replace(home.vcr())
    assert answer.result == disk_pb.REPLACE_RESULT_STARTED


async def test_a_target_that_is_a_member_of_another_disk(tmp_path: Path) -> None:
    async with house(tmp_path / "data", downstairs=6) as home:
        await home.create_running()
        other = home.disk_json(slots=(3, 4, 5))
        other["name"], other["slot"] = "other", 1
        spec = other["volume_construction_request"]
        spec["id"] = spec["sub_volumes"][0]["opts"]["id"] = str(uuid4())
        await home.create("second", disks=[other])
        code, error = await check_unchanged(home, home.replace(home.vcr()))
        assert (code, error.reason) == (PRECONDITION, "TARGET_IN_USE")
        assert "'other'" in error.message


async def test_another_replacement_while_one_runs(home: House) -> None:
    first = await home.replace(home.vcr())
    before = home.state()[:4]
    for slots in ((0, 1, 4), (0, 4, 2), (0, 4, 3)):
        code, error = await refused(home.replace(home.vcr(slots=slots, gen=3)))
        assert code is grpc.StatusCode.ABORTED
        assert error.reason == "REPLACEMENT_RUNNING"
        assert error.metadata["replacement"] == first.replacement_id
        assert first.replacement_id in error.message
    code, error = await refused(home.replace(home.vcr(gen=0)))
    assert code is INVALID, "a request that was never possible is wrong, not early"
    assert home.state()[:4] == before


@pytest.mark.parametrize(
    ("asked", "code", "reason"),
    [
        ({"name": "nothing"}, grpc.StatusCode.NOT_FOUND, "DISK_NOT_FOUND"),
        ({"name": "block2", "id": str(uuid4())}, grpc.StatusCode.NOT_FOUND, "DISK_NOT_FOUND"),
        ({"name": ""}, INVALID, "UNCLEAR_DISK"),
        ({"name": "block2", "instance": "other"}, INVALID, "UNCLEAR_DISK"),
    ],
)
async def test_which_disk(
    home: House, asked: dict[str, str], code: grpc.StatusCode, reason: str
) -> None:
    found, error = await check_unchanged(home, home.replace(home.vcr(), **asked))
    assert (found, error.reason) == (code, reason)


async def test_a_name_and_an_id_of_two_disks(tmp_path: Path) -> None:
    async with house(tmp_path / "data", downstairs=6) as home:
        await home.create_running()
        other = home.disk_json(slots=(3, 4, 5))
        other["name"], other["slot"] = "other", 1
        spec = other["volume_construction_request"]
        spec["id"] = spec["sub_volumes"][0]["opts"]["id"] = str(uuid4())
        await home.create("second", disks=[other])
        call = home.replace(home.vcr(), name="other", id=VOLUME)
        code, error = await check_unchanged(home, call)
        assert (code, fields(error)) == (INVALID, {"id": "UNCLEAR_DISK"})


async def test_json_that_does_not_parse(home: House) -> None:
    code, error = await check_unchanged(home, home.replace(vcrJson='{"type": "volume",\n  x'))
    assert code is INVALID
    assert fields(error) == {"vcr_json": "INVALID_JSON"}
    assert "line 2 column 3" in error.message


async def test_json_of_a_wrong_shape(home: House) -> None:
    vcr = copy.deepcopy(home.vcr())
    region(vcr)["opts"]["targets"] = region(vcr)["opts"].pop("target")
    code, error = await check_unchanged(home, home.replace(vcrJson=json.dumps(vcr)))
    assert code is INVALID
    assert any(path.startswith("vcr_json.sub_volumes[0].opts") for path in fields(error))


@pytest.mark.parametrize("both", [True, False])
async def test_one_form_of_the_request(home: House, both: bool) -> None:
    vcr = home.vcr() if both else None
    extra = {"vcrJson": json.dumps(home.vcr())} if both else {}
    code, error = await check_unchanged(home, home.replace(vcr, **extra))
    assert (code, fields(error)) == (INVALID, {"vcr": "ONE_OF_REQUIRED"})


async def test_a_target_that_is_no_address(home: House) -> None:
    vcr = home.vcr()
    region(vcr)["opts"]["target"][2] = "127.0.0.1"
    code, error = await check_unchanged(home, home.replace(vcr))
    assert code is INVALID
    assert TARGET in fields(error)


async def test_an_instance_that_has_ended(home: House) -> None:
    instance = next(iter(home.vmmd.machines))
    await home.vmmd.set_machine(instance, "DESTROYED")
    await home.wait_instance("DESTROYED")
    code, error = await check_unchanged(home, home.replace(home.vcr()))
    assert (code, error.reason) == (PRECONDITION, "INSTANCE_ENDED")


async def test_a_request_id_used_for_something_else(home: House) -> None:
    await home.replace(home.vcr(), requestId="r-1", validateOnly=True)
    code, error = await check_unchanged(home, home.replace(home.vcr(gen=5), requestId="r-1"))
    assert (code, error.reason) == (INVALID, "REQUEST_ID_REUSED")


async def test_replacements_that_are_not_there_or_have_not_failed(home: House) -> None:
    for text, code in (("x", INVALID), (str(uuid4()), grpc.StatusCode.NOT_FOUND)):
        for call in (
            home.replacements.GetReplacement(pb.GetReplacementRequest(id=text), timeout=SECONDS),
            home.replacements.RetryReplacement(
                pb.RetryReplacementRequest(id=text), timeout=SECONDS
            ),
            home.replacements.GetReplacementTrace(
                pb.GetReplacementTraceRequest(id=text), timeout=SECONDS
            ),
            home.replacements.SetRepairLimits(pb.SetRepairLimitsRequest(id=text), timeout=SECONDS),
        ):
            found, _ = await refused(call)
            assert found is code
    answer = await home.replace(home.vcr())
    found, error = await refused(
        home.replacements.RetryReplacement(
            pb.RetryReplacementRequest(id=answer.replacement_id), timeout=SECONDS
        )
    )
    assert (found, error.reason) == (PRECONDITION, "REPLACEMENT_NOT_FAILED")
