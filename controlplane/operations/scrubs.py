"""Scrubs: start one or change its rate, stop it. What may be scrubbed is decided by the core."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID
from weakref import WeakValueDictionary

from controlplane.core import scrub as core
from controlplane.core.leases import Kind
from controlplane.core.parents import volume_words, without_parent
from controlplane.core.records import DiskRecord
from controlplane.core.repair_shares import RATE_MAX
from controlplane.core.scrub import Scrub, State
from controlplane.detached import Detached
from controlplane.scrub_driver import ScrubDriver
from controlplane.store.base import Store
from controlplane.store.sql_leases import SEPARATOR
from controlplane.store.sql_scrubs import lease_key
from controlplane.words import Body, Words
from stairlib.model.errors import FieldViolation, InvalidRequestError, NotFoundError, StateError
from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)

_SET_LIMIT = "set_limit"
_HALT = "halt"


@dataclass(frozen=True, slots=True)
class ScrubWish:
    """A wish to fill the volume at `path` of a disk; zero means no limit."""

    name: str
    path: str
    bytes_per_second_max: int


class Scrubs:
    """See the module. Requests for one disk pass one after another."""

    def __init__(
        self,
        store: Store,
        driver: ScrubDriver,
        words: Words,
        detached: Detached,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._driver = driver
        self._words = words
        words.serve(Kind.SCRUB, _SET_LIMIT, self._set_limit_here)
        words.serve(Kind.SCRUB, _HALT, self._halt_here)
        self._detached = detached
        self._clock = clock
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    async def start(self, wish: ScrubWish) -> Scrub:
        """The scrub, begun now or running or done before; every refusal changes nothing."""
        if wish.bytes_per_second_max > RATE_MAX:
            why = f"is above {RATE_MAX}; use 0 for no limit"
            raise InvalidRequestError(
                f"the limit {why}", (FieldViolation("bytes_per_second_max", why, "TOO_LARGE"),)
            )
        return await self._detached.run(self._start(wish))

    async def _start(self, wish: ScrubWish) -> Scrub:
        disk = await self._store.disk(wish.name)
        async with self._locks.setdefault(disk.key, asyncio.Lock()):
            disk = await self._store.disk(str(disk.volume_id))
            known = await self._newest(disk, wish.path)
            if known is not None and not known.state.ended:
                if known.bytes_per_second_max == wish.bytes_per_second_max:
                    return known
                return await self._limited(disk, known, wish.bytes_per_second_max)
            if known is not None and known.state is State.DONE:
                # The parent was dropped with it, and a volume never gains one.
                return known
            await self._check(disk, wish.path)
            return await self._begin(disk, wish, known)

    async def _check(self, disk: DiskRecord, path: str) -> None:
        """Refuses what could not come to a good end."""
        without_parent(disk.construction, path, disk=disk.name)
        if disk.read_only:
            raise StateError(
                f"disk {disk.name!r} is read-only: nothing can be copied into {volume_words(path)}",
                reason="DISK_READ_ONLY",
                disk=disk.name,
            )
        instance = await self._store.instance(str(disk.instance_id))
        if instance.state.ended:
            raise StateError(
                f"instance {instance.name!r} is {instance.state}: no machine runs the disk any"
                " more; delete the instance and create it again",
                reason="INSTANCE_ENDED",
                instance=instance.name,
                state=instance.state,
            )

    async def _begin(self, disk: DiskRecord, wish: ScrubWish, known: Scrub | None) -> Scrub:
        now, limit = self._clock(), wish.bytes_per_second_max
        if known is None:
            record = Scrub(
                disk.key, disk.name, disk.instance_id, disk.volume_id, wish.path,
                created_at=now, updated_at=now, bytes_per_second_max=limit,
            )  # fmt: skip
        else:
            record, _ = core.step(known, core.Started(at=now, bytes_per_second_max=limit))
        await self._driver.begin_traced(record, await self._store.begin_scrub(record))
        _log.info("scrub recorded", disk=disk.name, path=wish.path)
        return record

    async def stop(self, name: str, path: str) -> Scrub:
        """The scrub, which runs no more; NotFoundError when the volume never had one."""
        return await self._detached.run(self._stop(name, path))

    async def _stop(self, name: str, path: str) -> Scrub:
        disk = await self._store.disk(name)
        async with self._locks.setdefault(disk.key, asyncio.Lock()):
            known = await self._newest(disk, path)
            if known is None:
                text = f"{volume_words(path)} of disk {disk.name!r} has had no scrub"
                raise NotFoundError("scrub", path, text)
            if not known.state.ended:
                known = await self._halted(disk, known)
            if known.state is State.DONE:
                raise StateError(
                    f"the scrub of {volume_words(path)} of disk {disk.name!r} is done and its"
                    " parent dropped: there is nothing to stop",
                    reason="SCRUB_DONE",
                    disk=disk.name,
                    path=path,
                )
            return known

    async def _limited(self, disk: DiskRecord, known: Scrub, limit: int) -> Scrub:
        """Has the one who drives it change the rate."""
        body = {"bytes_per_second_max": limit}
        if not await self._words.tell(Kind.SCRUB, lease_key(known), _SET_LIMIT, body):
            return await self._driver.set_limit(known, limit)
        return await self._newest(disk, known.path) or known

    async def _halted(self, disk: DiskRecord, known: Scrub) -> Scrub:
        """Has the one who drives it end it."""
        # When nobody drives it any more, it has ended by itself meanwhile.
        await self._words.tell(Kind.SCRUB, lease_key(known), _HALT, {})
        return await self._newest(disk, known.path) or known

    async def _set_limit_here(self, key: str, body: Body) -> None:
        await self._driver.set_limit(await self._at(key), body["bytes_per_second_max"])

    async def _halt_here(self, key: str, _body: Body) -> None:
        await self._driver.halt(await self._at(key))

    async def _at(self, key: str) -> Scrub:
        """The stored scrub of a lease's key."""
        disk_key, _, path = key.partition(SEPARATOR)
        found = [each for each in await self._store.scrubs(UUID(disk_key)) if each.path == path]
        if not found:
            raise NotFoundError("scrub", path)
        return found[0]

    async def _newest(self, disk: DiskRecord, path: str) -> Scrub | None:
        """The volume's newest scrub as it is now."""
        stored = [each for each in await self._store.scrubs(disk.key) if each.path == path]
        return next(iter(self._driver.fresh(stored)), None)
