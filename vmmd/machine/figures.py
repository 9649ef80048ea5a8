"""What the daemon's metrics tell of one machine, as a message."""

from __future__ import annotations

import time

from stairlib.telemetry.process_metrics import memory_bytes
from stairwell.vmmd.v1 import machine_process_service_pb2 as pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from vmmd.block.volume import Volume
from vmmd.core.guest_meter import LATENCY_BOUNDS, LatencyTotals


def figures_message(volumes: list[tuple[Volume, volume_pb.VolumeInfo]]) -> pb.GetFiguresResponse:
    """Of each volume, told with its info, and of this process."""
    return pb.GetFiguresResponse(
        volumes=[_volume(volume, info) for volume, info in volumes],
        memory_bytes=memory_bytes(),
        processor_seconds=time.process_time(),
    )


def _volume(volume: Volume, info: volume_pb.VolumeInfo) -> pb.VolumeFigures:
    waiting = sum(region.guest_waiting for _path, region in volume.status().regions)
    return pb.VolumeFigures(
        volume=info,
        latencies=_latencies(volume.meter.latency_totals()),
        requests_in_flight=volume.meter.in_flight,
        requests_waiting=waiting,
        loads=[
            pb.SlotLoad(region_path=path, slot=load.slot, jobs=load.jobs, bytes=load.bytes)
            for path, load in volume.loads()
        ],
    )


def _latencies(totals: LatencyTotals) -> pb.LatencyTotals:
    return pb.LatencyTotals(
        bounds_seconds=LATENCY_BOUNDS,
        below=totals.below,
        count=totals.count,
        seconds=totals.seconds,
    )
