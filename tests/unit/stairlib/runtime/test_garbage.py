"""Full searches for garbage are made when there is much of it, and not for every quarter more."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref

import pytest

from stairlib.runtime import garbage


@pytest.mark.parametrize(
    ("blocks", "after", "seconds", "is_due"),
    [
        (500_000, 500_000, 5.0, False),
        (800_000, 500_000, 5.0, False),
        (900_000, 500_000, 5.0, True),
        (90_000, 1_000, 5.0, False),
        (500_000, 500_000, garbage.FULL_SECONDS, True),
    ],
)
def test_when_one_is_due(blocks: int, after: int, seconds: float, is_due: bool) -> None:
    assert garbage.due(blocks, after, seconds) is is_due


class Cycle:
    def __init__(self) -> None:
        self.itself = self


async def test_many_objects_that_stay_are_not_searched_over_and_over() -> None:
    full = []

    def searched(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] == 2:
            full.append(info)

    async with garbage.rare_full_searches():
        gc.callbacks.append(searched)
        try:
            kept = [[number] for number in range(300_000)]
        finally:
            gc.callbacks.remove(searched)
    assert len(kept) == 300_000
    assert not full


async def test_what_has_ended_in_a_cycle_goes_when_it_has_grown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(garbage, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(garbage, "SPARE_BLOCKS", 0)
    async with garbage.rare_full_searches():
        await asyncio.sleep(0)
        cycle = Cycle()
        gone = asyncio.Event()
        weakref.finalize(cycle, gone.set)
        # So old that only a full search finds it.
        gc.collect(1)
        gc.collect(1)
        del cycle
        more = [[number] for number in range(sys.getallocatedblocks())]
        async with asyncio.timeout(10):
            await gone.wait()
        assert more


async def test_afterwards_all_is_as_it_was() -> None:
    before = gc.get_threshold()
    async with garbage.rare_full_searches():
        assert gc.get_threshold() != before
    assert gc.get_threshold() == before
