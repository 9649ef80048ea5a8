"""The one worker thread of a region: flushes, repair marks and checkpoints, one at a time.

Everything else of the engine runs on the loop. Invariants: at most one work at a time; its outcome
is given to the engine on the loop before anybody is told; a checkpoint gives way to waiting flushes
for a while, never for ever, since only a checkpoint empties the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from downstaird.core.engine import Engine, FlushWork
from stairlib.model.errors import DataError, StairwellError
from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)

# Flushes that may go ahead of a checkpoint that is wanted. The engine asks well before the log is
# full.
PATIENCE_FLUSHES = 16

Done = Callable[[StairwellError | None], None]


class Lane:
    """Runs engine work off the loop. `demanded` says whether a flush waits or is about to begin;
    `changed` is called each time the lane was taken by a checkpoint or became free."""

    def __init__(
        self, engine: Engine, demanded: Callable[[], bool], changed: Callable[[bool], None]
    ) -> None:
        self._engine = engine
        self._demanded = demanded
        self._changed = changed
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._current: asyncio.Future[None] | None = None
        self._passed = 0
        self._closing = False

    @property
    def free(self) -> bool:
        """Whether work may begin now."""
        return self._current is None

    def run(self, work: FlushWork, done: Done) -> None:
        """Runs what `begin_flush` or `repair_begin` gave; `done` gets its outcome on the loop."""
        assert self._current is None, "engine work begun while the lane was taken"

        def finished(error: StairwellError | None) -> None:
            self._engine.finish_flush(work, error)
            done(error)

        self._start(work.run, finished)

    def checkpoint_if_wanted(self) -> None:
        """Begins a checkpoint when the engine wants one and no flush should go first."""
        if self._current is not None or self._closing or not self._engine.wants_checkpoint():
            return
        if self._demanded() and self._passed < PATIENCE_FLUSHES:
            self._passed += 1
            return
        self._passed = 0
        work = self._engine.begin_checkpoint()
        began = monotonic()

        def finished(error: StairwellError | None) -> None:
            self._engine.finish_checkpoint(work, error)
            _log.debug("checkpoint", seconds=round(monotonic() - began, 4))

        self._start(work.run, finished)
        self._changed(False)

    def _start(self, run: Callable[[], None], finished: Done) -> None:
        future = asyncio.get_running_loop().run_in_executor(self._executor, run)
        self._current = future
        future.add_done_callback(lambda done: self._finish(done, finished))

    def _finish(self, future: asyncio.Future[None], finished: Done) -> None:
        self._current = None
        error: StairwellError | None = None
        problem = None if future.cancelled() else future.exception()
        if isinstance(problem, StairwellError):
            error = problem
            _log.error("engine work failed", reason=error.reason, error=error.message)
        elif problem is not None:
            _log.error("engine work failed unexpectedly", exc_info=problem)
            error = DataError(f"the engine failed: {problem}", reason="IO_ERROR")
        finished(error)
        self.checkpoint_if_wanted()
        if self._current is None:
            self._changed(True)

    async def wait_free(self) -> None:
        """Returns when the work that runs now has ended; others may be quicker to begin the
        next."""
        if self._current is not None:
            await asyncio.wait([self._current])

    async def close(self) -> None:
        """Waits for the work that runs and ends the thread. Nothing is begun afterwards."""
        self._closing = True
        if self._current is not None:
            await asyncio.wait([self._current])
            # The callback that gives the outcome to the engine runs in the loop's next turn.
            await asyncio.sleep(0)
        self._executor.shutdown()
