"""Replacements by what is wanted: which slot, which spare, and every way it is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from stairwell.controlplane.v1 import fleet_service_pb2 as fleet_pb
from tests.contract.controlplane_house import House, fields, house, refused, running
from tests.contract.controlplane_peers import ScriptedDownstairs, serving_downstairs
from tests.contract.fleet_house import listed, register, settle, start

HOSTS = {0: "h0", 1: "h1", 2: "h2", 3: "h3", 4: "h4"}


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "data", downstairs=6) as found:
        await found.create_running()
        yield found


def reasons(placement: object) -> dict[str, str]:
    return {each.address: each.reason for each in placement.rejections}  # type: ignore[attr-defined]


async def test_a_slot_and_a_spare_is_all_it_takes(home: House) -> None:
    await settle(home, {0: "h0", 1: "h1", 2: "h2", 3: "h1", 4: "h4"})
    answer = await start(home, slot=2)
    assert (answer.old_target, answer.new_target) == tuple(home.targets(2, 4))
    assert (answer.region_path, answer.slot, answer.to_generation) == ("sub_volumes[0]", 2, 2)
    assert reasons(answer.placement)[home.members[3].address] == "SAME_HOST"
    record = await home.wait_replacement(answer.replacement.id, "REPAIR")
    assert record.asked_by == "operator"
    assert record.placement == answer.placement
    disk = await home.disk()
    assert disk.recorded_generation == 2
    assert list(disk.vcr.sub_volumes[0].opts.target) == home.targets(0, 1, 4)
    await home.vmmd.finish("block2", 2)
    record = await home.wait_replacement(record.id, "DONE")
    assert record.placement == answer.placement, "kept with the replacement"


async def test_by_the_old_address_and_to_a_named_one(home: House) -> None:
    answer = await start(home, old_target=home.members[1].address,
                         new_target=home.members[3].address)  # fmt: skip
    assert (answer.slot, answer.new_target) == (1, home.members[3].address)
    assert answer.placement.named
    assert "host 127.0.0.1 has a member" in answer.placement.warnings[0]
    again = await start(home, old_target=home.members[1].address,
                        new_target=home.members[3].address)  # fmt: skip
    assert again.already
    assert again.replacement.id == answer.replacement.id
    assert (again.old_target, again.slot) == (home.members[1].address, 1)


async def test_none_fits_and_each_is_told_why(home: House) -> None:
    await settle(home, {**HOSTS, 5: "h5"})
    other = "ffffffff-3d6e-4d90-b2cb-56f1a1a42a89"
    home.members[3].region.owner_id = other
    home.members[4].region.geometry.extent_count = 7
    home.members[5].region.faulted_extents = 3
    before = home.state()
    code, error = await refused(start(home, slot=0))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == "NO_SPARE"
    for number, word in ((3, other), (4, "7 extents"), (5, "3 extents of its region are damaged")):
        assert home.members[number].address in error.message
        assert word in error.message
    assert error.metadata[f"rejected[{home.members[3].address}]"] == "TOUCHED"
    assert home.state() == before


async def test_an_unregistered_fleet_says_what_to_do(home: House) -> None:
    _code, error = await refused(start(home, slot=0))
    assert "there is no spare" in error.message
    assert "stairwell fleet register" in error.message


async def test_two_operators_get_one_replacement_and_one_clear_answer(home: House) -> None:
    await settle(home, HOSTS)
    answers = await asyncio.gather(start(home, slot=2), start(home, slot=2), return_exceptions=True)
    started = [each for each in answers if not isinstance(each, BaseException)]
    assert len(started) == 1, answers
    code, error = await refused(start(home, slot=1))
    assert code is grpc.StatusCode.ABORTED
    assert error.reason == "REPLACEMENT_RUNNING"
    assert error.metadata["replacement"] == started[0].replacement.id
    assert started[0].replacement.id in error.message


async def test_judging_changes_nothing(home: House) -> None:
    await settle(home, HOSTS)
    home.members[3].region.free_bytes = 1 << 50
    before = home.state()
    answer = await start(home, slot=2, validate_only=True)
    assert answer.new_target == home.members[3].address
    assert not answer.HasField("replacement")
    assert home.state() == before


async def test_a_request_id_is_answered_once_and_after_a_restart(tmp_path: Path) -> None:
    async with house(tmp_path / "data") as first:
        await first.create_running()
        await settle(first, HOSTS)
        answer = await start(first, slot=2, request_id="r-1")
        assert await start(first, slot=2, request_id="r-1") == answer
        script, members = first.vmmd, first.members
        await first.control.__aexit__(None, None, None)
        async with running(tmp_path / "data", script, members) as second:
            assert await start(second, slot=2, request_id="r-1") == answer
            record = await second.replacement(answer.replacement.id)
            assert record.placement == answer.placement
            _code, error = await refused(start(second, slot=1, request_id="r-1"))
            assert error.reason == "REQUEST_ID_REUSED"


async def test_a_spare_that_is_taken_meanwhile_gives_way_to_the_next(home: House) -> None:
    await settle(home, HOSTS)
    best = home.members[3]
    best.region.free_bytes = 1 << 50
    before = best.asked

    def taken() -> None:
        # Free when it was chosen, taken when it is asked once more.
        if best.asked > before + 1:
            best.region.active_session_id = "ffffffff-3d6e-4d90-b2cb-56f1a1a42a89"

    best.on_asked = taken
    answer = await start(home, slot=2)
    assert answer.new_target == home.members[4].address
    assert reasons(answer.placement)[best.address] == "TARGET_IN_USE"


async def test_which_member_is_meant_has_to_be_clear(home: House) -> None:
    for wish, field in (
        ({}, "slot"),
        ({"slot": 3}, "slot"),
        ({"old_target": "10.0.0.1:8810"}, "old_target"),
        ({"slot": 0, "old_target": home.members[1].address}, "old_target"),
        ({"slot": 0, "region_path": "sub_volumes[9]"}, "region_path"),
        ({"slot": 0, "new_target": "nowhere"}, "new_target"),
        ({"slot": 0, "new_target": home.members[0].address}, "new_target"),
    ):
        code, error = await refused(start(home, **wish))
        assert code is grpc.StatusCode.INVALID_ARGUMENT, wish
        assert field in fields(error), (wish, error)
    code, error = await refused(start(home, "", slot=0))
    assert fields(error) == {"disk": "REQUIRED"}
    code, error = await refused(start(home, "nope", slot=0))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_a_named_target_that_is_away_is_refused_as_by_vcr(home: House) -> None:
    code, error = await refused(start(home, slot=0, new_target="127.0.0.1:1"))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert error.reason == "TARGET_UNREACHABLE"


async def test_the_fleet_tells_place_health_and_use(home: House) -> None:
    home.members[3].region.stored_bytes = 5
    home.members[3].region.free_bytes = 1 << 40
    await register(home, 3, host="h3", failure_domain="rack-7", reserved_for="block2")
    one = (await listed(home))[home.members[3].address]
    assert (one.host, one.failure_domain, one.stored_bytes) == ("h3", "rack-7", 5)
    assert one.free_bytes == 1 << 40
    assert one.reserved_volume_id == (await home.disk()).id
    assert one.health == fleet_pb.DOWNSTAIRS_HEALTH_ANSWERS
    await register(home, 3, failure_domain="rack-8")
    home.members[3].region.id = "ffffffff-3d6e-4d90-b2cb-56f1a1a42a89"
    found = await listed(home, look=True)
    one = found[home.members[3].address]
    assert (one.host, one.failure_domain) == ("h3", "rack-8"), "what was not given stays"
    assert one.health == fleet_pb.DOWNSTAIRS_HEALTH_WRONG
    assert "register it again" in one.trouble
    assert list(found[home.members[0].address].disks) == ["block2"]


async def test_one_that_is_away_is_told_with_when_it_was_last_seen(tmp_path: Path) -> None:
    async with house(tmp_path / "data", downstairs=0) as home:
        async with serving_downstairs(ScriptedDownstairs()) as gone:
            home.members.append(gone)
            before = await register(home, 0, host="h0")
        found = (await listed(home, look=True))[gone.address]
        assert found.health == fleet_pb.DOWNSTAIRS_HEALTH_AWAY
        assert found.seen_time == before.seen_time
        assert found.look_time.ToNanoseconds() > before.look_time.ToNanoseconds()
        assert "cannot reach" in found.trouble
        stored = (await listed(home))[gone.address]
        assert (stored.seen_time, stored.trouble) == (found.seen_time, found.trouble)
        moved = await register(home, 0, host="h9")
        assert moved.host == "h9", "where a known one stands can be told while it is away"
        code, _error = await refused(register(home, 0))
        assert code is grpc.StatusCode.UNAVAILABLE


async def test_one_that_is_in_use_cannot_be_deregistered(home: House) -> None:
    await settle(home, HOSTS)

    async def forget(number: int) -> object:
        request = fleet_pb.DeregisterDownstairsRequest(address=home.members[number].address)
        return await home.fleet.DeregisterDownstairs(request)

    code, error = await refused(forget(0))
    assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "DOWNSTAIRS_IN_USE")
    assert "'block2'" in error.message
    answer = await start(home, slot=2, new_target=home.members[3].address)
    _code, error = await refused(forget(2))
    assert error.metadata["replacement"] == answer.replacement.id, "it still serves"
    await forget(4)
    assert home.members[4].address not in await listed(home)
    code, _error = await refused(forget(4))
    assert code is grpc.StatusCode.NOT_FOUND
