"""Following a repair, and noticing that it stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from controlplane.core import replacement as core
from controlplane.core.progress import STALL_SECONDS, stall_seconds
from controlplane.repair_watch import (
    NEWS_PER_SECOND,
    NEWS_SECONDS_MAX,
    NEWS_SECONDS_MIN,
    RepairWatch,
)
from stairwell.vmmd.v1 import volume_service_pb2 as pb
from tests.unit.controlplane.core.records_made import GEOMETRY, replacement
from tests.unit.controlplane.test_steps import info


class News:
    """Stands for vmmd's stream: gives what it was given, then waits."""

    peer = "vmmd"

    def __init__(self, *messages: pb.VolumeInfo, ends: bool = False) -> None:
        self.messages, self.ends, self.closed = messages, ends, False
        self.held: list[bool] = []

    async def hold_repair(
        self, machine: Any, disk: str, region_path: str, slot: int, *, held: bool
    ) -> None:
        assert (region_path, slot) == ("sub_volumes[0]", 2)
        self.held.append(held)

    async def watch_volume(
        self, machine: Any, disk: str, repair: Any = None, interval: float = 0
    ) -> AsyncGenerator[pb.VolumeInfo, None]:
        try:
            for message in self.messages:
                yield message
            if not self.ends:
                await asyncio.Event().wait()
        finally:
            self.closed = True


async def events(news: News, seconds: float = 0.02) -> list[core.Event]:
    watch = RepairWatch(news, lambda: 1.0, lambda _extent, _limit: seconds)  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        return [each async for each in watch.events(replacement())]


async def test_it_ends_when_the_member_is_active() -> None:
    news = News(info(pb.SLOT_STATE_WAIT_CONNECT), info(pb.SLOT_STATE_ACTIVE), info())
    found = await events(news)
    assert [type(each) for each in found] == [core.Observed, core.Repaired]
    assert news.closed


async def test_a_standstill_says_why() -> None:
    news = News(info(pb.SLOT_STATE_WAIT_CONNECT, last_error="refused"))
    found = await events(news)
    assert isinstance(found[-1], core.Stalled)
    assert "no progress for 0.02 s" in found[-1].detail
    assert "refused" in found[-1].detail
    assert news.closed


async def test_the_same_news_again_are_no_progress() -> None:
    class Drip(News):
        async def watch_volume(
            self, machine: Any, disk: str, repair: Any = None, interval: float = 0
        ) -> AsyncGenerator[pb.VolumeInfo, None]:
            while True:
                yield info(pb.SLOT_STATE_WAIT_CONNECT)
                await asyncio.sleep(0.002)

    found = await events(Drip())
    assert isinstance(found[-1], core.Stalled)


async def test_a_volume_that_is_not_active_may_stand_still() -> None:
    news = News(info(pb.SLOT_STATE_WAIT_CONNECT, pb.VOLUME_STATE_INITIALIZING), ends=False)
    watch = RepairWatch(news, lambda: 1.0, lambda _extent, _limit: 0.001)  # type: ignore[arg-type]
    watched = watch.events(replacement())
    assert isinstance(await anext(watched), core.Observed)
    later = asyncio.ensure_future(anext(watched, None))
    _, pending = await asyncio.wait({later}, timeout=0.05)
    assert pending, "still waiting"
    later.cancel()
    await asyncio.gather(later, return_exceptions=True)
    await watched.aclose()


async def test_a_limited_repair_is_given_the_time_of_its_extents() -> None:
    """Progress is told by whole extents: four of 64 MiB at 256 KiB/s take 17 minutes."""
    assert stall_seconds(64 << 20, 0) == STALL_SECONDS
    assert stall_seconds(64 << 20, 256 << 10) == STALL_SECONDS + 1024
    limited = info(repair=pb.RepairProgress(bytes_per_second_max=7))
    asked: list[tuple[int, int]] = []

    def stall(extent: int, limit: int) -> float:
        asked.append((extent, limit))
        return 0.01

    watch = RepairWatch(News(limited), lambda: 1.0, stall)  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        assert [type(e) async for e in watch.events(replacement())][-1] is core.Stalled
    assert asked == [(GEOMETRY.extent_bytes, 7)]


async def test_a_machine_that_holds_is_told_to_go_on() -> None:
    news = News(info(repair_held=True), info(pb.SLOT_STATE_ACTIVE))
    assert type((await events(news))[-1]) is core.Repaired
    assert news.held == [False]


async def test_a_paused_one_is_held_as_often_as_the_machine_forgets() -> None:
    """A machine that was made again knows nothing of it."""
    on = info(repair_held=True, repair=pb.RepairProgress(bytes_done=1, bytes_total=2))
    news = News(info(), on, info(), on, info(pb.SLOT_STATE_ACTIVE, repair_held=True), ends=True)
    watch = RepairWatch(news, lambda: 1.0)  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        found = [each async for each in watch.paused(replacement())]
    assert news.held == [True, True]
    assert [type(each) for each in found] == 3 * [core.Observed]


async def test_news_that_end_are_no_event() -> None:
    assert await events(News(ends=True)) == []


class Paced(News):
    """Notes how often each disk's news are asked for; gives some when `tell` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: asyncio.Queue[tuple[str, float]] = asyncio.Queue()
        self.told = asyncio.Condition()

    async def watch_volume(
        self, machine: Any, disk: str, repair: Any = None, interval: float = 0
    ) -> AsyncGenerator[pb.VolumeInfo, None]:
        self.asked.put_nowait((disk, interval))
        while True:
            yield info(pb.SLOT_STATE_LIVE_REPAIR)
            async with self.told:
                await self.told.wait()

    async def tell(self) -> None:
        async with self.told:
            self.told.notify_all()

    async def interval_of(self, disk: str) -> float:
        """The next that is asked for."""
        while True:
            name, interval = await self.asked.get()
            if name == disk:
                return interval


async def test_one_that_began_alone_is_looked_at_as_seldom_as_the_others_when_many_run() -> None:
    news = Paced()
    watch = RepairWatch(news, lambda: 1.0)  # type: ignore[arg-type]

    async def follow(disk: str) -> None:
        async for _event in watch.events(replace(replacement(), disk=disk)):
            pass

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        first = group.create_task(follow("first"))
        assert await news.interval_of("first") == NEWS_SECONDS_MIN
        many = [group.create_task(follow("another")) for _ in range(4 * NEWS_PER_SECOND)]
        for _ in many:
            await news.interval_of("another")
        await news.tell()
        assert await news.interval_of("first") == NEWS_SECONDS_MAX
        for task in many:
            task.cancel()
        await asyncio.gather(*many, return_exceptions=True)
        await news.tell()
        assert await news.interval_of("first") == NEWS_SECONDS_MIN, "and as often as ever again"
        first.cancel()
