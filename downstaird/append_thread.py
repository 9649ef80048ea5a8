"""The thread of a native Appender: it writes and syncs, and never waits for the interpreter.

To hand a flush to a thread of Python and back, the interpreter's lock changes hands four times: a
sixth of what a downstairs did for a guest that flushes after each write (docs/adr/0058).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from stairlib.native import Appender

Ended = Callable[[], None]


class AppendThread:
    """Begun with the first work. Called on one loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.appender = Appender()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: Ended | None = None

    def wait(self, ended: Ended) -> None:
        """A work was begun: calls `ended` on the loop when it has ended."""
        self._ended = ended
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self.appender.descriptor, self._readable)
            self._thread = threading.Thread(
                target=self.appender.serve, name=self._name, daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Ends the thread, behind the work that was begun. Nothing may be begun afterwards."""
        if self._thread is not None:
            assert self._loop is not None
            self.appender.close()
            self._thread.join()
            self._thread = None
            self._loop.remove_reader(self.appender.descriptor)
        self.appender.release()

    def _readable(self) -> None:
        if self.appender.has_ended():
            assert self._ended is not None
            ended, self._ended = self._ended, None
            ended()
