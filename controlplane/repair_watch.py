"""Follows a repair through vmmd's news of the volume, and notices when it stands still.

The watchdog is on progress, not on time: a repair may take days, but while the volume is active
something about it has to change now and then. The machine is told to copy, or to hold, as often as
its news say that it does the other thing: one that was made again knows nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from controlplane.core import replacement as core
from controlplane.core.progress import stall_seconds
from controlplane.core.records import region_at
from controlplane.core.replacement import Event, Replacement
from controlplane.peers.vmmd import Vmmd
from controlplane.steps import held, is_held, is_moving, limit_of, look
from stairwell.vmmd.v1 import volume_service_pb2 as pb

# All repairs together: what a control plane reads, judges and stores at a tenth of a processor. Of
# many, each is looked at less often, down to once in so many seconds.
NEWS_PER_SECOND = 25
NEWS_SECONDS_MAX = 4.0
# Of one that runs alone; what vmmd gives at the least.
NEWS_SECONDS_MIN = 0.1
# Asked for anew when what was asked for is so many times too often or too seldom: those that began
# while few ran would else be looked at as often as ever when hundreds do.
NEWS_OFF_BY = 2.0


class RepairWatch:
    """Makes the events of the REPAIR state, and of PAUSED. `stall` gives the seconds of a
    standstill for (bytes of an extent, limit of the repair)."""

    def __init__(
        self,
        vmmd: Vmmd,
        clock: Callable[[], float],
        stall: Callable[[int, int], float] = stall_seconds,
    ) -> None:
        self._vmmd = vmmd
        self._clock = clock
        self._stall = stall
        self._watching = 0

    async def events(self, record: Replacement) -> AsyncGenerator[Event, None]:
        """Observed events, then the one that ends the state; ends alone when the news end."""
        self._watching += 1
        try:
            async with aclosing(self._followed(record)) as found:
                async for event in found:
                    yield event
        finally:
            self._watching -= 1

    async def _followed(self, record: Replacement) -> AsyncGenerator[Event, None]:
        loop = asyncio.get_running_loop()
        seen: Event | None = None
        deadline: float | None = None
        seconds = 0.0
        while True:
            interval = self._interval()
            async with aclosing(self._news(record, interval)) as news:
                while not _is_off(interval, self._interval()):
                    left = None if deadline is None else deadline - loop.time()
                    info, late = await _next(news, left)
                    if late:
                        yield self._stalled(seen, seconds)
                        return
                    if info is None:
                        return
                    if is_held(record, info):
                        await self._hold(record, held=False)
                    event = look(record, info, self._clock())
                    yield event
                    if not isinstance(event, core.Observed):
                        return
                    if not is_moving(info, record):
                        deadline = None
                    elif deadline is None or moved(seen, event):
                        seconds = self._stall(_extent_bytes(record), limit_of(record, info))
                        deadline = loop.time() + seconds
                    seen = event

    def _interval(self) -> float:
        """The seconds between two news of each repair, as many as run now."""
        return min(max(self._watching / NEWS_PER_SECOND, NEWS_SECONDS_MIN), NEWS_SECONDS_MAX)

    def _news(self, record: Replacement, interval: float) -> AsyncGenerator[pb.VolumeInfo, None]:
        followed = pb.FollowedRepair(
            region_path=record.region_path, slot=record.slot, replacement_id=str(record.id)
        )
        return self._vmmd.watch_volume(record.instance_id, record.disk, followed, interval)

    async def paused(self, record: Replacement) -> AsyncGenerator[Event, None]:
        """Observed events while nothing is copied; ends alone when the news end, or with another
        event when there is nothing to hold any more."""
        async with aclosing(self._vmmd.watch_volume(record.instance_id, record.disk)) as news:
            async for info in news:
                event = held(record, info, self._clock())
                if event is None:
                    await self._hold(record, held=True)
                    continue
                yield event
                if not isinstance(event, core.Observed):
                    return

    async def _hold(self, record: Replacement, *, held: bool) -> None:
        await self._vmmd.hold_repair(
            record.instance_id, record.disk, record.region_path, record.slot, held=held
        )

    def _stalled(self, seen: Event | None, seconds: float) -> Event:
        """What a standstill is."""
        why = seen.blocked_on if isinstance(seen, core.Observed) else ""
        detail = f"no progress for {seconds:g} s" + (f"; {why}" if why else "")
        return core.Stalled(at=self._clock(), detail=detail)


def _is_off(asked: float, wanted: float) -> bool:
    """Whether news come so much too often, or too seldom, that they are asked for anew."""
    return not asked / NEWS_OFF_BY < wanted < asked * NEWS_OFF_BY


def _extent_bytes(record: Replacement) -> int:
    return region_at(record.replacement, record.region_path).geometry.extent_bytes


def moved(before: Event | None, now: core.Observed) -> bool:
    """Whether anything but the time differs."""
    if not isinstance(before, core.Observed):
        return True
    return (before.bytes_done, before.bytes_copied, before.blocked_on) != (
        now.bytes_done,
        now.bytes_copied,
        now.blocked_on,
    )


async def _next(
    news: AsyncGenerator[pb.VolumeInfo, None], seconds: float | None
) -> tuple[pb.VolumeInfo | None, bool]:
    """(the next message or None at the end, False), or (None, True) after `seconds`."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await anext(news, None), False
    except TimeoutError:
        if not limit.expired():
            raise
        return None, True
