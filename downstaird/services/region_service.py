"""RegionService: what region the daemon keeps and how it is."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from time import monotonic

import grpc

from downstaird.core.changes import changes_since
from downstaird.core.verification import Verification
from downstaird.region_host import RegionHost
from downstaird.services.mapping import region_message, snapshot_message
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from stairwell.downstairs.v1 import region_service_pb2_grpc as region_grpc

SERVICE_NAME = "stairwell.downstairs.v1.RegionService"
# The loop is given back this often during a verification.
SLICE_SECONDS = 0.002


class RegionServicer(region_grpc.RegionServiceServicer):
    """Answers for one host, whose region is in `directory`."""

    def __init__(self, host: RegionHost, version: str, directory: Path) -> None:
        self._host = host
        self._version = version
        self._directory = directory

    async def GetRegion(
        self,
        _request: region_pb.GetRegionRequest,
        _context: grpc.aio.ServicerContext[region_pb.GetRegionRequest, region_pb.GetRegionResponse],
    ) -> region_pb.GetRegionResponse:
        """The region as it is now."""
        region = region_message(self._host, self._version, with_key_check=True)
        free = _free_bytes(self._directory)
        if free is not None:
            region.free_bytes = free
        return region_pb.GetRegionResponse(region=region)

    async def ListChanges(
        self,
        request: region_pb.ListChangesRequest,
        _context: grpc.aio.ServicerContext[
            region_pb.ListChangesRequest, region_pb.ListChangesResponse
        ],
    ) -> region_pb.ListChangesResponse:
        """What was written since a flush."""
        states = self._host.engine.extent_states()
        found = changes_since(states, request.generation, request.flush_number)
        return region_pb.ListChangesResponse(
            changed=[
                region_pb.ExtentRange(first_extent=first, extent_count=count)
                for first, count in found.runs
            ],
            extents_changed=found.extents,
            generation=found.generation,
            flush_number=found.flush,
        )

    async def ListSnapshots(
        self,
        _request: region_pb.ListSnapshotsRequest,
        _context: grpc.aio.ServicerContext[
            region_pb.ListSnapshotsRequest, region_pb.ListSnapshotsResponse
        ],
    ) -> region_pb.ListSnapshotsResponse:
        """All snapshots; the loop is free between two."""
        answer = region_pb.ListSnapshotsResponse()
        for facts in self._host.engine.list_snapshots():
            answer.snapshots.append(snapshot_message(facts))
            await asyncio.sleep(0)
        return answer

    async def DeleteSnapshot(
        self,
        request: region_pb.DeleteSnapshotRequest,
        _context: grpc.aio.ServicerContext[
            region_pb.DeleteSnapshotRequest, region_pb.DeleteSnapshotResponse
        ],
    ) -> region_pb.DeleteSnapshotResponse:
        """Durable when it returns."""
        await self._host.delete_snapshot(request.name)
        return region_pb.DeleteSnapshotResponse()

    async def VerifyRegion(
        self,
        _request: region_pb.VerifyRegionRequest,
        _context: grpc.aio.ServicerContext[
            region_pb.VerifyRegionRequest, region_pb.VerifyRegionResponse
        ],
    ) -> region_pb.VerifyRegionResponse:
        """Reads everything that is stored, in slices between the guest's I/O."""
        check = Verification(self._host.engine)
        until = monotonic() + SLICE_SECONDS
        for _ in check.steps():
            if monotonic() >= until:
                # Longer than a bare turn, so that I/O gets the larger part of the loop.
                await asyncio.sleep(SLICE_SECONDS)
                until = monotonic() + SLICE_SECONDS
        return region_pb.VerifyRegionResponse(
            blocks_read=check.blocks_read,
            blocks_bad=check.blocks_bad,
            bad_blocks=[
                region_pb.BadBlock(block=bad.block, reason=bad.reason) for bad in check.bad_blocks
            ],
        )


def _free_bytes(directory: Path) -> int | None:
    """What the daemon may still write there; None when the file system does not say."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
