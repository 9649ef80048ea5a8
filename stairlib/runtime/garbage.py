"""Full searches for garbage, made rare: with many objects each one stops the program for long.

Python's own rule has a full search whenever the objects that outlived two small ones are a quarter
of those there were. With 500 replacements under way those are 260,000 objects and 0.1 to 0.2 s in
which nobody is answered, once or twice a minute; while they begin, every other second. What a
program of ours drops is freed at once, all but the cycles that ended calls and tasks leave behind:
these may wait. Small searches go on as ever, and more often the one that follows several of them,
which makes each of those shorter.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Final

# New objects less those that were freed, since the last small search; and such searches before one
# of what they left. Below Python's own 700 and 10: however often, an object is looked at twice.
_NEW: Final = 200
_BETWEEN: Final = 1
# More than there are in a program's life.
_NEVER: Final = 1 << 30
LOOK_SECONDS: Final = 5.0
# A full search is due when the memory in use has grown by this, or after so long a time.
GROWTH: Final = 1.5
FULL_SECONDS: Final = 600.0
# What may come and go in a program that has little, in objects of the allocator: some MiB.
SPARE_BLOCKS: Final = 100_000


def due(blocks: int, blocks_after: int, seconds: float) -> bool:
    """Whether a full search is due, with so many blocks of memory in use, so many when the last one
    had ended, and so many seconds ago."""
    return blocks > GROWTH * blocks_after + SPARE_BLOCKS or seconds >= FULL_SECONDS


@asynccontextmanager
async def rare_full_searches() -> AsyncIterator[None]:
    """Full searches are made here alone, and seldom, for as long as the block lasts."""
    before = gc.get_threshold()
    gc.set_threshold(_NEW, _BETWEEN, _NEVER)
    task = asyncio.create_task(_search(), name="garbage", context=Context())
    try:
        yield
    finally:
        gc.set_threshold(*before)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _search() -> None:
    blocks_after, ended = sys.getallocatedblocks(), time.monotonic()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if due(sys.getallocatedblocks(), blocks_after, time.monotonic() - ended):
            gc.collect()
            blocks_after, ended = sys.getallocatedblocks(), time.monotonic()
