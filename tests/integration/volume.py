"""A disk of three members and a spare with its machine, and what scenario tests do to it."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf import json_format

from stairlib.model.errors import StairwellError
from stairlib.rpc.errors import translated
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import disk_service_pb2_grpc as disk_grpc
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import instance_service_pb2_grpc as instance_grpc
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.controlplane.v1 import replacement_service_pb2_grpc as replacement_grpc
from stairwell.vmmd.v1 import guest_service_pb2 as guest_pb
from stairwell.vmmd.v1 import guest_service_pb2_grpc as guest_grpc
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from stairwell.vmmd.v1 import volume_service_pb2_grpc as volume_grpc
from stairwell.vmmd.v1.guest_service_pb2 import Workload, WorkloadKind, WorkloadReport
from tests.integration.cluster import (
    BLOCK_SIZE,
    BLOCKS_PER_EXTENT,
    DEADLINE,
    EXTENT_COUNT,
    MIB,
    Cluster,
    Program,
    until,
)

VOLUME_ACTIVE = volume_pb.VOLUME_STATE_ACTIVE
SLOT_ACTIVE = volume_pb.SLOT_STATE_ACTIVE
DONE = replacement_pb.REPLACEMENT_STATE_DONE
FAILED = replacement_pb.REPLACEMENT_STATE_FAILED
_MIXED = WorkloadKind.WORKLOAD_KIND_MIXED


class Volume:
    """A disk and its machine. `downstairs` holds the first three members, then spares; `options`
    are more fields of its region's opts."""

    def __init__(self, cluster: Cluster, downstairs: Sequence[Program], **options: Any) -> None:
        self.cluster = cluster
        self.options = options
        self.downstairs = list(downstairs)
        self.id = str(uuid.uuid4())
        self.disk = f"disk-{self.id[:8]}"
        self.instance = f"vm-{self.id[:8]}"
        self.instance_id = ""
        # Base64; empty for a disk that is not encrypted.
        self.key = ""
        self.extent_count = EXTENT_COUNT
        self.device = "nvme"

    @property
    def targets(self) -> list[str]:
        """The addresses of the first three members."""
        return [program.address for program in self.downstairs[:3]]

    @property
    def spare(self) -> Program:
        """The first downstairs that is no member at first."""
        return self.downstairs[3]

    def vcr(self, generation: int, targets: Sequence[str], **shape: int) -> dict[str, Any]:
        """A construction request of this volume; `shape` overrides its geometry."""
        region = {
            "type": "region",
            "block_size": BLOCK_SIZE,
            "blocks_per_extent": BLOCKS_PER_EXTENT,
            "extent_count": self.extent_count,
            "gen": generation,
            "opts": {
                "id": self.id, "target": list(targets), "lossy": False, "read_only": False,
                **self.options,
            },
        }  # fmt: skip
        if self.key:
            region["opts"]["key"] = self.key
        region.update(shape)
        size = region["block_size"]
        return {"type": "volume", "id": self.id, "block_size": size, "sub_volumes": [region]}

    def changed(self, slot: int = 2, target: str = "", generation: int = 2) -> dict[str, Any]:
        """The request that puts `target`, by default the spare, into a slot."""
        targets = self.targets
        targets[slot] = target or self.spare.address
        return self.vcr(generation, targets)

    def spec(self, targets: Sequence[str] = (), generation: int = 1) -> dict[str, Any]:
        """The disk as a crucible-disks file has it."""
        vcr = self.vcr(generation, targets or self.targets)
        return {
            "device": self.device, "name": self.disk, "read_only": False, "slot": 3,
            "volume_construction_request": vcr,
        }  # fmt: skip

    async def create(self, targets: Sequence[str] = (), generation: int = 1) -> None:
        """Makes the machine with the disk."""
        request = instance_pb.CreateInstanceRequest(
            name=self.instance, request_id=str(uuid.uuid4())
        )
        spec = self.spec(targets, generation)
        json_format.ParseDict(spec, request.disks.add())
        stub = instance_grpc.InstanceServiceStub
        answer = await self.cluster.call(stub, "CreateInstance", request)
        self.instance_id = answer.instance.id

    async def set_state(self, state: int) -> None:
        """Asks for a state."""
        request = instance_pb.SetInstanceStateRequest(name=self.instance)
        request.state = state  # type: ignore[assignment]
        stub = instance_grpc.InstanceServiceStub
        await self.cluster.call(stub, "SetInstanceState", request)

    async def run(self) -> None:
        """Runs the machine; returns when it does."""
        await self.set_state(instance_pb.REQUESTED_STATE_RUN)
        await self.reach(instance_pb.INSTANCE_STATE_RUNNING)

    async def stop(self) -> None:
        """Stops the machine; returns when it is gone."""
        await self.set_state(instance_pb.REQUESTED_STATE_STOP)
        await self.reach(instance_pb.INSTANCE_STATE_DESTROYED)

    async def reach(self, *states: int) -> instance_pb.Instance:
        """Waits until the instance is in one of the states."""
        return await until(
            lambda: self.cluster.get_instance(self.instance), lambda one: one.state in states
        )

    async def delete(self) -> None:
        """Removes the instance."""
        request = instance_pb.DeleteInstanceRequest(name=self.instance)
        await self.cluster.call(instance_grpc.InstanceServiceStub, "DeleteInstance", request)

    async def info(self) -> disk_pb.Disk:
        """The disk now."""
        return await self.cluster.get_disk(self.disk)

    async def slot(self, number: int) -> volume_pb.SlotInfo:
        """What the machine says of a slot."""
        return (await self.info()).volume.regions[0].slots[number]

    async def settled(self) -> None:
        """Waits until the volume and all its members are active."""

        def active(disk: disk_pb.Disk) -> bool:
            return disk.volume.state == VOLUME_ACTIVE and all(
                slot.state == SLOT_ACTIVE for region in disk.volume.regions for slot in region.slots
            )

        await until(self.info, active)

    async def slot_not_active(self, number: int) -> None:
        """Waits until the machine has noticed that a member is gone."""
        await until(lambda: self.slot(number), lambda slot: slot.state != SLOT_ACTIVE)

    async def limit(self, bytes_per_second: int, **more: Any) -> None:
        """Sets the repair rate at the machine, also before there is a repair; 0 lifts it. `more`
        are further fields of the limits; the rate is fixed unless they say otherwise."""
        limits = volume_pb.RepairLimits(
            **{"bytes_per_second_max": bytes_per_second, "adaptive": False, **more}
        )
        request = volume_pb.SetRepairLimitsRequest(
            machine_id=self.instance_id, disk=self.disk, limits=limits
        )
        stub = volume_grpc.VolumeServiceStub
        await self.cluster.call(stub, "SetRepairLimits", request, at=self.cluster.vmmd.address)

    async def record_limit(self, bytes_per_second: int) -> None:
        """Sets the repair rate, fixed, at the control plane, which keeps the machine told, also one
        that is made again later; 0 lifts it."""
        request = replacement_pb.SetRepairLimitsRequest(
            disk=self.disk, bytes_per_second_max=bytes_per_second, adaptive=False
        )
        stub = replacement_grpc.ReplacementServiceStub
        await self.cluster.call(stub, "SetRepairLimits", request)

    async def replace(self, vcr: dict[str, Any] | None = None) -> disk_pb.ReplaceVcrResponse:
        """Asks for a replacement, by default of slot 2 by the spare."""
        request = disk_pb.ReplaceVcrRequest(name=self.disk)
        json_format.ParseDict(vcr or self.changed(), request.vcr)
        answer: disk_pb.ReplaceVcrResponse = await self.cluster.call(
            disk_grpc.DiskServiceStub, "ReplaceVcr", request
        )
        return answer

    async def mid_repair(self, replacement: str, extents: int = 1) -> replacement_pb.Replacement:
        """Waits until a replacement has copied some extents; it must not be over by then."""
        found = await until(
            lambda: self.cluster.get_replacement(replacement),
            lambda one: one.extents_done >= extents or one.state in (DONE, FAILED),
        )
        assert found.state == replacement_pb.REPLACEMENT_STATE_REPAIR, found
        return found

    async def done(self, replacement: str) -> replacement_pb.Replacement:
        """Waits until a replacement has ended, which must be well."""
        found = await until(
            lambda: self.cluster.get_replacement(replacement),
            lambda one: one.state in (DONE, FAILED),
        )
        assert found.state == DONE, found
        assert found.bytes_done == found.bytes_total
        return found

    async def verify(self, members: int = 3) -> None:
        """All members hold the same, and every stored block is whole."""
        request = disk_pb.VerifyDiskRequest(name=self.disk, read_data=True)
        stub = disk_grpc.DiskServiceStub
        report = (await self.cluster.call(stub, "VerifyDisk", request)).report
        assert report.equal, report
        assert report.members_compared == members
        assert report.extents_compared == self.extent_count
        assert not report.bad_blocks

    async def workload(self, kind: WorkloadKind.ValueType, **more: Any) -> WorkloadReport:
        """Runs a workload of the guest to its end, which must be faultless."""
        last = WorkloadReport()
        async for report in self.reports(kind, **more):
            last = report
        assert last.finished
        faultless(last)
        return last

    async def fill(self, size: int = 16 * MIB, seed: int = 1) -> WorkloadReport:
        """Writes patterned data over the whole disk, and flushes."""
        return await self.workload(WorkloadKind.WORKLOAD_KIND_FILL, bytes=size, seed=seed)

    async def read_back(self) -> WorkloadReport:
        """Reads every block this guest ever wrote."""
        report = await self.workload(WorkloadKind.WORKLOAD_KIND_READ_BACK)
        assert report.bytes_read > 0
        return report

    async def reports(
        self, kind: WorkloadKind.ValueType, *, directly: bool = False, **more: Any
    ) -> AsyncIterator[WorkloadReport]:
        """The reports of a workload as they come, `directly` from vmmd if so wished."""
        workload = Workload(kind=kind, disk=self.disk, **more)
        cluster = self.cluster
        address = (cluster.vmmd if directly else cluster.controlplane).address
        with translated(address):
            if directly:
                guest = guest_grpc.GuestServiceStub(cluster.channel(address))
                stream = guest.RunWorkload(
                    guest_pb.RunWorkloadRequest(machine_id=self.instance_id, workload=workload)
                )
            else:
                instances = instance_grpc.InstanceServiceStub(cluster.channel(address))
                stream = instances.RunGuestWorkload(
                    instance_pb.RunGuestWorkloadRequest(name=self.instance, workload=workload)
                )
            try:
                async for message in stream:
                    yield message.report
            finally:
                stream.cancel()

    @asynccontextmanager
    async def load(
        self, *, seed: int = 2, queue_depth: int = 4, directly: bool = False
    ) -> AsyncIterator[Load]:
        """A verified mixed load while the block runs; in the end it must have been faultless.

        `directly`: by a call of vmmd, which outlives the control plane.
        """
        load = Load(self.reports(_MIXED, seed=seed, queue_depth=queue_depth, directly=directly))
        try:
            await load.goes_on()
            yield load
            await load.goes_on()
            faultless(load.last)
        finally:
            await load.stop()


def faultless(report: WorkloadReport) -> None:
    """The guest saw no error, and nothing it had not written."""
    assert not report.errors, report
    assert not report.mismatches, report


class Load:
    """A mixed load in the background."""

    def __init__(self, reports: AsyncIterator[WorkloadReport]) -> None:
        self.last = WorkloadReport()
        self._arrived = asyncio.Event()
        self._task = asyncio.create_task(self._run(reports))

    async def _run(self, reports: AsyncIterator[WorkloadReport]) -> None:
        async for report in reports:
            self.last = report
            self._arrived.set()

    async def reported(self) -> None:
        """Waits for the next report."""
        self._arrived.clear()
        arrival = asyncio.create_task(self._arrived.wait())
        try:
            await asyncio.wait(
                {arrival, self._task}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            arrival.cancel()
        if self._task.done():
            self._task.result()
            raise AssertionError("the load ended by itself")
        assert self._arrived.is_set(), "the load says nothing more"

    async def goes_on(self) -> None:
        """Waits until commands that began after this call have ended."""
        await self.reported()
        end = time.monotonic() + DEADLINE
        before = self.last.ios
        while self.last.ios <= before:
            assert time.monotonic() < end, f"the guest's I/O stands still: {self.last}"
            await self.reported()

    async def stop(self) -> None:
        """Ends it."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await asyncio.wait_for(self._task, DEADLINE)

    async def ended(self) -> None:
        """Waits until it has ended by itself; raises what ended it."""
        await asyncio.wait_for(self._task, DEADLINE)


@asynccontextmanager
async def fresh_volume(
    cluster: Cluster,
    *,
    run: bool = True,
    spare: bool = True,
    key: str = "",
    cipher: str = "",
    extent_count: int = EXTENT_COUNT,
    device: str = "nvme",
) -> AsyncIterator[Volume]:
    """A machine with a disk of three fresh members, and by default a started spare. With `key`, all
    are encrypted with `cipher`."""
    count = 4 if spare else 3
    programs = [cluster.downstairs(extent_count=extent_count) for _ in range(count)]
    volume = Volume(cluster, programs)
    volume.extent_count = extent_count
    volume.device = device
    if key:
        volume.key = key
        for program in programs:
            program.command += ["--encrypted", "--cipher", cipher]
    try:
        await asyncio.gather(*(program.start() for program in programs))
        await volume.create()
        if run:
            await volume.run()
        yield volume
    finally:
        with contextlib.suppress(StairwellError, AssertionError):
            await volume.delete()
        cluster.remove(volume.downstairs)
