"""The one worker of a region: flushes, repair marks and checkpoints, one at a time, off the loop.

All else of the engine runs on the loop, but for a repair's bytes (`repair_threads`). Invariants: at
most one work at a time; its outcome is given to the engine on the loop before anybody can ask for
what it changed; a checkpoint gives way to waiting flushes for a while, never for ever, since only a
checkpoint empties the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from downstaird.append_thread import AppendThread
from downstaird.core.engine import Engine, FlushWork
from downstaird.work_thread import WorkThread
from stairlib import native
from stairlib.model.errors import DataError, StairwellError
from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)

# Flushes that may go ahead of each step of a checkpoint that is wanted. The engine asks well before
# its log is full, and a step is no longer than a large flush.
PATIENCE_FLUSHES = 2

Done = Callable[[StairwellError | None], None]
Tell = Callable[[], bool]


class Took(Protocol):
    """Who is told how long work took, on the loop."""

    def __call__(self, kind: str, seconds: float, *, failed: bool) -> None:
        """`kind` is "flush" or "checkpoint"."""
        ...


def _untold(kind: str, seconds: float, *, failed: bool) -> None:
    """Nobody wants to know."""


def _untold_yet() -> bool:
    """Who waits is told with the outcome."""
    return False


class Demand(Protocol):
    """Who else uses the lane."""

    def wanted(self) -> bool:
        """Whether something waits that may need the lane."""
        ...

    def reserved(self) -> bool:
        """Whether something is about to begin and must find the lane free."""
        ...

    def changed(self, *, free: bool) -> None:
        """The lane was taken by a checkpoint, or became free."""
        ...


class Lane:
    """Runs engine work off the loop."""

    def __init__(self, engine: Engine, demand: Demand) -> None:
        self._engine = engine
        # Asking for the running one is a system call each time.
        self._loop = asyncio.get_running_loop()
        self._demand = demand
        self._thread = WorkThread("engine")
        self._appends = AppendThread("log") if native.compiled else None
        self._current: asyncio.Future[None] | None = None
        self._passed = 0
        self._closing = False
        self.took: Took = _untold

    @property
    def free(self) -> bool:
        """Whether work may begin now."""
        return self._current is None

    def run(self, work: FlushWork, done: Done, tell: Tell = _untold_yet) -> None:
        """Runs what `begin_flush` or `repair_begin` gave; `done` gets its outcome on the loop. When
        it went well, `tell` comes before the engine's bookkeeping, and instead of `done` where it
        has told who waits: whatever they ask next is asked of the loop, behind it."""
        assert self._current is None, "engine work begun while the lane was taken"

        began = monotonic()

        def finished(error: StairwellError | None) -> None:
            told = error is None and tell()
            self._engine.finish_flush(work, error)
            self.took("flush", monotonic() - began, failed=error is not None)
            if not told:
                done(error)

        if self._appends is not None and _begun(work, self._appends):
            self._current = future = self._loop.create_future()
            self._appends.wait(lambda: self._ended(work, future, finished))
        else:
            self._start(work.run, finished)

    def begun(self, work: FlushWork) -> asyncio.Future[None]:
        """As `run`, for who waits: done with its outcome."""
        outcome: asyncio.Future[None] = self._loop.create_future()

        def done(error: StairwellError | None) -> None:
            if outcome.cancelled():
                return
            if error is None:
                outcome.set_result(None)
            else:
                outcome.set_exception(error)

        self.run(work, done)
        return outcome

    def checkpoint_if_wanted(self) -> None:
        """Begins the next step of a checkpoint when the engine wants one and the lane is free for
        it."""
        if self._current is not None or self._closing:
            return
        if self._engine.wants_checkpoint() and not self._demand.reserved():
            self._begin_step()

    def _begin_step(self) -> None:
        """Begins the next step of a checkpoint; the lane stays free when it cannot."""
        self._passed = 0
        try:
            work = self._engine.begin_checkpoint()
        except StairwellError as error:
            _log.error("checkpoint did not begin", reason=error.reason, error=error.message)
            return
        began = monotonic()

        def finished(error: StairwellError | None) -> None:
            self._engine.finish_checkpoint(work, error)
            self.took("checkpoint", monotonic() - began, failed=error is not None)
            _log.debug("checkpoint step", seconds=round(monotonic() - began, 4))

        self._start(work.run, finished)
        self._demand.changed(free=False)

    def _start(self, run: Callable[[], None], finished: Done) -> None:
        self._current = future = self._thread.begin(run)
        future.add_done_callback(lambda done: self._finish(_problem(done), finished))

    def _ended(self, work: FlushWork, current: asyncio.Future[None], finished: Done) -> None:
        """What the appender's thread was given has ended."""
        problem: BaseException | None = None
        try:
            work.end()
        except Exception as error:  # noqa: BLE001 -- as for what a thread of Python raises
            problem = error
        self._finish(problem, finished)
        if not current.done():
            current.set_result(None)

    def _finish(self, problem: BaseException | None, finished: Done) -> None:
        self._current = None
        error: StairwellError | None = None
        if isinstance(problem, StairwellError):
            error = problem
            _log.error("engine work failed", reason=error.reason, error=error.message)
        elif problem is not None:
            _log.error("engine work failed unexpectedly", exc_info=problem)
            error = DataError(f"the engine failed: {problem}", reason="IO_ERROR")
        finished(error)
        if self._passed < PATIENCE_FLUSHES and self._demand.wanted():
            self._passed += 1
            self._give_free()
            self.checkpoint_if_wanted()
        elif not self._engine.wants_checkpoint():
            self._give_free()
        else:
            self.checkpoint_if_wanted()
            self._give_free()
            self.checkpoint_if_wanted()

    def _give_free(self) -> None:
        """Tells that the lane is free, if it is."""
        if self._current is None:
            self._demand.changed(free=True)

    async def wait_free(self) -> None:
        """Returns when the work that runs now has ended; others may be quicker to begin the
        next."""
        if self._current is not None:
            await asyncio.wait([self._current])

    async def settle(self, seconds: float) -> None:
        """Has what is flushed go home, for so long at most: the next start then reads no log. Only
        with no session there. Failures are logged, and no worse than without."""
        until = monotonic() + seconds
        while self._engine.has_log() and monotonic() < until:
            if self._current is None:
                self._begin_step()
            if self._current is None:
                return
            await asyncio.wait([self._current])
            # The callback that gives the outcome to the engine runs in the loop's next turn.
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Waits for the work that runs and ends the thread. Nothing is begun afterwards."""
        self._closing = True
        if self._current is not None:
            await asyncio.wait([self._current])
            # The callback that gives the outcome to the engine runs in the loop's next turn.
            await asyncio.sleep(0)
        self._thread.close()
        if self._appends is not None:
            self._appends.close()


def _begun(work: FlushWork, appends: AppendThread) -> bool:
    """Whether the work goes without the interpreter."""
    try:
        return work.begin(appends.appender)
    except Exception:  # noqa: BLE001 -- `run` meets it again, and who waits is told
        return False


def _problem(done: asyncio.Future[None]) -> BaseException | None:
    return None if done.cancelled() else done.exception()
