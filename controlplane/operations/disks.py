"""Disks: what is recorded of them together with what their machine says of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.core.records import DiskRecord
from controlplane.core.scrub import Scrub
from controlplane.feed import Feed, Subscription
from controlplane.peers.vmmd import GLANCE_SECONDS, Vmmd
from controlplane.scrub_driver import ScrubDriver
from controlplane.store.base import Store
from stairlib.model.errors import NotFoundError, StairwellError
from stairlib.model.snapshot import checked_name
from stairlib.rpc.paging import page_size, position, token
from stairlib.telemetry.logs import get_logger
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb

_log = get_logger(__name__)

# Between two tries to hear of a volume whose machine is away.
RELISTEN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class DiskView:
    """A disk now. `volume` is None while no machine answers for it."""

    disk: DiskRecord
    volume: volume_pb.VolumeInfo | None
    replacement_id: UUID | None
    scrubs: tuple[Scrub, ...] = ()


class Disks:
    """See the module. `news` gets something under a disk's key when its records change."""

    def __init__(self, store: Store, vmmd: Vmmd, scrubs: ScrubDriver, news: Feed[None]) -> None:
        self._store = store
        self._vmmd = vmmd
        self._scrubs = scrubs
        self._news = news

    async def get(self, name: str) -> DiskView:
        """By disk name or volume UUID."""
        disk = await self._store.disk(name)
        return await self._view(disk, await self._volume(disk))

    async def page(self, instance: str, size: int, page_token: str) -> tuple[list[DiskView], str]:
        """One page of the disks of an instance (or of all), and the token of the next."""
        wanted = page_size(size)
        after = position(page_token)
        owner = (await self._store.instance(instance)).id if instance else None
        found = await self._store.list_disks(instance_id=owner, after=after, limit=wanted + 1)
        shown = found[:wanted]
        volumes = await asyncio.gather(*(self._volume(disk) for disk in shown))
        views = [await self._view(disk, info) for disk, info in zip(shown, volumes, strict=True)]
        return views, token(shown[-1].name) if len(found) > wanted else ""

    async def watch(self, name: str) -> AsyncGenerator[DiskView, None]:
        """The present view, then one for each change; ends when the disk is gone."""
        disk = await self._store.disk(name)
        with self._news.subscribe(disk.key) as news:
            latest: list[volume_pb.VolumeInfo | None] = [await self._volume(disk)]
            listener = asyncio.create_task(self._listen(disk, latest, news))
            try:
                seen = await self._view(disk, latest[0])
                yield seen
                async for _ in news:
                    try:
                        disk = await self._store.disk(str(disk.volume_id))
                    except NotFoundError:
                        return
                    view = await self._view(disk, latest[0])
                    if view != seen:
                        seen = view
                        yield view
            finally:
                listener.cancel()
                await asyncio.gather(listener, return_exceptions=True)

    async def _listen(
        self,
        disk: DiskRecord,
        latest: list[volume_pb.VolumeInfo | None],
        news: Subscription[None],
    ) -> None:
        """Keeps the last word of the machine in `latest`, and says so."""
        while True:
            try:
                volumes = self._vmmd.watch_volume(disk.instance_id, disk.name)
                async with aclosing(volumes):
                    async for info in volumes:
                        latest[0] = info
                        news.push(None)
            except StairwellError as error:
                _log.debug("no news of the volume", disk=disk.name, error=error.message)
            latest[0] = None
            news.push(None)
            await asyncio.sleep(RELISTEN_SECONDS)

    async def verify(self, name: str, *, read_data: bool) -> volume_pb.VerifyReport:
        """Compares the members of the disk's volume."""
        disk = await self._store.disk(name)
        return await self._vmmd.verify_volume(disk.instance_id, disk.name, read_data=read_data)

    async def snapshot(self, name: str, snapshot: str) -> list[volume_pb.RegionSnapshot]:
        """Has all copies of a disk keep, under a name, what it holds now."""
        checked_name(snapshot, "snapshot")
        disk = await self._store.disk(name)
        return await self._vmmd.snapshot(disk.instance_id, disk.name, snapshot)

    async def history(
        self, name: str, after: Timestamp, newest: int
    ) -> list[volume_pb.VolumeSample]:
        """What the disk's machine remembers after a moment, oldest first; `newest` so many samples
        at most, if it is not 0."""
        disk = await self._store.disk(name)
        return await self._vmmd.volume_history(disk.instance_id, disk.name, after, newest)

    async def extents(self, name: str) -> list[volume_pb.RegionExtents]:
        """What is known of the extents of a disk's members; nothing while no machine answers."""
        disk = await self._store.disk(name)
        try:
            return await self._vmmd.volume_extents(disk.instance_id, disk.name)
        except StairwellError as error:
            _log.debug("no map of the volume", disk=disk.name, error=error.message)
            return []

    async def watch_extents(self, name: str) -> AsyncGenerator[list[volume_pb.RegionExtents], None]:
        """The same, then all regions at each change, with the columns that changed: all of them
        after a time in which no machine answered. Ends with NotFoundError when the disk is gone."""
        away = False
        while True:
            disk = await self._store.disk(name)
            try:
                news = self._vmmd.watch_extents(disk.instance_id, disk.name)
                async with aclosing(news):
                    async for regions in news:
                        away = not regions
                        yield regions
            except StairwellError as error:
                _log.debug("no map of the volume", disk=disk.name, error=error.message)
            if not away:
                away = True
                yield []
            await asyncio.sleep(RELISTEN_SECONDS)

    async def _volume(self, disk: DiskRecord) -> volume_pb.VolumeInfo | None:
        """What the machine says now, if it says something soon."""
        try:
            return await self._vmmd.get_volume_info(
                disk.instance_id, disk.name, seconds=GLANCE_SECONDS
            )
        except StairwellError as error:
            _log.debug("no word of the volume", disk=disk.name, error=error.message)
            return None

    async def _view(self, disk: DiskRecord, volume: volume_pb.VolumeInfo | None) -> DiskView:
        newest = await self._store.newest_replacement(disk.key)
        running = newest is not None and not newest.state.ended
        scrubs = self._scrubs.fresh(await self._store.scrubs(disk.key))
        return DiskView(disk, volume, newest.id if newest is not None and running else None, scrubs)
