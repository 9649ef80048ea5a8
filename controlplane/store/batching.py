"""Transactions that wait for each other share one commit.

What is asked for while the store's thread is busy with a commit is carried out together: each piece
of work behind a savepoint of its own, in the order of the calls, and one commit for all. Nobody is
answered before that commit is on disk, so a step is stored before its effect as ever; only the
waiting for the disk is shared. A piece that fails is undone alone. When anything goes wrong with
the whole (the commit, or an error that ended the transaction itself), nothing of it is stored, and
every piece is carried out again in a transaction of its own, to succeed or fail by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

_T = TypeVar("_T")

# So that the first of many does not wait for the work of all.
BATCH_MAX = 16

Work = Callable[[Connection], Any]


@dataclass(slots=True)
class _Piece:
    """One transaction asked for, and who waits for it."""

    work: Work
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def settle(self) -> None:
        """Tells who waits, on his own loop; from the store's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it who waited
            self.loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        if self.answer.done():
            return
        if self.error is not None:
            self.answer.set_exception(self.error)
        else:
            self.answer.set_result(self.result)


class Batches:
    """The transactions of one engine, on one thread."""

    def __init__(self, engine: Engine, thread: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._thread = thread
        self._waiting: deque[_Piece] = deque()
        self._lock = threading.Lock()

    async def run(self, work: Callable[[Connection], _T]) -> _T:
        """What `work` returns, once it is committed."""
        loop = asyncio.get_running_loop()
        piece = _Piece(work, loop, loop.create_future())
        with self._lock:
            self._waiting.append(piece)
            first = len(self._waiting) == 1
        if first:
            try:
                self._thread.submit(self._work_off)
            except RuntimeError:  # the store is closed
                self._waiting.clear()
                raise
        result: _T = await piece.answer
        return result

    def _work_off(self) -> None:
        """Carries out what waits now; what comes meanwhile is the next call's."""
        while True:
            with self._lock:
                batch = [self._waiting[n] for n in range(min(BATCH_MAX, len(self._waiting)))]
            if not batch:
                return
            if len(batch) == 1 or not self._together(batch):
                for piece in batch:
                    self._alone(piece)
            with self._lock:
                # Taken out after the work only: whoever finds the queue filled need not wake us.
                for _ in batch:
                    self._waiting.popleft()
            for piece in batch:
                piece.settle()

    def _together(self, batch: list[_Piece]) -> bool:
        """All in one transaction; False when nothing of it was stored."""
        try:
            with self._engine.begin() as connection:
                for piece in batch:
                    _behind_savepoint(connection, piece)
        except Exception:  # noqa: BLE001 - whatever it was, each piece finds out for itself
            return False
        return True

    def _alone(self, piece: _Piece) -> None:
        piece.result = piece.error = None
        try:
            with self._engine.begin() as connection:
                piece.result = piece.work(connection)
        except BaseException as error:  # noqa: BLE001 - handed to who waits
            piece.error = error


def _behind_savepoint(connection: Connection, piece: _Piece) -> None:
    # By hand: the library's own object for it costs as much as a small statement.
    connection.exec_driver_sql("SAVEPOINT piece")
    try:
        piece.result = piece.work(connection)
    except Exception as error:  # noqa: BLE001 - handed to who waits
        piece.error = error
        # SQLite ends a whole transaction by itself on a full disk and the like: then this fails.
        connection.exec_driver_sql("ROLLBACK TO piece")
    connection.exec_driver_sql("RELEASE piece")
