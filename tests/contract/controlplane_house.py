"""A control plane with scripted peers around it, and what tests say to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
from google.protobuf import json_format
from sqlalchemy import select

from controlplane.daemon import ControlPlane
from controlplane.store import schema
from controlplane.store.opening import sqlite_engine
from stairlib.model.errors import StairwellError
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import from_rpc_error
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import disk_service_pb2_grpc as disk_grpc
from stairwell.controlplane.v1 import fleet_service_pb2_grpc as fleet_grpc
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import instance_service_pb2_grpc as instance_grpc
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.controlplane.v1 import replacement_service_pb2_grpc as replacement_grpc
from tests.contract.controlplane_peers import (
    ScriptedDownstairs,
    ScriptedVmmd,
    serving_downstairs,
    serving_vmmd,
)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
VOLUME = "0cedae45-3d6e-4d90-b2cb-56f1a1a42a89"
PARENT = "99999999-3d6e-4d90-b2cb-56f1a1a42a89"
SECONDS = 10.0
# Of what the control plane does now and then: fifty times as often, which a small fleet allows.
PACE = 0.02
# What a refused request must not change. Spans and answers are no state.
STATE = (
    schema.instances, schema.disks, schema.generations, schema.fleet, schema.replacements,
    schema.transitions, schema.scrubs, schema.fleet_places, schema.fleet_policy, schema.drains,
)  # fmt: skip


def document_disk() -> dict[str, Any]:
    """The document's disk as it is."""
    (disk,) = json.loads((EXAMPLES / "crucible-disks.json").read_text())
    return disk


@dataclass
class House:
    """One running control plane. `members` are the three of the document's disk, then spares."""

    control: ControlPlane
    vmmd: ScriptedVmmd
    members: list[ScriptedDownstairs]
    data: Path
    channel: grpc.aio.Channel

    def __post_init__(self) -> None:
        self.instances: Any = instance_grpc.InstanceServiceStub(self.channel)
        self.disks: Any = disk_grpc.DiskServiceStub(self.channel)
        self.replacements: Any = replacement_grpc.ReplacementServiceStub(self.channel)
        self.fleet: Any = fleet_grpc.FleetServiceStub(self.channel)

    def targets(self, *slots: int) -> list[str]:
        return [self.members[slot].address for slot in slots]

    def disk_json(self, *, slots: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
        """The document's disk, at the scripted addresses."""
        disk = document_disk()
        region = disk["volume_construction_request"]["sub_volumes"][0]
        region["opts"]["target"] = self.targets(*slots)
        return disk

    def vcr(self, *, slots: tuple[int, ...] = (0, 1, 3), gen: int = 2) -> dict[str, Any]:
        """The document's replacement, at the scripted addresses."""
        vcr = json.loads((EXAMPLES / "replace.json").read_text())["vcr"]
        vcr["sub_volumes"][0]["opts"]["target"] = self.targets(*slots)
        vcr["sub_volumes"][0]["gen"] = gen
        return vcr

    def region_json(
        self, *slots: int, read_only: bool = False, gen: int = 1, owner: str = VOLUME
    ) -> dict[str, Any]:
        """A region at scripted addresses, of the document's shape."""
        region = document_disk()["volume_construction_request"]["sub_volumes"][0]
        region["opts"] |= {
            "id": owner, "target": self.targets(*slots), "read_only": read_only
        }  # fmt: skip
        return {**region, "gen": gen}

    def over_parent(
        self, slots: tuple[int, ...] = (0, 1, 2), gen: int = 1,
        parents: tuple[int, ...] = (5, 6, 7), parent_gen: int = 1,
    ) -> dict[str, Any]:  # fmt: skip
        """The document's volume over a read-only one."""
        parent = self.region_json(*parents, read_only=True, gen=parent_gen, owner=PARENT)
        return volume_json(
            self.region_json(*slots, gen=gen), read_only_parent=volume_json(parent, id=PARENT)
        )

    async def create_over(self, vcr: dict[str, Any] | None = None) -> instance_pb.Instance:
        """The document's instance running, with its disk over a parent or as wanted."""
        for slot in (5, 6, 7):
            if slot < len(self.members):
                self.members[slot].region.read_only = True
        disk = {**document_disk(), "volume_construction_request": vcr or self.over_parent()}
        return await self.create_running(disks=[disk])

    async def create(self, name: str = "crub", **changes: Any) -> instance_pb.Instance:
        if "disks" not in changes:
            changes["disks"] = [self.disk_json()]
        request = json_format.ParseDict(
            {"name": name, **changes},
            instance_pb.CreateInstanceRequest(),
        )
        answer = await self.instances.CreateInstance(request, timeout=SECONDS)
        return answer.instance

    async def create_running(self, **changes: Any) -> instance_pb.Instance:
        """The document's instance, running."""
        instance = await self.create(**changes)
        await self.vmmd.set_machine(instance.id, "RUNNING")
        await self.vmmd.set_volume("block2", "ACTIVE")
        await self.wait_instance("RUNNING")
        return instance

    async def wait_instance(self, state: str, name: str = "crub") -> instance_pb.Instance:
        call = self.instances.WatchInstance(instance_pb.WatchInstanceRequest(name=name))
        try:
            async with asyncio.timeout(SECONDS):
                async for answer in call:
                    if answer.instance.state == instance_pb.InstanceState.Value(
                        f"INSTANCE_STATE_{state}"
                    ):
                        return answer.instance
            raise AssertionError(f"the watch ended before {state}")
        finally:
            call.cancel()

    async def replace(self, vcr: dict[str, Any] | None = None, **fields: Any) -> Any:
        document = {"vcr": vcr} if vcr is not None else {}
        if "id" not in fields:
            document["name"] = "block2"
        request = json_format.ParseDict({**document, **fields}, disk_pb.ReplaceVcrRequest())
        return await self.disks.ReplaceVcr(request, timeout=SECONDS)

    async def replacement(self, identity: str) -> replacement_pb.Replacement:
        request = replacement_pb.GetReplacementRequest(id=identity)
        answer = await self.replacements.GetReplacement(request, timeout=SECONDS)
        return answer.replacement

    async def wait_replacement(
        self, identity: str, wanted: Callable[[replacement_pb.Replacement], bool] | str
    ) -> replacement_pb.Replacement:
        """The replacement once it is in a state, or as wanted."""
        if isinstance(wanted, str):
            state = replacement_pb.ReplacementState.Value(f"REPLACEMENT_STATE_{wanted}")

            def test(record: replacement_pb.Replacement) -> bool:
                return record.state == state
        else:
            test = wanted
        call = self.replacements.WatchReplacement(
            replacement_pb.WatchReplacementRequest(id=identity)
        )
        last = None
        try:
            async with asyncio.timeout(SECONDS):
                async for answer in call:
                    last = answer.replacement
                    if test(last):
                        return last
            raise AssertionError(f"the watch ended at {last}")
        except TimeoutError:
            raise AssertionError(f"still {last}") from None
        finally:
            call.cancel()

    async def disk(self, name: str = "block2") -> disk_pb.Disk:
        answer = await self.disks.GetDisk(disk_pb.GetDiskRequest(name=name), timeout=SECONDS)
        return answer.disk

    async def start_scrub(self, path: str = "", **fields: Any) -> disk_pb.Scrub:
        request = disk_pb.StartScrubRequest(**{"name": "block2", "path": path, **fields})
        return (await self.disks.StartScrub(request, timeout=SECONDS)).scrub

    async def stop_scrub(self, path: str = "", name: str = "block2") -> disk_pb.Scrub:
        request = disk_pb.StopScrubRequest(name=name, path=path)
        return (await self.disks.StopScrub(request, timeout=SECONDS)).scrub

    async def wait_scrub(
        self, wanted: Callable[[disk_pb.Scrub], bool] | str, path: str = ""
    ) -> disk_pb.Scrub:
        """The disk's scrub once it is in a state, or as wanted."""
        if isinstance(wanted, str):
            state = disk_pb.ScrubState.Value(f"SCRUB_STATE_{wanted}")

            def test(record: disk_pb.Scrub) -> bool:
                return record.state == state
        else:
            test = wanted
        call = self.disks.WatchDisk(disk_pb.WatchDiskRequest(name="block2"))
        last = None
        try:
            async with asyncio.timeout(SECONDS):
                async for answer in call:
                    for last in answer.disk.scrubs:
                        if last.path == path and test(last):
                            return last
            raise AssertionError(f"the watch ended at {last}")
        except TimeoutError:
            raise AssertionError(f"still {last}") from None
        finally:
            call.cancel()

    def state(self) -> list[Any]:
        """Everything the control plane has recorded, read from its file."""
        engine = sqlite_engine(self.data / "controlplane.sqlite")
        try:
            with engine.begin() as connection:
                return [
                    sorted(map(tuple, connection.execute(select(table)).all()), key=repr)
                    for table in STATE
                ]
        finally:
            engine.dispose()


def volume_json(*sub_volumes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "volume", "id": VOLUME, "block_size": 4096, "sub_volumes": list(sub_volumes), **more
    }  # fmt: skip


async def refused(call: Any) -> tuple[grpc.StatusCode, StairwellError]:
    """(code, domain error) of a call that must be refused."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error.code(), from_rpc_error(error)
    raise AssertionError(f"not refused: {answer}")


def fields(error: StairwellError) -> dict[str, str]:
    """Field path to reason of each violation."""
    return {each.field: each.reason for each in getattr(error, "violations", ())}


@asynccontextmanager
async def house(
    data: Path,
    *,
    vmmd: ScriptedVmmd | None = None,
    downstairs: int = 5,
    metrics: str = "",
    console: str = "",
    pace: float = PACE,
) -> AsyncIterator[House]:
    """A control plane at free ports with a scripted vmmd and `downstairs` daemons."""
    script = vmmd or ScriptedVmmd()
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(serving_vmmd(script))
        script.address = address
        members = [
            await stack.enter_async_context(serving_downstairs(ScriptedDownstairs()))
            for _ in range(downstairs)
        ]
        async with running(data, script, members, metrics, console, pace) as found:
            yield found


@asynccontextmanager
async def running(
    data: Path,
    script: ScriptedVmmd,
    members: list[ScriptedDownstairs],
    metrics: str = "",
    console: str = "",
    pace: float = PACE,
) -> AsyncIterator[House]:
    """A control plane among peers that are there already."""
    control = ControlPlane(
        "127.0.0.1:0",
        script.address,
        data,
        metrics=metrics,
        console=console,
        grace_seconds=0,
        pace=pace,
    )
    async with control:
        channel = open_channel(control.address)
        try:
            yield House(control, script, members, data, channel)
        finally:
            await channel.close()


def region_id(member: ScriptedDownstairs) -> str:
    return str(UUID(member.region.id))
