"""One end of a relay between two connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

# More than that a client does not say before it is answered.
_INBOX_BYTES_MAX = 64 << 10


class PipeEnded(Exception):  # noqa: N818 - an end, not an error
    """The other side has hung up."""


class Pipe(asyncio.Protocol):
    """Bytes are read one by one until `join`, and then go straight to the other end, which is not
    read from while this one does not take more."""

    def __init__(self, made: Callable[[Pipe], None] | None = None) -> None:
        self._made = made
        self._transport: asyncio.Transport | None = None
        self._inbox = bytearray()
        self._news = asyncio.Event()
        self._paused = False
        self._other: Pipe | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def transport(self) -> asyncio.Transport:
        """Of the connection; another one once TLS is spoken."""
        assert self._transport is not None
        return self._transport

    @property
    def is_silent(self) -> bool:
        """Whether everything that came was read."""
        return not self._inbox

    # --- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        if self._made is not None:
            self._made(self)

    def data_received(self, data: bytes) -> None:
        """Passes it on, or keeps it for `read`."""
        if self._other is not None:
            self._other.transport.write(data)
            return
        self._inbox += data
        self._news.set()
        if len(self._inbox) > _INBOX_BYTES_MAX:
            self.pause()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end ends with it, once it has what was sent to it."""
        del exc
        if not self.lost.done():
            self.lost.set_result(None)
        self._news.set()
        if self._other is not None:
            self._other.transport.close()

    def pause_writing(self) -> None:
        """What is sent here is not taken."""
        if self._other is not None:
            self._other.pause()

    def resume_writing(self) -> None:
        """It is again."""
        if self._other is not None:
            self._other.resume()

    def pause(self) -> None:
        """Reads no more for now."""
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Reads on."""
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    # --- before it is joined

    async def read(self) -> bytes:
        """What has come, at least one byte; PipeEnded."""
        await self._some()
        data = bytes(self._inbox)
        self._inbox.clear()
        self.resume()
        return data

    async def read_exactly(self, count: int) -> bytes:
        """Just these; PipeEnded when there will not be as many. At most 64 KiB."""
        assert count <= _INBOX_BYTES_MAX
        while len(self._inbox) < count:
            await self._some(len(self._inbox))
        data = bytes(self._inbox[:count])
        del self._inbox[:count]
        self.resume()
        return data

    async def _some(self, had: int = 0) -> None:
        while len(self._inbox) <= had:
            if self.lost.done():
                raise PipeEnded
            self._news.clear()
            await self._news.wait()

    def speak_through(self, transport: asyncio.Transport) -> None:
        """From here on over this one, which is TLS."""
        self._transport = transport

    def join(self, other: Pipe, first: bytes = b"") -> None:
        """Each passes on to the other from here on; `first` came from this one already."""
        self.pass_to(other, first)
        other.pass_to(self)

    def pass_to(self, other: Pipe, first: bytes = b"") -> None:
        """One half of `join`."""
        self._other = other
        early = first + bytes(self._inbox)
        self._inbox.clear()
        if early:
            other.transport.write(early)
        self.resume()
        if self.lost.done():
            other.transport.close()
