"""Tells the machines how fast the repairs of their volumes may go, and keeps it told.

What is wanted of a volume is stored; the machine forgets it with its process. So it is sent when it
changes, when a machine is seen, and before and while a replacement repairs. With a rate for the
fleet, each running replacement has a share of it, computed anew every few seconds and whenever one
comes or goes. Invariants: what is stored is what is told; a share that falls is told before one
that rises.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self
from uuid import UUID

from controlplane.core.records import DiskRecord
from controlplane.core.repair_shares import Need, RepairWish, WishChange, changed, shares
from controlplane.core.replacement import Replacement
from controlplane.peers.vmmd import Vmmd
from controlplane.store.base import Store
from stairlib.model.errors import StairwellError
from stairlib.telemetry.logs import get_logger
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb

_log = get_logger(__name__)

# A change of the fleet's rate, and repairs that another control plane drives, are felt after this.
SHARE_SECONDS = 1.0


class RepairLimiter:
    """See the module."""

    def __init__(self, store: Store, vmmd: Vmmd, *, pace: float = 1.0) -> None:
        self._store = store
        self._vmmd = vmmd
        self._pace = pace
        self._wishes: dict[UUID, RepairWish] = {}
        self._repairs: dict[UUID, Replacement] = {}
        # By volume: at most one replacement moves on each.
        self._shares: dict[UUID, int] = {}
        self._lock = asyncio.Lock()
        self._poked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """From now on shares follow the repairs that run."""
        self._wishes = await self._store.repair_wishes()
        self._task = asyncio.create_task(self._follow(), name="repair shares")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends it; what was told stays in force."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def wish_of(self, volume_id: UUID) -> RepairWish:
        """What is wanted of a volume's repairs."""
        return self._wishes.get(volume_id, RepairWish())

    def rate_of(self, record: Replacement) -> volume_pb.RepairRate | None:
        """How fast its repair may go and why, as the machine last told; only what is wanted before
        that, and nothing once it has ended."""
        if record.state.ended:
            return None
        told = self._vmmd.rates.get((record.instance_id, record.disk))
        if told is not None and record.id in self._repairs:
            return told
        return volume_pb.RepairRate(limits=limits_message(self.wish_of(record.volume_id), 0))

    async def change(self, disk: DiskRecord, change: WishChange) -> tuple[RepairWish, bool]:
        """Stores what is wanted of a disk, and tells its machine; whether that was told, else it
        will be as soon as it is there."""
        async with self._lock:
            self._wishes = await self._store.repair_wishes()
            wish = changed(self.wish_of(disk.volume_id), change)
            await self._store.save_repair_wish(disk.volume_id, wish)
            self._wishes[disk.volume_id] = wish
        try:
            await self._tell(disk.instance_id, disk.name, disk.volume_id)
        except StairwellError as error:
            _log.info("repair limits not told yet", disk=disk.name, error=error.message)
            return wish, False
        finally:
            self.poke()
        return wish, True

    async def send(self, record: Replacement) -> None:
        """Tells the machine of a replacement that is about to be applied, or goes on. Where nothing
        is wanted it keeps what it has."""
        await self._divide()
        if record.volume_id in self._wishes or record.volume_id in self._shares:
            await self._tell(record.instance_id, record.disk, record.volume_id)

    @asynccontextmanager
    async def repairing(self, record: Replacement) -> AsyncIterator[None]:
        """Its share is its own while this lasts."""
        self._repairs[record.id] = record
        try:
            await self.send(record)
            yield
        finally:
            del self._repairs[record.id]
            self.poke()

    async def machine_seen(self, instance_id: UUID) -> None:
        """A machine is there, maybe a new process of it: its disks are told what is wanted."""
        # Another control plane may have been asked while the machine was away.
        await self._reread()
        for disk in await self._store.list_disks(instance_id=instance_id, limit=0):
            if disk.volume_id in self._wishes:
                with contextlib.suppress(StairwellError):
                    await self._tell(instance_id, disk.name, disk.volume_id)

    def poke(self) -> None:
        """The shares are to be looked at now."""
        self._poked.set()

    async def _reread(self) -> None:
        """What is stored; not while a wish is changed, which what was read before would undo."""
        async with self._lock:
            self._wishes = await self._store.repair_wishes()

    async def _tell(self, instance_id: UUID, disk: str, volume_id: UUID) -> None:
        limits = limits_message(self.wish_of(volume_id), self._shares.get(volume_id, 0))
        await self._vmmd.set_repair_limits(instance_id, disk, limits)

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SHARE_SECONDS * self._pace):
                    await self._poked.wait()
            self._poked.clear()
            try:
                await self._reread()
                await self._divide()
            except Exception:  # noqa: BLE001 - looked at again in a moment
                _log.exception("repair shares not divided")
                await asyncio.sleep(SHARE_SECONDS * self._pace)

    async def _divide(self) -> None:
        """Shares as of now; who has another one than before is told."""
        async with self._lock:
            rate = (await self._store.fleet_policy()).repair_bytes_per_second
            found: dict[UUID, int] = {}
            if rate:
                needs = [
                    Need(volume_id, left, self.wish_of(volume_id).bytes_per_second_max)
                    for volume_id, left in await self._store.repairs_left()
                ]
                found = shares(rate, needs)
            before, self._shares = self._shares, found
            moves = [
                (before.get(record.volume_id, 0), found.get(record.volume_id, 0), record)
                for record in self._repairs.values()
            ]
            # Having no share at all is the highest of rates.
            moves.sort(key=lambda each: not each[1] or 0 < each[0] < each[1])
            for old, new, record in moves:
                if old == new:
                    continue
                try:
                    await self._tell(record.instance_id, record.disk, record.volume_id)
                except StairwellError as error:
                    # Told again when the machine is there: its replacement waits for it.
                    _log.info("repair share not told", disk=record.disk, error=error.message)


def limits_message(wish: RepairWish, share: int) -> volume_pb.RepairLimits:
    """What is wanted, as the machine takes it."""
    return volume_pb.RepairLimits(
        bytes_per_second_max=wish.bytes_per_second_max,
        bytes_per_second_min=wish.bytes_per_second_min,
        extents_in_flight_max=wish.extents_in_flight_max,
        adaptive=wish.adaptive,
        fleet_share=share,
    )
