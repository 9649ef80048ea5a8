"""Transactions that share a commit: each is stored or not by itself, and none before its answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import IntegrityError

from controlplane.store.batching import BATCH_MAX, Batches
from controlplane.store.opening import sqlite_engine


class Table:
    """A table of numbers behind `batches`; counts commits, and fails those it was told to."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.batches = Batches(engine, self.thread)
        self.commits = 0
        self.commits_to_fail = 0
        self.gate = threading.Event()
        event.listen(engine, "commit", self._committing)

    def _committing(self, _connection: Connection) -> None:
        if self.commits_to_fail:
            self.commits_to_fail -= 1
            raise OSError("the disk is full")
        self.commits += 1

    async def add(self, number: int) -> int:
        def work(connection: Connection) -> int:
            connection.execute(text("INSERT INTO numbers VALUES (:n)"), {"n": number})
            return number

        return await self.batches.run(work)

    async def add_both(self, *numbers: int) -> None:
        def work(connection: Connection) -> None:
            for number in numbers:
                connection.execute(text("INSERT INTO numbers VALUES (:n)"), {"n": number})

        await self.batches.run(work)

    async def held(self) -> asyncio.Task[None]:
        """Keeps the thread busy until the gate is opened, so that what comes meanwhile waits."""
        began = threading.Event()

        def work(_connection: Connection) -> None:
            began.set()
            assert self.gate.wait(10)

        task = asyncio.create_task(self.batches.run(work))
        await asyncio.to_thread(began.wait, 10)
        return task

    def numbers(self) -> list[int]:
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT n FROM numbers ORDER BY rowid"))
            return [row.n for row in rows]


@pytest.fixture
async def table(tmp_path: Path) -> AsyncIterator[Table]:
    engine = sqlite_engine(tmp_path / "numbers.sqlite")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE numbers (n INTEGER UNIQUE)"))
    made = Table(engine)
    yield made
    made.thread.shutdown(wait=True)
    engine.dispose()


async def together(table: Table, *numbers: int) -> list[object]:
    """What comes of pieces that are asked for while the thread is busy."""
    holding = await table.held()
    pieces = [asyncio.create_task(table.add(number)) for number in numbers]
    await asyncio.sleep(0)
    table.gate.set()
    await holding
    return await asyncio.gather(*pieces, return_exceptions=True)


async def test_what_waits_shares_a_commit_and_keeps_its_order(table: Table) -> None:
    wanted = list(range(2 * BATCH_MAX))
    assert await together(table, *wanted) == wanted
    assert table.numbers() == wanted
    assert table.commits <= 4


async def test_a_piece_that_fails_is_undone_alone(table: Table) -> None:
    first, again, third = await together(table, 1, 1, 3)
    assert (first, third) == (1, 3)
    assert isinstance(again, IntegrityError)
    assert table.numbers() == [1, 3]


async def test_nothing_stays_of_a_piece_that_failed_halfway(table: Table) -> None:
    holding = await table.held()
    pieces = [
        asyncio.create_task(table.add(1)),
        asyncio.create_task(table.add_both(2, 1)),
        asyncio.create_task(table.add_both(3, 4)),
    ]
    await asyncio.sleep(0)
    table.gate.set()
    await holding
    _, failed, _ = await asyncio.gather(*pieces, return_exceptions=True)
    assert isinstance(failed, IntegrityError)
    assert table.numbers() == [1, 3, 4]


async def test_a_commit_that_fails_is_no_answer_and_every_piece_has_another_try(
    table: Table,
) -> None:
    holding = await table.held()
    pieces = [asyncio.create_task(table.add(number)) for number in (1, 2, 3)]
    await asyncio.sleep(0)
    # That of the holder passes first.
    event.listen(table.engine, "commit", lambda _c: setattr(table, "commits_to_fail", 1), once=True)
    table.gate.set()
    await holding
    assert await asyncio.gather(*pieces) == [1, 2, 3]
    assert table.numbers() == [1, 2, 3]
    assert table.commits == 4, "the holder's, and one for each piece by itself"


async def test_a_disk_that_stays_full_is_everybodys_error(table: Table) -> None:
    table.commits_to_fail = 1000
    found = await together_failing(table, 1, 2, 3)
    assert [str(each) for each in found] == ["the disk is full"] * 3
    assert table.numbers() == []
    table.commits_to_fail = 0
    assert await table.add(4) == 4


async def together_failing(table: Table, *numbers: int) -> list[object]:
    holding = await table.held()
    pieces = [asyncio.create_task(table.add(number)) for number in numbers]
    await asyncio.sleep(0)
    table.gate.set()
    with pytest.raises(OSError, match="full"):
        await holding
    return await asyncio.gather(*pieces, return_exceptions=True)


async def test_a_piece_whose_caller_went_away_is_stored_all_the_same(table: Table) -> None:
    holding = await table.held()
    gone, stays = (asyncio.create_task(table.add(number)) for number in (1, 2))
    await asyncio.sleep(0)
    gone.cancel()
    table.gate.set()
    await holding
    assert await stays == 2
    assert table.numbers() == [1, 2]


async def test_a_closed_store_says_so_each_time(table: Table) -> None:
    table.thread.shutdown(wait=True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shutdown"):
            await table.add(1)
