"""Following a repair, and noticing that it stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from controlplane.core import replacement as core
from controlplane.repair_watch import RepairWatch
from stairwell.vmmd.v1 import volume_service_pb2 as pb
from tests.unit.controlplane.core.records_made import replacement
from tests.unit.controlplane.test_steps import info


class News:
    """Stands for vmmd's stream: gives what it was given, then waits."""

    peer = "vmmd"

    def __init__(self, *messages: pb.VolumeInfo, ends: bool = False) -> None:
        self.messages, self.ends, self.closed = messages, ends, False

    async def watch_volume(
        self, machine: Any, disk: str, repair: Any, interval: float
    ) -> AsyncGenerator[pb.VolumeInfo, None]:
        try:
            for message in self.messages:
                yield message
            if not self.ends:
                await asyncio.Event().wait()
        finally:
            self.closed = True


async def events(news: News, stall_seconds: float = 0.02) -> list[core.Event]:
    watch = RepairWatch(news, lambda: 1.0, stall_seconds)  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        return [each async for each in watch.events(replacement())]


async def test_it_ends_when_the_member_is_active() -> None:
    news = News(info(pb.SLOT_STATE_WAIT_CONNECT), info(pb.SLOT_STATE_ACTIVE), info())
    found = await events(news)
    assert [type(each) for each in found] == [core.Observed, core.Repaired]
    assert news.closed


async def test_a_standstill_is_a_failed_attempt_that_says_why() -> None:
    news = News(info(pb.SLOT_STATE_WAIT_CONNECT, last_error="refused"))
    found = await events(news)
    assert isinstance(found[-1], core.StepFailed)
    assert "no progress for 0.02 s" in found[-1].error
    assert "refused" in found[-1].error
    assert news.closed


async def test_the_same_news_again_are_no_progress() -> None:
    class Drip(News):
        async def watch_volume(
            self, machine: Any, disk: str, repair: Any, interval: float
        ) -> AsyncGenerator[pb.VolumeInfo, None]:
            while True:
                yield info(pb.SLOT_STATE_WAIT_CONNECT)
                await asyncio.sleep(0.002)

    found = await events(Drip())
    assert isinstance(found[-1], core.StepFailed)


async def test_a_volume_that_is_not_active_may_stand_still() -> None:
    news = News(info(pb.SLOT_STATE_WAIT_CONNECT, pb.VOLUME_STATE_INITIALIZING), ends=False)
    watch = RepairWatch(news, lambda: 1.0, 0.001)  # type: ignore[arg-type]
    watched = watch.events(replacement())
    assert isinstance(await anext(watched), core.Observed)
    later = asyncio.ensure_future(anext(watched, None))
    _, pending = await asyncio.wait({later}, timeout=0.05)
    assert pending, "still waiting"
    later.cancel()
    await asyncio.gather(later, return_exceptions=True)
    await watched.aclose()


async def test_news_that_end_are_no_event() -> None:
    assert await events(News(ends=True)) == []
