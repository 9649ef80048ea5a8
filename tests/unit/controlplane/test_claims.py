"""Leases are kept while the database answers, and given up in time when it does not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from controlplane.claims import Claims, Driver
from controlplane.core.leases import Kind, Lease, LeaseLostError
from stairlib.model.errors import NotFoundError, UnavailableError

SECONDS = 0.2


class Leases:
    """A database's side of leases that a test moves by hand."""

    lease_seconds: float | None = SECONDS

    def __init__(self) -> None:
        self.free: list[Lease] = []
        self.granted: list[Lease] = []
        self.released: list[Lease] = []
        self.away = False
        self.let_go = asyncio.Event()
        self.clock = asyncio.get_running_loop().time

    def _asked(self) -> None:
        if self.away:
            raise UnavailableError("away", reason="STORE_UNAVAILABLE")

    def lease(self, key: str, epoch: int = 1) -> Lease:
        return Lease(Kind.SCRUB, key, epoch, self.clock() + SECONDS)

    async def claim_leases(self, limit: int) -> list[Lease]:
        self._asked()
        taken, self.free = self.free[:limit], self.free[limit:]
        self.granted += taken
        return taken

    async def renew_leases(self) -> list[Lease]:
        self._asked()
        return [self.lease(each.key, each.epoch) for each in self.granted]

    async def release_leases(self, leases: Any) -> None:
        self._asked()
        self.released += leases
        self.let_go.set()


class Told:
    """A driver that notes what it is told."""

    def __init__(self) -> None:
        self.taken: asyncio.Queue[Lease] = asyncio.Queue()
        self.dropped: asyncio.Queue[Lease] = asyncio.Queue()
        self.failures: list[Exception] = []

    async def take(self, lease: Lease) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.taken.put_nowait(lease)

    async def drop(self, lease: Lease) -> None:
        self.dropped.put_nowait(lease)


async def started(store: Leases) -> tuple[Claims, Told]:
    told = Told()
    claims = Claims(store, store.clock)  # type: ignore[arg-type]
    claims.serve(Kind.SCRUB, Driver(told.take, told.drop))
    await claims.start()
    return claims, told


async def test_kept_beyond_its_first_time_while_it_is_renewed() -> None:
    store = Leases()
    store.free = [store.lease("a")]
    claims, told = await started(store)
    async with asyncio.timeout(20):
        assert (await told.taken.get()).key == "a"
    await asyncio.sleep(SECONDS * 3)
    claims.require(Kind.SCRUB, "a", 1)
    assert told.dropped.empty()
    await claims.halt()
    await claims.stop()
    assert [each.key for each in store.released] == ["a"]


async def test_given_up_while_the_database_is_away_and_taken_again_after() -> None:
    store = Leases()
    store.free = [store.lease("a")]
    claims, told = await started(store)
    store.away = True
    async with asyncio.timeout(20):
        assert (await told.dropped.get()).key == "a"
        with pytest.raises(LeaseLostError):
            claims.require(Kind.SCRUB, "a", 1)
        store.granted, store.free = [], [store.lease("a", 2)]
        store.away = False
        assert (await told.taken.get()).epoch == 1
        assert (await told.taken.get()).epoch == 2
    await claims.halt()


async def test_what_another_has_taken_is_dropped_at_the_next_renewal() -> None:
    store = Leases()
    store.free = [store.lease("a")]
    claims, told = await started(store)
    store.granted = []
    async with asyncio.timeout(20):
        assert (await told.dropped.get()).key == "a"
    await claims.halt()


async def test_one_that_cannot_begin_yet_is_told_again_and_one_that_is_gone_is_not() -> None:
    store = Leases()
    claims, told = await started(store)
    told.failures = [UnavailableError("away"), NotFoundError("scrub", "b")]
    store.free = [store.lease("a"), store.lease("b")]
    claims.wake()
    async with asyncio.timeout(20):
        assert (await told.taken.get()).key == "a"
        await store.let_go.wait()
    assert [each.key for each in store.released] == ["b"]
    await claims.halt()


async def test_one_that_fails_as_nobody_foresaw_holds_up_no_other_and_is_tried_again() -> None:
    store = Leases()
    claims, told = await started(store)
    told.failures = [ValueError("notes of something else")]
    store.free = [store.lease("a"), store.lease("b")]
    claims.wake()
    async with asyncio.timeout(20):
        assert [(await told.taken.get()).key for _ in range(2)] == ["b", "a"]
    assert claims.epoch(Kind.SCRUB, "a") == claims.epoch(Kind.SCRUB, "b") == 1
    await claims.halt()


async def test_alone_with_its_store_it_keeps_everything() -> None:
    store = Leases()
    store.lease_seconds = None
    store.free = [Lease(Kind.SCRUB, "a", 1)]
    claims, told = await started(store)
    assert told.taken.get_nowait().key == "a"
    store.away = True
    await asyncio.sleep(SECONDS * 2)
    claims.require(Kind.SCRUB, "a", 1)
    await claims.stop()
