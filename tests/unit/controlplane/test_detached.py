"""Work that outlives its caller."""

from __future__ import annotations

import asyncio

import pytest

from controlplane import detached
from controlplane.detached import Detached


async def test_work_goes_on_without_its_caller() -> None:
    work, gate, done = Detached(), asyncio.Event(), []

    async def change() -> str:
        await gate.wait()
        done.append(True)
        return "changed"

    caller = asyncio.ensure_future(work.run(change()))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    gate.set()
    await work.drain()
    assert done == [True]
    assert await work.run(change()) == "changed"


async def test_failures_reach_the_caller() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await Detached().run(fail())


async def test_what_does_not_end_is_cancelled_at_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detached, "DRAIN_SECONDS", 0.01)
    work, ended = Detached(), []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    caller = asyncio.ensure_future(work.run(hang()))
    await asyncio.sleep(0)
    await work.drain()
    assert ended == [True]
    with pytest.raises(asyncio.CancelledError):
        await caller
