"""Who watches a replacement is told every line of its log once and in order, however slowly."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from controlplane.claims import Claims
from controlplane.core import replacement as core
from controlplane.core.replacement import Replacement, step
from controlplane.core.replacement_log import last_number, renews
from controlplane.feed import NEWS_MAX, Feed
from controlplane.operations.replacements import Replacements
from controlplane.store.place import Place
from controlplane.store.sql_store import SqlStore
from controlplane.words import Words
from stairlib.model.errors import InvalidRequestError
from tests.unit.controlplane.core.records_made import disk, instance, replacement


class Nobody:
    """A driver that drives nothing: the stored record is the present one."""

    def running(self, _id: Any) -> None:
        return None


class Log:
    """A replacement in a real store, whose steps are stored and then published as a driver does."""

    def __init__(self, store: SqlStore, record: Replacement, epoch: int) -> None:
        self.store, self.record, self.epoch = store, record, epoch
        self.news = Feed[Replacement](renews)
        words = Words(store, Claims(store))
        nobody: Any = Nobody()
        self.operations = Replacements(store, nobody, words, nobody, self.news, nobody)

    async def take(self, event: core.Event, *, save: bool = True) -> None:
        self.record, _ = step(self.record, event)
        if save:
            await self.store.save_replacement(self.record, self.epoch)
        self.news.publish(self.record.id, self.record)

    async def observe(self, done: int) -> None:
        event = core.Observed(at=self.record.updated_at + 1, bytes_done=done << 12)
        await self.take(event, save=False)

    async def go_round(self, times: int) -> None:
        """Two lines of the log each: to REPAIR and back to APPLY. Stored together, for speed."""
        for number in range(times):
            at = self.record.updated_at + 1
            await self.take(core.Applied(at=at, result="STARTED"), save=False)
            await self.take(core.Unapplied(at=at, detail="made again"), save=False)
            await self.take(core.RetryDue(at=at), save=number % 50 == 0 or number == times - 1)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Log]:
    store = await SqlStore.open(Place(tmp_path))
    await store.add_instance(instance(), [disk()])
    record = replacement()
    for event in (core.Validated, core.Preflighted, core.Recorded):
        record, _ = step(record, event(at=record.updated_at + 1))
    lease = await store.begin_replacement(record)
    yield Log(store, record, lease.epoch)
    await store.close()


def numbers(told: list[Any]) -> list[int]:
    return [each.number for _record, lines in told for each in lines]


async def test_a_watcher_that_sleeps_is_told_all_when_it_wakes(log: Log) -> None:
    async with aclosing(log.operations.watch(str(log.record.id))) as news:
        told = [await anext(news)]
        await log.go_round(3 * NEWS_MAX)
        await log.take(core.Applied(at=log.record.updated_at + 1, result="STARTED"))
        for done in range(100):
            await log.observe(done)
        await log.take(core.GaveUp(at=log.record.updated_at + 1, error="the end"))
        told += [each async for each in news]
    last = last_number(log.record)
    assert last > core.TRANSITIONS_MAX
    assert numbers(told) == list(range(last + 1))
    assert told[-1][0].state is core.State.FAILED
    assert len(told) <= NEWS_MAX + 10, "progress that nobody read is one piece of news"


async def test_progress_that_was_not_read_is_told_once_and_the_newest(log: Log) -> None:
    await log.take(core.Applied(at=log.record.updated_at + 1, result="STARTED"))
    async with aclosing(log.operations.watch(str(log.record.id))) as news:
        await anext(news)
        for done in range(1, 1000):
            await log.observe(done)
        record, lines = await anext(news)
        assert (record.progress.bytes_done, lines) == (999 << 12, ())
        await log.take(core.Repaired(at=log.record.updated_at + 1))
        record, lines = await anext(news)
        assert [each.event for each in lines] == ["Repaired"]


async def test_each_transition_comes_with_the_record_as_it_was_then(log: Log) -> None:
    async with aclosing(log.operations.watch(str(log.record.id))) as news:
        await anext(news)
        await log.take(core.Applied(at=log.record.updated_at + 1, result="STARTED"))
        await log.take(core.Repaired(at=log.record.updated_at + 1))
        told = [await anext(news) for _ in range(2)]
    assert [(record.state, len(lines)) for record, lines in told] == [
        (core.State.REPAIR, 1),
        (core.State.VERIFY, 1),
    ]


@pytest.mark.parametrize("after", [0, 1, 2])
async def test_a_watch_goes_on_after_the_line_that_was_seen(log: Log, after: int) -> None:
    async with aclosing(log.operations.watch(str(log.record.id), after)) as news:
        told = [await anext(news)]
        await log.take(core.GaveUp(at=log.record.updated_at + 1, error="no"))
        told += [each async for each in news]
    assert numbers(told) == list(range(after + 1, 4))


async def test_a_watch_goes_on_after_a_line_that_the_record_has_long_dropped(log: Log) -> None:
    await log.go_round(core.TRANSITIONS_MAX)
    await log.take(core.GaveUp(at=log.record.updated_at + 1, error="no"))
    assert log.record.transitions[0].number > 8
    told = [each async for each in log.operations.watch(str(log.record.id), 7)]
    assert numbers(told) == list(range(8, last_number(log.record) + 1))


async def test_a_line_that_never_was_is_refused_in_words(log: Log) -> None:
    with pytest.raises(InvalidRequestError, match="newest transition has the number 2"):
        await anext(log.operations.watch(str(log.record.id), 3))


async def test_what_another_control_plane_wrote_is_told_from_the_store_once(log: Log) -> None:
    """A relay publishes what it has read, several lines on, or the same again."""
    identity = log.record.id
    async with aclosing(log.operations.watch(str(identity))) as news:
        told = [await anext(news)]
        await log.go_round(2)
        first = await log.store.replacement(identity)
        log.news.publish(identity, first)
        log.news.publish(identity, first)
        await log.take(core.GaveUp(at=log.record.updated_at + 1, error="no"))
        log.news.publish(identity, await log.store.replacement(identity))
        told += [each async for each in news]
    assert numbers(told) == list(range(last_number(log.record) + 1))


async def test_an_older_reading_takes_nothing_from_the_newest_news(log: Log) -> None:
    await log.take(core.Applied(at=log.record.updated_at + 1, result="STARTED"))
    stored = await log.store.replacement(log.record.id)
    async with aclosing(log.operations.watch(str(log.record.id))) as news:
        await anext(news)
        await log.observe(9)
        log.news.publish(stored.id, stored)
        record, lines = await anext(news)
    assert (record.progress.bytes_done, lines) == (9 << 12, ())


async def test_news_that_are_older_than_what_was_read_are_no_news(log: Log) -> None:
    before = log.record
    async with aclosing(log.operations.watch(str(log.record.id))) as news:
        await log.take(core.Applied(at=log.record.updated_at + 1, result="STARTED"))
        first, _ = await anext(news)
        assert first.state is core.State.REPAIR
        log.news.publish(before.id, before)
        await log.take(core.GaveUp(at=log.record.updated_at + 1, error="no"))
        told = [each async for each in news]
    assert [record.state for record, _ in told] == [core.State.FAILED]
