"""One thread beside the event loop, for work that is asked for often and is short.

An executor of `concurrent.futures` costs two futures, two locks and a walk from one to the other
for each piece of work: with a guest that flushes after each write that was an eighth of what a
downstairs did. Here it is one queue and one call of the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue

Run = Callable[[], None]


class WorkThread:
    """Begun with the first work. Called on one loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: SimpleQueue[tuple[Run, asyncio.Future[None]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self, run: Run) -> asyncio.Future[None]:
        """Runs it behind what was begun before: done, on the loop, with what it raised."""
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        self._work.put((run, outcome))
        return outcome

    def close(self) -> None:
        """Waits for what was begun, and ends the thread. Nothing may be begun afterwards."""
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()

    def _serve(self) -> None:
        while (next_one := self._work.get()) is not None:
            run, outcome = next_one
            error: BaseException | None = None
            try:
                run()
            except BaseException as problem:  # noqa: BLE001 -- it is who waits that judges it
                error = problem
            outcome.get_loop().call_soon_threadsafe(_settle, outcome, error)
            # Not kept until the next work comes: it may hold much.
            del next_one, run, outcome, error


def _settle(outcome: asyncio.Future[None], error: BaseException | None) -> None:
    if outcome.done():  # nobody waits any more
        return
    if error is None:
        outcome.set_result(None)
    else:
        outcome.set_exception(error)
