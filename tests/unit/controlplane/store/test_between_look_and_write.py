"""What another control plane stores between one's look at a row and one's own write.

The meeting is made, not waited for: the first store's transaction stops before its first statement
of a kind, until the second store's has been committed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

import pytest
import sqlalchemy

from controlplane.core.drain import Drain
from controlplane.store.place import Place
from controlplane.store.sql_store import SqlStore
from stairlib.model.errors import StairwellError, StateError
from tests.postgres_server import PostgresServer
from tests.unit.controlplane.core.records_made import VOLUME, disk, instance, region, volume

pytestmark = pytest.mark.postgres

_T = TypeVar("_T")
SECONDS = 30.0


@pytest.fixture
async def two(postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[tuple[SqlStore, SqlStore]]:
    place = Place(tmp_path, url=postgres.new_database(), key_text="5a" * 32, lease_seconds=60.0)
    first, second = await SqlStore.open(place), await SqlStore.open(place)
    yield first, second
    await first.close()
    await second.close()


class Stopped:
    """A store's transaction at the statement before which it stops, once."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._there = threading.Event()
        self._go = threading.Event()

    def before(self, _connection: object, _cursor: object, statement: str, *_more: object) -> None:
        """Called by SQLAlchemy before each statement, on the store's thread."""
        writes = statement.startswith(("INSERT INTO " + self._table, "UPDATE " + self._table))
        if writes and not self._there.is_set():
            self._there.set()
            assert self._go.wait(SECONDS), "the other store's transaction did not end"

    async def until_there(self) -> None:
        """Until the transaction has looked, and is about to write."""
        assert await asyncio.to_thread(self._there.wait, SECONDS), "it never came to its write"

    def go(self) -> None:
        """It writes now."""
        self._go.set()


@contextmanager
def stopped_before_it_writes(store: SqlStore, table: str) -> Iterator[Stopped]:
    engine = store._opened.engine
    stopped = Stopped(table)
    sqlalchemy.event.listen(engine, "before_cursor_execute", stopped.before)
    try:
        yield stopped
    finally:
        stopped.go()
        sqlalchemy.event.remove(engine, "before_cursor_execute", stopped.before)


async def meet(
    two: tuple[SqlStore, SqlStore], table: str, call: Callable[[SqlStore], Awaitable[_T]]
) -> tuple[_T | StairwellError, _T]:
    """What the one that was stopped came to, and the one that was between its look and write."""
    with stopped_before_it_writes(two[0], table) as stopped:
        slow = asyncio.ensure_future(call(two[0]))
        await stopped.until_there()
        try:
            quick = await call(two[1])
        finally:
            stopped.go()
            (came_to,) = await asyncio.gather(slow, return_exceptions=True)
    if isinstance(came_to, BaseException) and not isinstance(came_to, StairwellError):
        raise came_to
    return came_to, quick


async def test_a_target_that_nobody_registered_becomes_a_member_of_one_volume(
    two: tuple[SqlStore, SqlStore],
) -> None:
    asked: list[UUID] = []

    async def add(store: SqlStore) -> None:
        asked.append(uuid4())
        side = len(asked)
        owner = instance(id=uuid4(), name=f"vm{side}")
        spec = volume(region(("t:1", f"x:{side}", f"y:{side}")), id=asked[-1])
        one = disk(key=uuid4(), name=owner.name, instance_id=owner.id, construction=spec)
        await store.add_instance(owner, [one])

    slow, _quick = await meet(two, "fleet ", add)
    assert isinstance(slow, StateError), "one downstairs serves two volumes"
    assert slow.reason == "TARGET_IN_USE"
    member = await two[0].downstairs("t:1")
    assert member is not None
    assert member.volume_id == asked[1]


async def test_the_first_generation_of_a_volume_is_handed_out_once(
    two: tuple[SqlStore, SqlStore],
) -> None:
    async def hand_out(store: SqlStore) -> int:
        return await store.hand_out_generation(VOLUME, 3)

    slow, quick = await meet(two, "generations ", hand_out)
    assert (slow, quick) == (4, 3)


async def test_what_was_handed_out_is_not_lowered_by_the_end_of_a_creation(
    two: tuple[SqlStore, SqlStore],
) -> None:
    owner = instance()
    await two[0].add_instance(owner, [])

    async def confirm_or_hand_out(store: SqlStore) -> None:
        if store is two[0]:
            await store.confirm_instance(owner.id, {VOLUME: 2})
        else:
            await store.hand_out_generation(VOLUME, 9)

    await meet(two, "generations ", confirm_or_hand_out)
    assert await two[1].hand_out_generation(VOLUME, 0) == 10


async def test_a_target_has_one_drain_that_runs(two: tuple[SqlStore, SqlStore]) -> None:
    async def drain(store: SqlStore) -> Drain:
        return await store.begin_drain(Drain(uuid4(), "h1", 1.0, 1.0))

    slow, quick = await meet(two, "drains ", drain)
    assert slow == quick
    assert await two[0].list_drains() == [quick]
