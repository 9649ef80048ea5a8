"""DiskService: check, ask the operations, map the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc.aio

from controlplane.answers import AnswerBook
from controlplane.operations.disks import Disks
from controlplane.operations.replacing import Replacing
from controlplane.operations.scrubs import Scrubs, ScrubWish
from controlplane.services.mapping import (
    disk_message,
    disk_name,
    replace_answer,
    replace_wish,
    scrub_message,
)
from stairwell.controlplane.v1 import disk_service_pb2 as pb
from stairwell.controlplane.v1 import disk_service_pb2_grpc as pb_grpc


class DiskServicer(pb_grpc.DiskServiceServicer):
    """Disks over gRPC."""

    def __init__(
        self, disks: Disks, replacing: Replacing, scrubs: Scrubs, answers: AnswerBook
    ) -> None:
        self._disks = disks
        self._replacing = replacing
        self._scrubs = scrubs
        self._answers = answers

    async def GetDisk(
        self,
        request: pb.GetDiskRequest,
        context: grpc.aio.ServicerContext[pb.GetDiskRequest, pb.GetDiskResponse],
    ) -> pb.GetDiskResponse:
        """One disk."""
        del context
        return pb.GetDiskResponse(disk=disk_message(await self._disks.get(disk_name(request.name))))

    async def ListDisks(
        self,
        request: pb.ListDisksRequest,
        context: grpc.aio.ServicerContext[pb.ListDisksRequest, pb.ListDisksResponse],
    ) -> pb.ListDisksResponse:
        """A page of disks."""
        del context
        views, token = await self._disks.page(
            request.instance, request.page_size, request.page_token
        )
        return pb.ListDisksResponse(
            disks=[disk_message(view) for view in views], next_page_token=token
        )

    async def WatchDisk(
        self,
        request: pb.WatchDiskRequest,
        context: grpc.aio.ServicerContext[pb.WatchDiskRequest, pb.WatchDiskResponse],
    ) -> AsyncIterator[pb.WatchDiskResponse]:
        """The present state of the disk and each change."""
        del context
        async with aclosing(self._disks.watch(disk_name(request.name))) as views:
            async for view in views:
                yield pb.WatchDiskResponse(disk=disk_message(view))

    async def ReplaceVcr(
        self,
        request: pb.ReplaceVcrRequest,
        context: grpc.aio.ServicerContext[pb.ReplaceVcrRequest, pb.ReplaceVcrResponse],
    ) -> pb.ReplaceVcrResponse:
        """Replaces one target."""
        del context
        wish = replace_wish(request)

        async def replace() -> pb.ReplaceVcrResponse:
            return replace_answer(await self._replacing.replace(wish))

        return await self._answers.once(
            "ReplaceVcr", request.request_id, request, pb.ReplaceVcrResponse, replace
        )

    async def VerifyDisk(
        self,
        request: pb.VerifyDiskRequest,
        context: grpc.aio.ServicerContext[pb.VerifyDiskRequest, pb.VerifyDiskResponse],
    ) -> pb.VerifyDiskResponse:
        """Compares the members of a disk."""
        del context
        report = await self._disks.verify(disk_name(request.name), read_data=request.read_data)
        return pb.VerifyDiskResponse(report=report)

    async def SnapshotDisk(
        self,
        request: pb.SnapshotDiskRequest,
        context: grpc.aio.ServicerContext[pb.SnapshotDiskRequest, pb.SnapshotDiskResponse],
    ) -> pb.SnapshotDiskResponse:
        """Has all copies keep what the disk holds now."""
        del context

        async def take() -> pb.SnapshotDiskResponse:
            regions = await self._disks.snapshot(disk_name(request.name), request.snapshot)
            return pb.SnapshotDiskResponse(regions=regions)

        return await self._answers.once(
            "SnapshotDisk", request.request_id, request, pb.SnapshotDiskResponse, take
        )

    async def GetDiskHistory(
        self,
        request: pb.GetDiskHistoryRequest,
        context: grpc.aio.ServicerContext[pb.GetDiskHistoryRequest, pb.GetDiskHistoryResponse],
    ) -> pb.GetDiskHistoryResponse:
        """How its guest fared."""
        del context
        samples = await self._disks.history(
            disk_name(request.name), request.after_time, request.samples_max
        )
        return pb.GetDiskHistoryResponse(samples=samples)

    async def GetDiskExtents(
        self,
        request: pb.GetDiskExtentsRequest,
        context: grpc.aio.ServicerContext[pb.GetDiskExtentsRequest, pb.GetDiskExtentsResponse],
    ) -> pb.GetDiskExtentsResponse:
        """What is known of each extent."""
        del context
        found = await self._disks.extents(disk_name(request.name))
        return pb.GetDiskExtentsResponse(regions=found)

    async def WatchDiskExtents(
        self,
        request: pb.WatchDiskExtentsRequest,
        context: grpc.aio.ServicerContext[pb.WatchDiskExtentsRequest, pb.WatchDiskExtentsResponse],
    ) -> AsyncIterator[pb.WatchDiskExtentsResponse]:
        """The same, and each change."""
        del context
        news = self._disks.watch_extents(disk_name(request.name))
        async with aclosing(news):
            async for regions in news:
                yield pb.WatchDiskExtentsResponse(regions=regions)

    async def StartScrub(
        self,
        request: pb.StartScrubRequest,
        context: grpc.aio.ServicerContext[pb.StartScrubRequest, pb.StartScrubResponse],
    ) -> pb.StartScrubResponse:
        """Fills a volume of a disk from its parent."""
        del context
        wish = ScrubWish(disk_name(request.name), request.path, request.bytes_per_second_max)

        async def start() -> pb.StartScrubResponse:
            return pb.StartScrubResponse(scrub=scrub_message(await self._scrubs.start(wish)))

        return await self._answers.once(
            "StartScrub", request.request_id, request, pb.StartScrubResponse, start
        )

    async def StopScrub(
        self,
        request: pb.StopScrubRequest,
        context: grpc.aio.ServicerContext[pb.StopScrubRequest, pb.StopScrubResponse],
    ) -> pb.StopScrubResponse:
        """Ends that."""
        del context
        record = await self._scrubs.stop(disk_name(request.name), request.path)
        return pb.StopScrubResponse(scrub=scrub_message(record))
