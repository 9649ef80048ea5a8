"""A link between two hosts that can be made bad: TCP connections passed on through it.

    somebody ──> listening address ──> Link ──> target

Bytes are read as long as the wire and the window have room, so that a slow link slows its sender as
a network does; they are written when their time has come. Ends of connections travel like bytes:
who is behind a stalled link hears of nothing. Invariants: bytes arrive in order and once; what is
under way is bounded for each connection; a target's name is looked up for each connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from stairlib.link.shape import Shape, Wire
from stairlib.model.errors import InvalidRequestError, UnavailableError
from stairlib.runtime.addresses import Address
from stairlib.runtime.listening import stop_listening
from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)

# As TCP's own: what one connection may have under way in one direction.
WINDOW_BYTES: Final = 4 << 20
# What the kernel takes in beyond what we have read would be a second, unseen queue.
RECEIVE_BUFFER_BYTES: Final = 256 << 10
CONNECT_SECONDS: Final = 5.0
# Closing sends a reset, and not that all has been said.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

THERE: Final = "there"
BACK: Final = "back"


@dataclass(frozen=True, slots=True)
class Forward:
    """Where a link listens, and whom it passes connections on to."""

    listen: Address
    target: Address


class Direction:
    """One direction of a link, for all its connections."""

    def __init__(self, chance: random.Random) -> None:
        self.wire = Wire(Shape(), chance)
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.bytes = 0

    def set(self, shape: Shape) -> None:
        """From now on. What is under way keeps its time, but a stall holds it too."""
        self.wire.shape = shape
        if shape.stalled:
            self.flowing.clear()
        else:
            self.flowing.set()


class _Stream:
    """One direction of one connection."""

    def __init__(
        self,
        direction: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._direction = direction
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        # When it arrives, and what: bytes, none for the end, None for a reset.
        self._under_way: deque[tuple[float, bytes | None]] = deque()
        self._held = 0
        self._last = 0.0
        self._changed = asyncio.Condition()

    async def run(self) -> bool:
        """Passes on until the end has been; False when that was a reset."""
        taking = asyncio.create_task(self._take())
        try:
            return await self._give()
        finally:
            taking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await taking

    async def _take(self) -> None:
        """Reads what may be sent."""
        wire = self._direction.wire
        data: bytes | None = b"."
        while data:
            while (wait := wire.wait(self._loop.time())) > 0:  # noqa: ASYNC110 - for a clock
                await asyncio.sleep(wait)
            async with self._changed:
                await self._changed.wait_for(lambda: self._held < WINDOW_BYTES)
            try:
                data = await self._reader.read(wire.piece_bytes)
            except OSError:
                data = None
            arrives = wire.send(len(data or b""), self._loop.time())
            self._last = max(self._last, arrives)
            async with self._changed:
                self._held += len(data or b"")
                self._under_way.append((self._last, data))
                self._changed.notify_all()

    async def _give(self) -> bool:
        """Writes what has arrived."""
        direction = self._direction
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._under_way)
            arrives, data = self._under_way.popleft()
            if (late := arrives - self._loop.time()) > 0:
                await asyncio.sleep(late)
            await direction.flowing.wait()
            if not data:
                if data is not None:
                    self._end()
                return data is not None
            try:
                self._writer.write(data)
                await self._writer.drain()
            except (OSError, RuntimeError):
                # Whoever reads there learns the same, and has it travel back. The second is what
                # uvloop raises for a connection that is gone.
                return True
            direction.bytes += len(data)
            async with self._changed:
                self._held -= len(data)
                self._changed.notify_all()

    def _end(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write_eof()


class Link:
    """See the module. `start` it, `close` it; in between `set`, `cut` and `join` it."""

    def __init__(self, forwards: Sequence[Forward], chance: random.Random | None = None) -> None:
        chance = chance or random.Random()
        self._targets = [(each.listen, each.target) for each in forwards]
        self.directions = {THERE: Direction(chance), BACK: Direction(chance)}
        self.addresses: list[Address] = []
        self._servers: list[asyncio.Server] = []
        self._turning = asyncio.Lock()
        self._running: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}

    @property
    def is_cut(self) -> bool:
        """Whether connections are refused."""
        return not self._servers

    async def start(self) -> None:
        """Listens; `addresses` then says where. UnavailableError PORT_IN_USE."""
        await self._listen()
        self._targets = [
            (address, target)
            for address, (_, target) in zip(self.addresses, self._targets, strict=True)
        ]

    async def close(self) -> None:
        """Ends everything."""
        await self.cut()

    def set(self, values: Mapping[str, Any], direction: str = "") -> None:
        """Changes what is named of a direction, THERE or BACK, or of both. InvalidRequestError,
        with nothing changed, when a value makes no sense."""
        if direction and direction not in self.directions:
            raise InvalidRequestError(f"the directions are {THERE} and {BACK}, not {direction!r}")
        chosen = [direction] if direction else [THERE, BACK]
        shapes = [Shape.from_json(values, self.directions[name].wire.shape) for name in chosen]
        for name, shape in zip(chosen, shapes, strict=True):
            self.directions[name].set(shape)

    async def cut(self) -> None:
        """Resets every connection and refuses new ones, as a host whose processes are gone."""
        async with self._turning:
            await stop_listening(self._servers)
            self._servers = []
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        # Aborted transports close their sockets in the next turn.
        await asyncio.sleep(0)

    async def join(self) -> None:
        """Takes connections again. UnavailableError PORT_IN_USE."""
        async with self._turning:
            if self.is_cut:
                await self._listen()

    def state(self) -> dict[str, Any]:
        """How it is, as JSON."""
        return {
            "addresses": [
                {"listen": str(listen), "target": str(target)} for listen, target in self._targets
            ],
            "cut": self.is_cut,
            "connections": len(self._running),
            **{
                name: {**direction.wire.shape.to_json(), "bytes": direction.bytes}
                for name, direction in self.directions.items()
            },
        }

    async def _listen(self) -> None:
        made: list[asyncio.Server] = []
        try:
            for listen, target in self._targets:
                made.append(await self._listening(listen, target))
        except BaseException:
            await stop_listening(made)
            raise
        self._servers = made
        self.addresses = [
            listen.with_port(server.sockets[0].getsockname()[1])
            for (listen, _), server in zip(self._targets, made, strict=True)
        ]

    async def _listening(self, listen: Address, target: Address) -> asyncio.Server:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(reader, writer, target)

        try:
            return await asyncio.start_server(accepted, listen.host, listen.port)
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on {listen}: {error.strerror}",
                reason="PORT_IN_USE",
                address=str(listen),
            ) from error

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Address
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        writers = self._running[task] = [writer]
        reset = True
        try:
            # Nobody is reached through a stalled link; the kernel has taken the connection alone.
            for direction in self.directions.values():
                await direction.flowing.wait()
            far_reader, far_writer = await _connect(target)
            writers.append(far_writer)
            for each in writers:
                _bound(each)
            there = _Stream(self.directions[THERE], reader, far_writer)
            back = _Stream(self.directions[BACK], far_reader, writer)
            reset = not await _both(there, back)
        except (OSError, TimeoutError) as error:
            _log.info("target not reached", target=str(target), error=str(error))
        except asyncio.CancelledError:
            # The link was cut. Not raised: asyncio would call it a failure of the server.
            pass
        finally:
            del self._running[task]
            for each in writers:
                _close(each, reset=reset)


async def _both(there: _Stream, back: _Stream) -> bool:
    """Runs both directions; False as soon as one was reset."""
    tasks = {asyncio.create_task(there.run()), asyncio.create_task(back.run())}
    try:
        for ended in asyncio.as_completed(tasks):
            if not await ended:
                return False
        return True
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _connect(target: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(CONNECT_SECONDS):
        return await asyncio.open_connection(target.host, target.port)


def _bound(writer: asyncio.StreamWriter) -> None:
    """Has the kernel take in little beyond what is read, and send at once."""
    raw: Any = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _close(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if not reset:
        writer.close()
        return
    raw: Any = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
