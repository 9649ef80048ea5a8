"""What the daemon's metrics tell of one machine, as a message."""

from __future__ import annotations

import time

from stairlib.telemetry.process_metrics import memory_bytes
from stairwell.vmmd.v1 import machine_process_service_pb2 as pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from vmmd.block.volume import Volume
from vmmd.core.guest_meter import LATENCY_BOUNDS, LatencyTotals
from vmmd.core.request_figures import SIZE_BOUNDS, SizeTotals


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
        latencies=map(_latencies, volume.meter.latency_totals()),
        requests_in_flight=volume.meter.in_flight,
        requests_waiting=waiting,
        loads=[
            pb.SlotLoad(region_path=path, slot=load.slot, jobs=load.jobs, bytes=load.bytes)
            for path, load in volume.loads()
        ],
        sizes=map(_sizes, volume.figures.sizes()),
        failures=[
            pb.FailureCount(kind=kind, reason=reason, count=count)
            for kind, reason, count in volume.figures.failures()
        ],
        discarded_bytes=volume.figures.discarded_bytes,
    )


def _latencies(totals: LatencyTotals) -> pb.LatencyTotals:
    return pb.LatencyTotals(
        bounds_seconds=LATENCY_BOUNDS,
        below=totals.below,
        count=totals.count,
        seconds=totals.seconds,
        kind=totals.kind,
    )


def _sizes(totals: SizeTotals) -> pb.SizeTotals:
    return pb.SizeTotals(
        kind=totals.kind, bounds_bytes=SIZE_BOUNDS, at_most=totals.at_most, count=totals.count
    )
