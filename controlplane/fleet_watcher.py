"""Looks at the downstairs of the fleet: all of them now and then, some of them when asked.

A look is one question with a deadline. What it found is stored, so that it can be told without
asking; who decides something looks anew. Invariants: a downstairs that hangs costs the others
nothing but its own deadline; a failure of a look is what it found, and ends nothing; the looks now
and then are spread over their period, since each is a new connection and many at once would hold
up whoever else is answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
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

# Between two looks at one downstairs. Decisions look for themselves.
PERIOD_SECONDS = 30.0
# Of a fleet so large that this is not enough, each is looked at less often: 2000 every 80 s.
LOOKS_PER_SECOND = 25.0
# What was found in so many seconds is stored together.
STORED_SECONDS = 1.0
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
        self._parts: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Looks from now on."""
        self._task = asyncio.create_task(self._run(), name="fleet watcher", context=Context())

    async def stop(self) -> None:
        """Looks no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for part in self._parts:
            part.cancel()
        await asyncio.gather(*self._parts, return_exceptions=True)

    async def look(self, entries: Iterable[FleetEntry]) -> dict[str, Found]:
        """What each says now, by address; stored as well."""
        asked = list(entries)
        options = member_options(await self._store.list_disks(limit=0))
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
            try:
                await self._round()
            except StairwellError as error:
                _log.warning("the fleet was not looked at", error=error.message)
                await asyncio.sleep(PERIOD_SECONDS * self._pace)
            except Exception:  # noqa: BLE001 - the next look is due all the same
                _log.exception("the fleet was not looked at")
                await asyncio.sleep(PERIOD_SECONDS * self._pace)

    async def _round(self) -> None:
        """Begins a look at each of the fleet, evenly spread over a period."""
        entries = await self._store.fleet()
        if not entries:
            await asyncio.sleep(PERIOD_SECONDS * self._pace)
            return
        options = member_options(await self._store.list_disks(limit=0))
        for part, seconds in spread(entries):
            # One that hangs holds up its own part's news, and not the parts after it.
            task = asyncio.create_task(self._part(part, options, seconds * self._pace))
            self._parts.add(task)
            task.add_done_callback(self._parts.discard)
            await asyncio.sleep(seconds * self._pace)

    async def _part(
        self,
        entries: Sequence[FleetEntry],
        options: dict[str, tuple[RegionOptions, int]],
        seconds: float,
    ) -> None:
        """Looks at these, one begun after the other within `seconds`, and stores what was found."""
        try:
            async with asyncio.TaskGroup() as group:
                asked = []
                for entry in entries:
                    await asyncio.sleep(seconds / len(entries))
                    asked.append(group.create_task(self._one(entry, options)))
            await self._store.save_looks(each.result()[0] for each in asked)
        except StairwellError as error:
            _log.warning("looks at the fleet were not stored", error=error.message)
        except Exception:  # noqa: BLE001 - the next look is due all the same
            _log.exception("looks at the fleet were not stored")


def spread(entries: Sequence[FleetEntry]) -> list[tuple[Sequence[FleetEntry], float]]:
    """The fleet in parts that are stored together, and the seconds that each part is given."""
    gap = max(PERIOD_SECONDS / len(entries), 1 / LOOKS_PER_SECOND)
    size = max(1, round(STORED_SECONDS / gap))
    parts = [entries[at : at + size] for at in range(0, len(entries), size)]
    return [(part, gap * len(part)) for part in parts]


def member_options(disks: Iterable[DiskRecord]) -> dict[str, tuple[RegionOptions, int]]:
    """How each member is asked: the options of its region, and its slot there."""
    return {
        address: (region.options, region.options.targets.index(address))
        for disk in disks
        for _path, address, region in targets(disk.construction)
    }
