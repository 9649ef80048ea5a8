"""The threads on which a repair moves and checks bytes, so that the loop stays with the guest.

The loop decides before and after; see `downstaird.core.repair_work`. Invariants: each merge
that was begun is given back to the engine, also when nobody waits for it any more, and then it does
not count; all threads have ended before the region is closed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from downstaird.core.engine import Buffer, Engine, MergeWork
from stairlib.model.context import ContextArray

T = TypeVar("T")
# The blocks that are wrong, by their places; None: all of it is.
Check = Callable[[], list[int] | None]

# One that writes while another checks; more would only take turns.
THREADS = 2
# Where processors are scarce a repair gets a tenth of what any other thread gets: enough for the
# floor of an adaptive one.
NICER_BY = 10
_NICEST = 19


def give_way() -> None:
    """Lowers the priority of the calling thread, where threads have one of their own."""
    if sys.platform == "linux":
        own = os.getpriority(os.PRIO_PROCESS, 0)
        # Where a sandbox forbids it they go on as they are.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, min(_NICEST, own + NICER_BY))


class RepairThreads:
    """Of one region, for all its copies, as source and as target. Called on the loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._executor = ThreadPoolExecutor(
            THREADS, thread_name_prefix="repair", initializer=give_way
        )
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
        """Engine.repair_merge of blocks that were checked, with the writing off the loop where that
        can be. DataError."""
        work = self._engine.begin_merge(offset, contexts, data)
        if work is None:
            return self._engine.repair_merge(offset, contexts, data)
        _, taken = await self._merged(work, list)
        return taken

    async def merge_checked(
        self, offset: int, contexts: ContextArray, data: Buffer, check: Check
    ) -> tuple[list[int] | None, int] | None:
        """What `check` finds wrong with the blocks, and the bytes taken: all that are wanted when
        it is an empty list, else none. Both off the loop; None, and nothing done, where the writing
        cannot be. DataError."""
        work = self._engine.begin_merge(offset, contexts, data)
        return None if work is None else await self._merged(work, check)

    async def _merged(self, work: MergeWork, check: Check) -> tuple[list[int] | None, int]:
        def checked_and_written() -> list[int] | None:
            found = check()
            if found == []:
                work.run()
            return found

        job = self._begun(checked_and_written)
        self._running.add(job)
        try:
            await asyncio.wait([job])
        except asyncio.CancelledError:
            job.add_done_callback(lambda done: self._drop(done, work))
            raise
        self._running.discard(job)
        failed = job.exception() is not None
        bad = None if failed else job.result()
        taken = self._engine.finish_merge(work, keep=bad == [])
        return job.result(), taken

    def _drop(self, job: asyncio.Future[Any], work: MergeWork) -> None:
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
