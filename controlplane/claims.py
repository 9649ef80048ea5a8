"""Claims leases and keeps them: what this control plane drives, and what it has to stop driving.

One task. It renews what is held well before its time is over, takes what nobody holds (what a
control plane that died has left, once its lease has ended), and tells those who drive. Where one
control plane has the store for itself, everything is taken at the start and kept.

A process that was stopped, or lost its database, for longer than a lease finds on waking that its
own clock says so, before it acts: `require` is asked before each effect, and every change of a
leased record names its epoch to the store.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass

from controlplane.core.leases import RENEWALS, Kind, Lease, LeaseBook
from controlplane.store.base import LeaseStore
from controlplane.store.sql_store import steady
from stairlib.model.errors import NotFoundError, StairwellError
from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)

# Leases of each kind that are taken in one round. More wait for the next.
CLAIMS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Driver:
    """Who drives one kind: `take` begins with a record, `drop` stops at once and stores nothing."""

    take: Callable[[Lease], Awaitable[None]]
    drop: Callable[[Lease], Awaitable[None]]


class Claims:
    """See the module."""

    def __init__(self, store: LeaseStore, clock: Callable[[], float] = steady) -> None:
        self._store = store
        self._clock = clock
        self._book = LeaseBook()
        self._drivers: dict[Kind, Driver] = {}
        self._freed: list[Lease] = []
        self._untold: list[Lease] = []
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def serve(self, kind: Kind, driver: Driver) -> None:
        """Names who drives a kind; before `start`."""
        self._drivers[kind] = driver

    async def start(self) -> None:
        """Takes what is free, and from then on keeps it and looks for more."""
        await self._take()
        if self._store.lease_seconds is not None:
            # An empty context: it is no part of whatever starts it.
            self._task = asyncio.create_task(self._run(), name="leases", context=Context())

    async def halt(self) -> None:
        """Takes nothing more; before the drivers stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def stop(self) -> None:
        """Lets everything go, so that others take over at once; after the drivers have stopped."""
        with contextlib.suppress(StairwellError):
            await self._store.release_leases([*self._book.held(), *self._freed])

    def wake(self) -> None:
        """Somebody let leases go: looks for them now."""
        self._woken.set()

    def hold(self, lease: Lease) -> None:
        """Keeps a lease that came with a new record."""
        self._book.hold(lease)

    def let_go(self, kind: Kind, key: str, epoch: int) -> None:
        """Keeps it no longer: its record has ended, or is gone."""
        lease = self._book.let_go(kind, key, epoch)
        if lease is not None and self._store.lease_seconds is not None:
            self._freed.append(lease)

    def epoch(self, kind: Kind, key: str) -> int | None:
        """The epoch under which it is driven here; None when it is not."""
        return self._book.epoch(kind, key, self._clock())

    def require(self, kind: Kind, key: str, epoch: int) -> None:
        """LeaseLostError unless it is driven here under this epoch, now."""
        self._book.require(kind, key, epoch, self._clock())

    async def _run(self) -> None:
        assert self._store.lease_seconds is not None
        pause = self._store.lease_seconds / RENEWALS
        while True:
            left = self._book.next_expiry() - self._clock()
            await self._wait(max(0.0, min(pause, left)))
            # What ended while this process was stopped is dropped before anything else.
            await self._drop(self._book.expired(self._clock()))
            try:
                await self._renew()
                await self._take()
            except StairwellError as error:
                _log.warning("leases cannot be renewed", error=error.message)
                await self._drop(self._book.expired(self._clock()))
            except Exception:  # noqa: BLE001 - the task must outlive whatever it meets
                _log.exception("leases stumbled")

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        self._woken.clear()

    async def _renew(self) -> None:
        freed, self._freed = self._freed, []
        try:
            if freed:
                await self._store.release_leases(freed)
        except StairwellError:
            self._freed += freed
            raise
        asked = self._book.held()
        if asked:
            granted = await self._store.renew_leases()
            await self._drop(self._book.renewed(asked, granted))

    async def _take(self) -> None:
        for lease in [*self._untold, *await self._store.claim_leases(CLAIMS_MAX)]:
            self._book.hold(lease)
            await self._begin(lease)

    async def _begin(self, lease: Lease) -> None:
        """Tells the driver; one that cannot begin now (the store is away) is told again."""
        self._untold = [each for each in self._untold if each != lease]
        try:
            self._book.require(lease.kind, lease.key, lease.epoch, self._clock())
            await self._drivers[lease.kind].take(lease)
        except NotFoundError:
            self.let_go(lease.kind, lease.key, lease.epoch)
        except Exception as error:
            # Whatever it is: the others that were taken begin, and this one is tried again.
            if self._store.lease_seconds is None:
                raise
            if isinstance(error, StairwellError):
                _log.warning("cannot be taken up yet", key=lease.key, error=error.message)
            else:
                _log.exception("cannot be taken up yet", key=lease.key)
            if self.epoch(lease.kind, lease.key) == lease.epoch:
                self._untold.append(lease)

    async def _drop(self, lost: list[Lease]) -> None:
        for lease in lost:
            _log.warning("lease lost", kind=lease.kind, key=lease.key, epoch=lease.epoch)
            await self._drivers[lease.kind].drop(lease)
