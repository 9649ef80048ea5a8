"""A machine's first serial port as its readers see it: what it said, and what it says.

    console.connect(write)                  # where typed bytes go
    console.said(b"...")                    # the guest's bytes, attached to or not
    async for piece in console.follow(start): ...

A reader holds a position and no queue: one that is slower than the port misses bytes, is told how
many, and costs no memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from vmmd.hw.uart.history import READ_BYTES_DEFAULT, HistoryBuffer


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of the port; `end` is the position behind them, `skipped` bytes before them are
    gone."""

    data: bytes
    end: int
    skipped: int = 0


Write = Callable[[bytes], "Awaitable[None] | None"]


class Console:
    """One port. `history` has what it said since the machine's start."""

    def __init__(self) -> None:
        self.history = HistoryBuffer()
        self._write: Write | None = None
        self._more = asyncio.Event()
        self._closed = False

    def connect(self, write: Write | None) -> None:
        """Typed bytes go to `write` from now on; with None they are lost, as on an open cable."""
        self._write = write

    def said(self, data: bytes) -> None:
        """The guest sent `data`."""
        self.history.append(data)
        self._wake()

    def close(self) -> None:
        """The machine has ended: readers end once they have read all."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        woken, self._more = self._more, asyncio.Event()
        woken.set()

    async def type(self, data: bytes) -> None:
        """Sends bytes to the guest; waits while it takes no more."""
        if self._write is not None:
            waits = self._write(data)
            if waits is not None:
                await waits

    async def follow(self, start: int) -> AsyncGenerator[Piece, None]:
        """What was said from position `start` on, then what is said; ends with the machine."""
        position = start
        while True:
            while position < self.history.total:
                kept = self.history.next_kept(position)
                read = self.history.read_from(kept, READ_BYTES_DEFAULT)
                yield Piece(read.data, read.end, kept - position)
                position = read.end
            if self._closed:
                return
            await self._more.wait()
