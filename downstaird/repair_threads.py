"""The threads on which a repair moves and checks bytes, so that the loop stays with the guest.

The loop decides before and after; see `downstaird.core.repair_work`. Invariants: each merge
that was begun is given back to the engine, also when nobody waits for it any more, and then it does
not count; all threads have ended before the region is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from downstaird.core.engine import Buffer, Engine, MergeWork
from stairlib.model.context import ContextArray

T = TypeVar("T")

# One that writes while another checks; more would only take turns.
THREADS = 2


class RepairThreads:
    """Of one region, for all its copies, as source and as target. Called on the loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="repair")
        self._running: set[asyncio.Future[Any]] = set()

    @property
    def busy(self) -> bool:
        """Whether something runs that uses the region's files."""
        return bool(self._running)

    async def call(self, what: Callable[[], T]) -> T:
        """What it returns or raises. It must not use the engine."""
        return await self._begun(what)

    def _begun(self, what: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._executor, what)

    async def merge(self, offset: int, contexts: ContextArray, data: Buffer) -> int:
        """Engine.repair_merge, with the writing off the loop where that can be. DataError."""
        work = self._engine.begin_merge(offset, contexts, data)
        if work is None:
            return self._engine.repair_merge(offset, contexts, data)
        job = self._begun(work.run)
        self._running.add(job)
        try:
            await asyncio.wait([job])
        except asyncio.CancelledError:
            job.add_done_callback(lambda done: self._drop(done, work))
            raise
        self._running.discard(job)
        if job.exception() is not None:
            self._engine.finish_merge(work, keep=False)
            job.result()
        return self._engine.finish_merge(work, keep=True)

    def _drop(self, job: asyncio.Future[None], work: MergeWork) -> None:
        # Its own failure, if it had one, concerns nobody any more.
        job.exception()
        self._running.discard(job)
        self._engine.finish_merge(work, keep=False)

    async def read(
        self, offset: int, count: int, form: Callable[[ContextArray, Sequence[Buffer]], bytes]
    ) -> bytes:
        """What `form` makes of the blocks' contexts and data, both of one moment; it is called off
        the loop. DataError."""
        work = self._engine.begin_read(offset, count)
        if work is not None:
            job = self._begun(lambda: form(work.contexts, work.run()))
            self._running.add(job)
            job.add_done_callback(self._read)
            found = await asyncio.shield(job)
            if self._engine.read_holds(work):
                return found
        contexts, buffers = self._engine.read(offset, count)
        return await self.call(lambda: form(contexts, buffers))

    def _read(self, job: asyncio.Future[bytes]) -> None:
        # Looked at, for the case that who waited has left.
        job.exception()
        self._running.discard(job)

    async def close(self) -> None:
        """Waits for what runs, and ends the threads. Nothing may be begun afterwards."""
        while self._running:
            await asyncio.wait(self._running)
            # What gives the work back runs in the loop's next turn.
            await asyncio.sleep(0)
        self._executor.shutdown()
