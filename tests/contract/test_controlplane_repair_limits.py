"""Limits of repairs: set, told, shown, kept over restarts, and the fleet's rate divided."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest

from controlplane.core.repair_shares import RepairWish, WishChange
from controlplane.peers.vmmd import Vmmd
from controlplane.repair_limiter import RepairLimiter
from controlplane.store.place import Place
from controlplane.store.sql_store import SqlStore
from stairlib.model.errors import UnavailableError
from stairlib.telemetry.tracing import Tracing
from stairwell.controlplane.v1 import fleet_service_pb2 as fleet_pb
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.contract.controlplane_house import SECONDS, House, fields, house, refused, running

MIB = 1 << 20
OTHER = "77777777-3d6e-4d90-b2cb-56f1a1a42a89"


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "data", downstairs=9) as found:
        await found.create_running()
        yield found


async def set_limits(home: House, **more: Any) -> pb.SetRepairLimitsResponse:
    return await home.replacements.SetRepairLimits(
        pb.SetRepairLimitsRequest(**more), timeout=SECONDS
    )


async def set_fleet_rate(home: House, rate: int) -> None:
    request = fleet_pb.SetFleetPolicyRequest(repair_bytes_per_second=rate)
    await home.fleet.SetFleetPolicy(request, timeout=SECONDS)


async def told(
    home: House, wanted: Callable[[volume_pb.RepairLimits], bool], disk: str = "block2"
) -> volume_pb.RepairLimits:
    """Waits until the machine was told what is wanted for the disk."""
    known = home.vmmd.limits_of
    await home.vmmd.until(lambda: disk in known and wanted(known[disk]))
    return known[disk]


async def repairing(home: House) -> str:
    answer = await home.replace(home.vcr())
    await home.wait_replacement(answer.replacement_id, "REPAIR")
    return answer.replacement_id


async def get(home: House, name: str) -> pb.Replacement:
    answer = await home.replacements.GetReplacement(
        pb.GetReplacementRequest(id=name), timeout=SECONDS
    )
    return answer.replacement


async def test_limits_of_a_running_replacement_are_told_at_once_and_shown(home: House) -> None:
    name = await repairing(home)
    answer = await set_limits(
        home, id=name, bytes_per_second_max=50 * MIB, extents_in_flight_max=2, adaptive=False
    )
    assert answer.told
    assert answer.replacement.id == name
    assert answer.replacement.repair_bytes_per_second_max == 50 * MIB
    known = home.vmmd.limits_of["block2"]
    assert (known.bytes_per_second_max, known.extents_in_flight_max) == (50 * MIB, 2)
    assert known.HasField("adaptive")
    assert not known.adaptive
    # What is left out stays.
    answer = await set_limits(home, disk="block2", bytes_per_second_max=7 * MIB)
    assert (answer.limits.bytes_per_second_max, answer.limits.extents_in_flight_max) == (7 * MIB, 2)
    assert home.vmmd.limits_of["block2"] == answer.limits
    # The machine's word for what is in force is shown.
    info = home.vmmd.volumes["block2"]
    info.repair_rate.bytes_per_second_max = 3 * MIB
    info.repair_rate.reason = volume_pb.REPAIR_RATE_REASON_FLOOR
    await home.vmmd.progress("block2", 2, MIB, 8 << 30)
    shown = await home.wait_replacement(name, lambda one: one.bytes_done > 0)
    assert shown.repair_rate.reason == volume_pb.REPAIR_RATE_REASON_FLOOR
    assert shown.repair_rate.bytes_per_second_max == 3 * MIB


async def test_limits_before_a_replacement_are_told_before_it_is_applied(home: House) -> None:
    await set_limits(home, disk="block2", bytes_per_second_max=9)
    before = len(home.vmmd.limits)
    await repairing(home)
    methods = [name for name, _ in home.vmmd.calls]
    assert methods.index("ReplaceVcr") > methods.index("SetRepairLimits")
    assert len(home.vmmd.limits) > before
    assert {each.bytes_per_second_max for each in home.vmmd.limits} == {9}


async def test_limits_are_kept_while_the_machine_is_away_and_told_when_it_is_back(
    home: House,
) -> None:
    home.vmmd.failures["SetRepairLimits"] = [UnavailableError("away")]
    answer = await set_limits(home, disk="block2", bytes_per_second_max=9)
    assert not answer.told
    assert "block2" not in home.vmmd.limits_of
    # As after a restart of vmmd: it knows no machine, and is given a new one.
    (machine,) = home.vmmd.machines
    await home.vmmd.lose(machine)
    assert (await told(home, lambda known: True)).bytes_per_second_max == 9


async def test_a_machine_that_is_made_again_is_told_its_limits_before_it_runs(home: House) -> None:
    """It copies from its first moment on, to members that it finds behind."""
    await home.instances.SetInstanceState(
        instance_pb.SetInstanceStateRequest(name="crub", state=instance_pb.REQUESTED_STATE_RUN),
        timeout=SECONDS,
    )
    await set_limits(home, disk="block2", bytes_per_second_max=9)
    (machine,) = home.vmmd.machines
    home.vmmd.calls.clear()
    await home.vmmd.lose(machine)
    await home.vmmd.until(lambda: home.vmmd.count("SetMachineState") == 1)
    named = [name for name, _ in home.vmmd.calls]
    made = named[named.index("EnsureMachine") : named.index("SetMachineState")]
    assert "SetRepairLimits" in made


class HeldStore(SqlStore):
    """One whose next read of what is wanted is answered late, once `hold` was called."""

    held = False

    def hold(self) -> None:
        self.held, self.read, self.answer = True, asyncio.Event(), asyncio.Event()

    async def repair_wishes(self) -> dict[UUID, RepairWish]:
        found = await super().repair_wishes()
        if self.held:
            self.held = False
            self.read.set()
            await self.answer.wait()
        return found


@pytest.fixture
async def apart(home: House) -> AsyncIterator[tuple[HeldStore, Vmmd]]:
    """The home's store and vmmd, without its control plane."""
    await home.control.__aexit__(None, None, None)
    store = await HeldStore.open(Place(home.data))
    vmmd = Vmmd(home.vmmd.address, Tracing("controlplane", "test"))
    yield store, vmmd
    await vmmd.close()
    await store.close()


# So long that nobody looks at the store by himself in a test.
NEVER = 10_000.0


async def test_what_another_control_plane_was_asked_is_told_by_who_makes_the_machine(
    home: House, apart: tuple[HeldStore, Vmmd]
) -> None:
    store, vmmd = apart
    disk = await store.disk("block2")
    async with RepairLimiter(store, vmmd, pace=NEVER) as makes:
        asked = RepairLimiter(store, vmmd)
        home.vmmd.failures["SetRepairLimits"] = [UnavailableError("away")]
        assert await asked.change(disk, WishChange(bytes_per_second_max=9)) == (
            RepairWish(bytes_per_second_max=9), False,
        )  # fmt: skip
        await makes.machine_seen(disk.instance_id)
    assert home.vmmd.limits_of["block2"].bytes_per_second_max == 9


async def test_a_change_is_not_undone_by_what_was_read_before_it(
    home: House, apart: tuple[HeldStore, Vmmd]
) -> None:
    store, vmmd = apart
    disk = await store.disk("block2")
    async with RepairLimiter(store, vmmd, pace=NEVER) as limiter:
        await limiter.change(disk, WishChange(bytes_per_second_max=9))
        store.hold()
        limiter.poke()
        await store.read.wait()
        changed = asyncio.create_task(limiter.change(disk, WishChange(bytes_per_second_max=8)))
        # Time for what must not be: that it is changed while what was read is on its way.
        await asyncio.wait({changed}, timeout=0.2)
        store.answer.set()
        await changed
        await limiter.machine_seen(disk.instance_id)
        assert limiter.wish_of(disk.volume_id).bytes_per_second_max == 8
    assert home.vmmd.limits_of["block2"].bytes_per_second_max == 8


async def test_a_restart_of_the_control_plane_keeps_limits_and_shares(tmp_path: Path) -> None:
    async with house(tmp_path / "data") as home:
        await home.create_running()
        name = await repairing(home)
        await set_limits(home, disk="block2", bytes_per_second_max=50 * MIB, adaptive=False)
        await set_fleet_rate(home, 20 * MIB)
        await told(home, lambda known: known.fleet_share == 20 * MIB)
        await home.control.__aexit__(None, None, None)
        home.vmmd.limits_of.clear()
        async with running(home.data, home.vmmd, home.members) as later:
            known = await told(later, lambda known: known.fleet_share == 20 * MIB)
            assert (known.bytes_per_second_max, known.adaptive) == (50 * MIB, False)
            shown = (await get(later, name)).repair_rate.limits
            assert (shown.bytes_per_second_max, shown.fleet_share) == (50 * MIB, 20 * MIB)


async def test_the_fleets_rate_is_divided_as_repairs_come_and_go(home: House) -> None:
    await set_fleet_rate(home, 100 * MIB)
    first = await repairing(home)
    await told(home, lambda known: known.fleet_share == 100 * MIB)
    disk = home.disk_json(slots=(4, 5, 6))
    disk["name"] = "block3"
    vcr = disk["volume_construction_request"]
    vcr["id"] = vcr["sub_volumes"][0]["opts"]["id"] = OTHER
    instance = await home.create(name="other", disks=[disk])
    await home.vmmd.set_machine(instance.id, "RUNNING")
    await home.vmmd.set_volume("block3", "ACTIVE")
    await home.wait_instance("RUNNING", "other")
    vcr["sub_volumes"][0]["opts"]["target"] = home.targets(4, 5, 7)
    vcr["sub_volumes"][0]["gen"] = 2
    second = await home.replace(vcr, name="block3")
    await home.wait_replacement(second.replacement_id, "REPAIR")
    one = await told(home, lambda known: 0 < known.fleet_share < 100 * MIB)
    other = await told(home, lambda known: 0 < known.fleet_share < 100 * MIB, "block3")
    assert one.fleet_share + other.fleet_share <= 100 * MIB
    # What one may not use, the other gets.
    await set_limits(home, disk="block3", bytes_per_second_max=10 * MIB)
    await told(home, lambda known: known.fleet_share == 90 * MIB)
    await home.vmmd.finish("block3", 2)
    await home.wait_replacement(second.replacement_id, "DONE")
    await told(home, lambda known: known.fleet_share == 100 * MIB)
    await set_fleet_rate(home, 0)
    await told(home, lambda known: known.fleet_share == 0)
    assert (await get(home, first)).state == pb.REPLACEMENT_STATE_REPAIR


@pytest.mark.parametrize(
    ("request_fields", "code", "wrong"),
    [
        ({}, grpc.StatusCode.INVALID_ARGUMENT, {"id": "ONE_OF"}),
        (
            {"id": str(UUID(int=5)), "disk": "block2"},
            grpc.StatusCode.INVALID_ARGUMENT,
            {"id": "ONE_OF"},
        ),
        ({"id": str(UUID(int=5))}, grpc.StatusCode.NOT_FOUND, {}),
        ({"disk": "nothere"}, grpc.StatusCode.NOT_FOUND, {}),
        (
            {"disk": "block2", "extents_in_flight_max": 17},
            grpc.StatusCode.INVALID_ARGUMENT,
            {"extents_in_flight_max": "TOO_LARGE"},
        ),
        (
            {"disk": "block2", "bytes_per_second_max": 1, "bytes_per_second_min": 2},
            grpc.StatusCode.INVALID_ARGUMENT,
            {"bytes_per_second_min": "ABOVE_LIMIT"},
        ),
    ],
)  # fmt: skip
async def test_what_is_refused(
    home: House, request_fields: dict[str, Any], code: grpc.StatusCode, wrong: dict[str, str]
) -> None:
    found, error = await refused(set_limits(home, **request_fields))
    assert found == code
    assert fields(error) == wrong
    assert not home.vmmd.limits


async def test_an_ended_replacement_is_refused_and_says_what_to_name(home: House) -> None:
    name = await repairing(home)
    await home.vmmd.finish("block2", 2)
    await home.wait_replacement(name, "DONE")
    code, error = await refused(set_limits(home, id=name, bytes_per_second_max=5))
    assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REPLACEMENT_ENDED")
    assert "'block2'" in error.message
    assert not (await get(home, name)).HasField("repair_rate")
