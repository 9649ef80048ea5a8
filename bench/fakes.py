"""A vmmd and a fleet of downstairs that answer over gRPC and keep no blocks: for benches.

    python -m bench.fakes [--bytes-per-second B]

Serves vmmd's services for any number of machines: a machine runs as soon as it is asked to, its
volume is active then, and a replaced member is repaired at a steady rate, whose news are told as
the real one tells them. Prints one line, `vmmd ADDRESS downstairs PORT`. The downstairs answer
`GetRegion` at every loopback address (127.x.y.z:PORT), each time as another empty region; that is
all a control plane asks of a downstairs. A line on stdin changes the rate; its end ends the fakes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import uvloop

from stairlib.model.construction import regions
from stairlib.model.construction_diff import compare
from stairlib.model.errors import NotFoundError
from stairlib.rpc.server import RpcServer, Service
from stairlib.telemetry.trace_service import SERVICE_NAME, TraceServicer
from stairlib.telemetry.tracing import Tracing
from stairlib.wire.construction import from_message
from stairlib.wire.durations import seconds_of
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from stairwell.downstairs.v1 import region_service_pb2_grpc as region_grpc
from stairwell.telemetry.v1 import trace_service_pb2_grpc as trace_grpc
from stairwell.vmmd.v1 import machine_service_pb2 as machine_pb
from stairwell.vmmd.v1 import machine_service_pb2_grpc as machine_grpc
from stairwell.vmmd.v1 import volume_service_pb2 as pb
from stairwell.vmmd.v1 import volume_service_pb2_grpc as volume_grpc

WATCH_SECONDS = 0.1
EXTENT_BYTES = 64 << 20


@dataclass
class Fake:
    """One machine with one volume."""

    machine: machine_pb.Machine
    info: pb.VolumeInfo
    total: int
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    slot: pb.SlotInfo | None = None
    began: float = 0.0


class Host:
    """Every machine, and how fast repairs go; a rate of zero holds them where they are."""

    def __init__(self, bytes_per_second: float) -> None:
        self.fakes: dict[str, Fake] = {}
        self.rate = bytes_per_second
        # Bytes that every repair has done since it began, as time goes on at the rate.
        self._moved, self._at = 0.0, 0.0

    def moved(self) -> float:
        now = asyncio.get_running_loop().time()
        if self._at:
            self._moved += self.rate * (now - self._at)
        self._at = now
        return self._moved

    def set_rate(self, rate: float) -> None:
        self.moved()
        self.rate = rate

    def find(self, machine_id: str) -> Fake:
        if machine_id not in self.fakes:
            raise NotFoundError("machine", machine_id)
        return self.fakes[machine_id]

    def look(self, fake: Fake) -> pb.VolumeInfo:
        """The volume, with its repair as far as it is now."""
        if fake.slot is not None:
            done = int(self.moved() - fake.began)
            if done >= fake.total:
                fake.slot.state = pb.SLOT_STATE_ACTIVE
                fake.slot.ClearField("repair")
                fake.slot = None
            else:
                repair = fake.slot.repair
                repair.bytes_total, repair.bytes_done, repair.bytes_copied = fake.total, done, done
                repair.extents_total = fake.total // EXTENT_BYTES
                repair.extents_done = done // EXTENT_BYTES
        return fake.info


class Machines(machine_grpc.MachineServiceServicer):
    def __init__(self, host: Host) -> None:
        self.host = host

    async def EnsureMachine(self, request, context):
        spec = request.spec
        if spec.id not in self.host.fakes:
            self.host.fakes[spec.id] = made(spec)
        return machine_pb.EnsureMachineResponse(machine=self.host.find(spec.id).machine)

    async def GetMachine(self, request, context):
        return machine_pb.GetMachineResponse(machine=self.host.find(request.id).machine)

    async def SetMachineState(self, request, context):
        fake = self.host.find(request.id)
        fake.machine.state = machine_pb.MACHINE_STATE_RUNNING
        fake.machine.state_generation += 1
        fake.info.state = fake.info.regions[0].state = pb.VOLUME_STATE_ACTIVE
        for slot in fake.info.regions[0].slots:
            slot.state = pb.SLOT_STATE_ACTIVE
        fake.changed.set()
        return machine_pb.SetMachineStateResponse(machine=fake.machine)

    async def WatchMachine(self, request, context):
        fake = self.host.find(request.id)
        seen = request.after_generation
        while True:
            if fake.machine.state_generation > seen:
                seen = fake.machine.state_generation
                yield machine_pb.WatchMachineResponse(machine=fake.machine)
            fake.changed.clear()
            await fake.changed.wait()


class Volumes(volume_grpc.VolumeServiceServicer):
    def __init__(self, host: Host) -> None:
        self.host = host

    async def GetVolumeInfo(self, request, context):
        info = self.host.look(self.host.find(request.machine_id))
        return pb.GetVolumeInfoResponse(volume=info)

    async def WatchVolume(self, request, context) -> AsyncIterator[pb.WatchVolumeResponse]:
        fake = self.host.find(request.machine_id)
        interval = max(WATCH_SECONDS, seconds_of(request.interval))
        told = None
        while True:
            info = self.host.look(fake)
            if info != told:
                told = pb.VolumeInfo()
                told.CopyFrom(info)
                yield pb.WatchVolumeResponse(volume=info)
            await asyncio.sleep(interval)

    async def ReplaceVcr(self, request, context):
        fake = self.host.find(request.machine_id)
        changed = compare(from_message(request.original), from_message(request.replacement)).changed
        assert changed is not None
        slot = fake.info.regions[0].slots[changed.slot]
        result = pb.VCR_REPLACE_RESULT_STARTED_ALREADY
        if slot.address != changed.new:
            slot.address, slot.state = changed.new, pb.SLOT_STATE_LIVE_REPAIR
            slot.mode = pb.SLOT_MODE_REPLACED
            fake.slot, fake.began = slot, self.host.moved()
            result = pb.VCR_REPLACE_RESULT_STARTED
        return pb.ReplaceVcrResponse(result=result)

    async def VerifyVolume(self, request, context):
        await asyncio.sleep(WATCH_SECONDS)
        report = pb.VerifyReport(equal=True, extents_compared=128, members_compared=3)
        return pb.VerifyVolumeResponse(report=report)

    async def SetRepairLimits(self, request, context):
        return pb.SetRepairLimitsResponse()


class Regions(region_grpc.RegionServiceServicer):
    def __init__(self, geometry: region_pb.Geometry) -> None:
        self.geometry = geometry

    async def GetRegion(self, request, context):
        region = region_pb.Region(id=str(uuid4()), geometry=self.geometry, version="fake")
        return region_pb.GetRegionResponse(region=region)


def made(spec: machine_pb.MachineSpec) -> Fake:
    (disk,) = spec.disks
    ((path, region),) = regions(from_message(disk.volume_construction_request))
    info = pb.VolumeInfo(
        machine_id=spec.id, disk=disk.name, volume_id=disk.volume_construction_request.id,
        state=pb.VOLUME_STATE_INITIALIZING,
        regions=[
            pb.RegionInfo(
                path=path, generation=region.generation, state=pb.VOLUME_STATE_INITIALIZING,
                slots=[
                    pb.SlotInfo(slot=number, address=address, state=pb.SLOT_STATE_WAIT_CONNECT)
                    for number, address in enumerate(region.options.targets)
                ],
            )
        ],
    )  # fmt: skip
    machine = machine_pb.Machine(
        id=spec.id, name=spec.name, state=machine_pb.MACHINE_STATE_CREATING, state_generation=1,
        engine="none",
    )  # fmt: skip
    return Fake(machine, info, region.geometry.total_bytes)


def services(host: Host, tracing: Tracing) -> list[Service]:
    machines, volumes, traces = Machines(host), Volumes(host), TraceServicer(tracing)
    return [
        Service(
            "stairwell.vmmd.v1.MachineService",
            lambda s: machine_grpc.add_MachineServiceServicer_to_server(machines, s),
        ),
        Service(
            "stairwell.vmmd.v1.VolumeService",
            lambda s: volume_grpc.add_VolumeServiceServicer_to_server(volumes, s),
        ),
        Service(SERVICE_NAME, lambda s: trace_grpc.add_TraceServiceServicer_to_server(traces, s)),
    ]


async def main(bytes_per_second: float) -> None:
    tracing = Tracing("vmmd", "fake")
    host = Host(bytes_per_second)
    vmmd = RpcServer("127.0.0.1:0", services(host, tracing), tracing)
    geometry = region_pb.Geometry(block_size=4096, extent_size=16384, extent_count=128)
    answering = Regions(geometry)
    regions_server = RpcServer(
        "0.0.0.0:0",
        [
            Service(
                "stairwell.downstairs.v1.RegionService",
                lambda s: region_grpc.add_RegionServiceServicer_to_server(answering, s),
            )
        ],
        Tracing("downstairs", "fake"),
        insecure=True,
    )
    await vmmd.start()
    await regions_server.start()
    print(f"vmmd {vmmd.address} downstairs {regions_server.port}", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        host.set_rate(float(line))
    await vmmd.stop(0)
    await regions_server.stop(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes-per-second", type=float, default=float(8 << 20))
    arguments: Any = parser.parse_args()
    uvloop.run(main(arguments.bytes_per_second))
