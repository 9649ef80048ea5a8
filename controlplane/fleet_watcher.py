"""Looks at the downstairs of the fleet: all of them now and then, some of them when asked.

A look is one question with a deadline. What it found is stored, so that it can be told without
asking; who decides something looks anew. Invariants: a downstairs that hangs costs the others
nothing but its own deadline; a failure of a look is what it found, and ends nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextvars import Context

from controlplane.core.fleet import FleetEntry, Look, looked
from controlplane.core.preflight import RegionFacts
from controlplane.core.records import DiskRecord, targets
from controlplane.peers.downstairs import Fleet
from controlplane.store.base import Store
from stairlib.model.construction import RegionOptions
from stairlib.model.errors import StairwellError
from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)

# Between two looks at the whole fleet. Each is a new connection; decisions look for themselves.
PERIOD_SECONDS = 30.0
# Questions under way at a time.
AT_ONCE = 32

Found = tuple[Look, RegionFacts | None]


class FleetWatcher:
    """See the module."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        *,
        clock: Callable[[], float] = time.time,
        pace: float = 1.0,
    ) -> None:
        """`pace` scales the time between looks; tests make it small."""
        self._store = store
        self._fleet = fleet
        self._clock = clock
        self._pace = pace
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Looks from now on."""
        self._task = asyncio.create_task(self._run(), name="fleet watcher", context=Context())

    async def stop(self) -> None:
        """Looks no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self, entries: Iterable[FleetEntry]) -> dict[str, Found]:
        """What each says now, by address; stored as well."""
        asked = list(entries)
        options = _options(await self._store.list_disks(limit=0))
        found = await asyncio.gather(*(self._one(each, options) for each in asked))
        await self._store.save_looks(look for look, _facts in found)
        return {look.address: (look, facts) for look, facts in found}

    async def _one(self, entry: FleetEntry, options: dict[str, tuple[RegionOptions, int]]) -> Found:
        address = entry.record.address
        member = options.get(address)
        async with self._slots:
            try:
                facts = await self._fleet.region(
                    address,
                    field="address",
                    options=member[0] if member is not None else None,
                    slot=member[1] if member is not None else None,
                )
            except StairwellError as error:
                return looked(entry.record, self._clock(), None, error.message), None
        return looked(entry.record, self._clock(), facts, ""), facts

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_SECONDS * self._pace)
            try:
                await self.look(await self._store.fleet())
            except StairwellError as error:
                _log.warning("the fleet was not looked at", error=error.message)
            except Exception:  # noqa: BLE001 - the next look is due all the same
                _log.exception("the fleet was not looked at")


def _options(disks: Iterable[DiskRecord]) -> dict[str, tuple[RegionOptions, int]]:
    """How each member is asked: the options of its region, and its slot there."""
    return {
        address: (region.options, region.options.targets.index(address))
        for disk in disks
        for _path, address, region in targets(disk.construction)
    }
