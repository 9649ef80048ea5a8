"""Work that a caller's hang-up does not cut short.

A call that changes something runs in a task of its own: a client that goes away between a change
and what has to follow it must not leave half of it. At the stop of the control plane such work is
given a moment to end, and is then cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")

# Longer than any change of the store takes; a peer that does not answer is not waited for.
DRAIN_SECONDS = 3.0


class Detached:
    """The detached work of one control plane."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of the work; when the caller is cancelled, the work goes on without him."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """Waits for what runs, then cancels what is left."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Whoever waits gets it; if nobody does any more, it was answered to nobody.
            task.exception()
