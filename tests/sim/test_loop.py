"""The event loop of simulated time: what the scrub needs of asyncio, and no more."""

from __future__ import annotations

import asyncio

import pytest

from stairlib.sim.schedule import Schedule
from tests.sim.loop import SimulatedLoop


def test_sleeps_and_timeouts_take_simulated_time() -> None:
    schedule = Schedule()
    loop = SimulatedLoop(schedule)
    seen: list[tuple[str, float]] = []

    async def main() -> None:
        await asyncio.sleep(3.0)
        seen.append(("slept", schedule.now))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.0):
                await asyncio.Event().wait()
        seen.append(("timed out", schedule.now))

    task = loop.create_task(main())
    schedule.run(10.0)
    assert task.done()
    assert seen == [("slept", 3.0), ("timed out", 5.0)]


def test_a_cancelled_task_ends_and_an_event_wakes_another() -> None:
    schedule = Schedule()
    loop = SimulatedLoop(schedule)
    event = asyncio.Event()
    woken: list[float] = []

    async def waits() -> None:
        await event.wait()
        woken.append(schedule.now)

    cancelled, waiting = loop.create_task(asyncio.sleep(9.0)), loop.create_task(waits())
    schedule.run(1.0)
    cancelled.cancel()
    event.set()
    schedule.run(1.0)
    assert cancelled.cancelled()
    assert waiting.done()
    assert woken == [1.0]
