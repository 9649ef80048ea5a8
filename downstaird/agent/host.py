"""The agent: what the host is to have, kept durable, and a keeper for each region at work.

Invariants: changes of the intent come one after another, and count once they are stored; a change
that was begun is carried through even if whoever asked for it goes away; every region for which
there is something to do has exactly one keeper.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from downstaird.agent.core.intent import (
    PORTS_EACH,
    Intent,
    Limits,
    Record,
    Wanted,
    already_there,
    check_room,
    destroyed,
    free_ports,
    moved,
    no_ports,
    requested,
    snapshot_asked,
    snapshot_moved,
    snapshot_unasked,
)
from downstaird.agent.core.region_states import RegionEvent, RegionState
from downstaird.agent.core.snapshot_wishes import Wish, WishEvent, WishState, wish_named
from downstaird.agent.core.upkeep import ProcessState
from downstaird.agent.intent_store import REGIONS, IntentStore
from downstaird.agent.keeper import Keeper, Turns
from downstaird.agent.snapshots import Seen
from downstaird.launching import CREATIONS_AT_ONCE, Launcher
from stairlib.model.errors import LimitError, UnavailableError
from stairlib.model.snapshot import checked_name
from stairlib.runtime.limits import MIB, STOP_GRACE_SECONDS
from stairlib.runtime.ports import can_listen
from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)

# Each reads another host at its full speed; more at once would only take it from guests.
CLONES_AT_ONCE = 2
# A process takes a second of a processor to come up.
STARTS_AT_ONCE = max(4, 2 * (os.cpu_count() or 1))
# The regions that are there need room for their writes more than a new one does.
FREE_BYTES_MIN = 64 * MIB
_NOTHING_TO_DO = (RegionState.DESTROYED, RegionState.FAILED)
# The unit of st_blocks, whatever the file system's own is.
_STAT_BLOCK = 512
_WILDCARDS = frozenset({"0.0.0.0", "::"})


@dataclass(frozen=True, slots=True)
class HostOptions:
    """What an agent is for. `advertise` empty: the address that regions listen on, or this host's
    name. `failure_domain`: what fails together with this host."""

    root: Path
    limits: Limits
    launcher: Launcher
    advertise: str = ""
    failure_domain: str = ""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the host has to give now. Bytes are of the regions' file system."""

    total_bytes: int
    free_bytes: int
    provisioned_bytes: int
    ports_free: int
    regions: int
    running: int
    failed: int


class Host:
    """One root's regions. Commands are taken after `start`."""

    def __init__(self, options: HostOptions) -> None:
        self.options = options
        self.intent = Intent()
        self.keepers: dict[UUID, Keeper] = {}
        self._store = IntentStore(options.root)
        self._turn = asyncio.Lock()
        self._turns = Turns(
            creations=asyncio.Semaphore(CREATIONS_AT_ONCE),
            clones=asyncio.Semaphore(CLONES_AT_ONCE),
            starts=asyncio.Semaphore(STARTS_AT_ONCE),
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._next = asyncio.Event()
        self._closing = False

    # ---- from start to end

    def start(self) -> None:
        """Locks the root and goes on with what is wanted of it. StateError, DataError."""
        self.intent = self._store.open()
        self._warn_of_strangers()
        self._follow()

    async def close(self, *, stop_regions: bool) -> None:
        """Ends the keepers; with `stop_regions` the regions' processes too, which are left running
        otherwise."""
        self._closing = True
        tasks = set(self._tasks)
        if stop_regions and tasks:
            for keeper in self.keepers.values():
                keeper.stop()
            await asyncio.wait(tasks, timeout=2 * STOP_GRACE_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with self._turn:
            self._store.close()

    def _warn_of_strangers(self) -> None:
        known = {str(record.id) for record in self.intent.present()}
        for path in (self.options.root / REGIONS).iterdir():
            if path.name not in known:
                _log.warning("left alone: nobody asked for it", path=str(path))

    # ---- what is asked

    async def create(self, wanted: Wanted) -> Record:
        """Its record, once it is durable that the region is wanted; the same for the same again.
        AlreadyExistsError, StateError, LimitError."""

        def change(intent: Intent) -> Intent:
            if already_there(intent, wanted) is not None:
                return intent
            check_room(intent, wanted, self.options.limits)
            self._check_free_space()
            return requested(intent, wanted, self._free_port(intent))

        return (await self._changed(change, more=True)).one(wanted.id)

    async def destroy(self, region: UUID, *, with_snapshots: bool) -> Record:
        """Its record, once it is durable that the region is to go. NotFoundError, StateError
        REGION_HAS_SNAPSHOTS, UnavailableError SNAPSHOTS_UNKNOWN."""
        there: frozenset[str] = frozenset()
        if not with_snapshots:
            try:
                there = frozenset(await self.snapshots(region))
            except UnavailableError as error:
                raise UnavailableError(
                    f"{error.message}; or say with_snapshots to destroy it whatever it has",
                    reason="SNAPSHOTS_UNKNOWN",
                    region=str(region),
                ) from error

        def change(intent: Intent) -> Intent:
            return destroyed(intent, region, there, with_snapshots=with_snapshots)

        return (await self._changed(change)).one(region)

    async def create_snapshot(self, region: UUID, name: str) -> Wish:
        """Its record, once it is durable that the snapshot is wanted. InvalidRequestError, and as
        core.intent.snapshot_asked."""
        checked_name(name, "name")
        after = await self._changed(lambda intent: snapshot_asked(intent, region, name), more=True)
        wish = wish_named(after.one(region).snapshots, name)
        assert wish is not None
        return wish

    async def delete_snapshot(self, region: UUID, name: str) -> Wish:
        """Its record, once it is durable that the snapshot is to go. InvalidRequestError, and as
        core.intent.snapshot_unasked."""
        checked_name(name, "name")
        after = await self._changed(lambda intent: snapshot_unasked(intent, region, name))
        return wish_named(after.one(region).snapshots, name) or Wish(name, WishState.GONE)

    async def snapshots(self, region: UUID) -> Mapping[str, Seen]:
        """Those the region has, looked at now where its process runs. NotFoundError,
        UnavailableError SNAPSHOTS_UNKNOWN."""
        record, keeper = self.intent.one(region), self.keepers.get(region)
        if record.state is not RegionState.CREATED or keeper is None:
            return {}
        return await keeper.list_snapshots()

    def record(self, region: UUID) -> Record:
        """A region's record. NotFoundError."""
        return self.intent.one(region)

    async def move(self, region: UUID, event: RegionEvent, reason: str = "") -> None:
        """Stores that something happened to a region. StairwellError."""
        await self._changed(lambda intent: moved(intent, region, event, reason))

    async def move_snapshot(
        self,
        region: UUID,
        name: str,
        event: WishEvent,
        *,
        flush: tuple[int, int] = (0, 0),
        reason: str = "",
    ) -> None:
        """Stores that something happened to a snapshot. StairwellError."""

        def change(intent: Intent) -> Intent:
            return snapshot_moved(intent, region, name, event, flush=flush, reason=reason)

        await self._changed(change)

    async def used_bytes(self, regions: Iterable[UUID]) -> dict[UUID, int]:
        """What the files of each take on disk."""
        folder = self.options.root / REGIONS
        return await asyncio.to_thread(
            lambda: {region: _used(folder / str(region)) for region in regions}
        )

    @property
    def name(self) -> str:
        """The host's name, as the system has it."""
        return socket.gethostname()

    def address(self, record: Record) -> str:
        """Where requests name the region; empty once it is gone."""
        if not record.port:
            return ""
        host = self.options.advertise or self.options.launcher.host
        host = self.name if host in _WILDCARDS else host
        return f"[{host}]:{record.port}" if ":" in host else f"{host}:{record.port}"

    def facts(self) -> HostFacts:
        """What the host has to give."""
        usage = shutil.disk_usage(self.options.root)
        present = self.intent.present()
        running = [k for k in self.keepers.values() if k.upkeep.state is ProcessState.RUNNING]
        return HostFacts(
            total_bytes=usage.total,
            free_bytes=usage.free,
            provisioned_bytes=self.intent.provisioned,
            ports_free=sum(1 for _ in free_ports(self.intent, self.options.limits.ports)),
            regions=len(present),
            running=len(running),
            failed=sum(record.state is RegionState.FAILED for record in present),
        )

    def next_change(self) -> asyncio.Event:
        """An event that is set at the next change of anything that is told."""
        return self._next

    def changed(self) -> None:
        """Sets it."""
        self._next.set()
        self._next = asyncio.Event()

    # ---- how it is kept

    async def _changed(self, change: Callable[[Intent], Intent], *, more: bool = False) -> Intent:
        """Stores what `change` makes of the intent, and has it carried out. `more`: it asks for
        something that will take room."""
        # Whoever waits may be cancelled; a half-made change would be two writers of one file.
        return await asyncio.shield(self._stored(change, more=more))

    async def _stored(self, change: Callable[[Intent], Intent], *, more: bool) -> Intent:
        async with self._turn:
            after = change(self.intent)
            if after is not self.intent:
                await asyncio.to_thread(self._store.store, after, more=more)
                self.intent = after
                self._follow()
                self.changed()
            return after

    def _follow(self) -> None:
        """A keeper for each region that needs one; the others look again."""
        if self._closing:
            return
        for region, record in self.intent.records.items():
            keeper = self.keepers.get(region)
            if keeper is not None:
                keeper.nudge()
            elif record.state not in _NOTHING_TO_DO:
                self._begin(region)

    def _begin(self, region: UUID) -> None:
        options = self.options
        keeper = Keeper(region, self, options.launcher, options.root, self._turns)
        self.keepers[region] = keeper
        task = asyncio.get_running_loop().create_task(keeper.run())
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(region, done))

    def _ended(self, region: UUID, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        del self.keepers[region]
        self.changed()
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            _log.error("keeper ended by a fault of its own", region=str(region), exc_info=error)
            return
        # It may be wanted otherwise since the keeper looked last.
        self._follow()

    def _check_free_space(self) -> None:
        free = shutil.disk_usage(self.options.root).free
        if free < FREE_BYTES_MIN:
            raise LimitError(
                f"{self.options.root} has {free // MIB} MiB left, less than the "
                f"{FREE_BYTES_MIN // MIB} MiB that a new region must find: choose another host, or "
                "make room",
                reason="NO_SPACE",
                free_bytes=str(free),
            )

    def _free_port(self, intent: Intent) -> int:
        """One that no other program has either. LimitError NO_PORTS."""
        for port in free_ports(intent, self.options.limits.ports):
            if all(can_listen(self.options.launcher.host, port + n) for n in range(PORTS_EACH)):
                return port
        raise no_ports(self.options.limits)


def _used(directory: Path) -> int:
    """Bytes on disk; of those that can be looked at."""
    used = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                used += entry.stat(follow_symlinks=False).st_blocks * _STAT_BLOCK
    return used
