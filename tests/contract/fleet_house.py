"""A control plane with a fleet that stands on several hosts, and what tests ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

from google.protobuf.duration_pb2 import Duration

from stairwell.controlplane.v1 import fleet_service_pb2 as pb
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.contract.controlplane_house import SECONDS, House

SECOND_VOLUME = str(UUID(int=77))


async def register(home: House, number: int, **fields: Any) -> pb.Downstairs:
    request = pb.RegisterDownstairsRequest(address=home.members[number].address, **fields)
    return (await home.fleet.RegisterDownstairs(request, timeout=SECONDS)).downstairs


async def settle(home: House, hosts: dict[int, str]) -> None:
    """Registers members and spares, each on its host."""
    for number, host in hosts.items():
        await register(home, number, host=host)


async def start(home: House, disk: str = "block2", **fields: Any) -> Any:
    request = replacement_pb.StartReplacementRequest(disk=disk, **fields)
    return await home.replacements.StartReplacement(request, timeout=SECONDS)


async def listed(home: House, *, look: bool = False) -> dict[str, pb.Downstairs]:
    request = pb.ListDownstairsRequest(look=look)
    answer = await home.fleet.ListDownstairs(request, timeout=SECONDS)
    return {each.address: each for each in answer.downstairs}


async def policy(home: House, *, grace: float | None = None, **fields: Any) -> pb.FleetPolicy:
    request = pb.SetFleetPolicyRequest(**fields)
    if grace is not None:
        request.grace.CopyFrom(Duration(seconds=int(grace), nanos=int(grace % 1 * 1e9)))
    return (await home.fleet.SetFleetPolicy(request, timeout=SECONDS)).policy


async def faulted(
    home: House, wanted: Callable[[list[pb.FaultedMember]], object]
) -> list[pb.FaultedMember]:
    """The faulted members once they are as wanted."""
    async with asyncio.timeout(SECONDS):
        while True:
            answer = await home.fleet.GetFleetPolicy(pb.GetFleetPolicyRequest(), timeout=SECONDS)
            if wanted(list(answer.faulted)):
                return list(answer.faulted)
            await asyncio.sleep(0.02)


async def running(home: House, number: int) -> list[replacement_pb.Replacement]:
    """The replacements once there are so many."""
    async with asyncio.timeout(SECONDS):
        while True:
            answer = await home.replacements.ListReplacements(
                replacement_pb.ListReplacementsRequest(), timeout=SECONDS
            )
            if len(answer.replacements) >= number:
                return list(answer.replacements)
            await asyncio.sleep(0.02)


async def lose(home: House, number: int, disk: str = "block2") -> None:
    """As when the machine's connection to a member ended."""
    slot = home.vmmd.slot(disk, number)
    slot.state = volume_pb.SLOT_STATE_WAIT_CONNECT
    slot.last_error = "connection refused"
    await home.vmmd.tell()


async def drain(home: House, target: str, **fields: Any) -> pb.Drain:
    request = pb.DrainDownstairsRequest(target=target, **fields)
    return (await home.fleet.DrainDownstairs(request, timeout=SECONDS)).drain


async def wait_drain(home: House, name: str, wanted: Callable[[pb.Drain], object]) -> pb.Drain:
    """The drain once it is as wanted."""
    call = home.fleet.WatchDrain(pb.WatchDrainRequest(id=name))
    last = None
    try:
        async with asyncio.timeout(SECONDS):
            async for answer in call:
                last = answer.drain
                if wanted(last):
                    return last
        raise AssertionError(f"the watch ended at {last}")
    except TimeoutError:
        raise AssertionError(f"still {last}") from None
    finally:
        call.cancel()


def second_disk(home: House, *slots: int) -> dict[str, Any]:
    """Another disk of the document's shape."""
    disk = home.disk_json(slots=slots)
    vcr = disk["volume_construction_request"]
    vcr["id"] = SECOND_VOLUME
    vcr["sub_volumes"][0]["opts"]["id"] = SECOND_VOLUME
    return {**disk, "name": "block3", "slot": 4}
