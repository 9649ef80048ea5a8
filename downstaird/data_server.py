"""The data connection over TCP and unix sockets: bytes to frames and back.

Bytes are received into one buffer of the connection and parsed in place; a frame's views stay valid
until it has been worked off, and nothing is read meanwhile. Replies leave by a scatter write.
Invariants: before its token a peer can make the daemon hold one kilobyte; after it, one frame in
and a bounded buffer out."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import ssl
import stat
import tempfile
import uuid
from pathlib import Path
from typing import Any, cast

from downstaird.conversation import (
    HELLO_FRAME_BYTES_MAX,
    HELLO_SECONDS,
    Conversation,
    hello_token,
)
from downstaird.region_host import RegionHost
from downstaird.repair_sending import BlockConnection
from stairlib.model.errors import UnavailableError
from stairlib.runtime.listening import stop_listening
from stairlib.telemetry.logs import get_logger
from stairlib.wire.frame import (
    HEADER_BYTES,
    Bytes,
    Frame,
    FrameError,
    FrameKind,
    decode,
    encode,
    frame_length,
)

_log = get_logger(__name__)

# One full turn of small guest requests; grows to the largest frame a peer sends.
BUFFER_BYTES = 256 << 10
# Two full replies may wait for a slow peer. Below the low mark the next turn begins.
WRITE_HIGH_BYTES = 8 << 20
WRITE_LOW_BYTES = 1 << 20
# A set has one upstairs; the rest are read-only sessions and reconnects not yet noticed.
CONNECTIONS_MAX = 128
# The default of 208 KiB cuts each 1 MiB reply into five wake-ups of the peer.
SOCKET_BUFFER_BYTES = 1 << 20
KEEPALIVE_SECONDS = 15
# A peer that does not read its NOTICE is cut off after this.
FINISH_SECONDS = 5.0


class DataConnection(asyncio.BufferedProtocol):
    """One accepted connection; the Wire of its conversation."""

    def __init__(self, server: DataServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._buffer = memoryview(bytearray(HELLO_FRAME_BYTES_MAX))
        self._start = 0
        self._end = 0
        # Length of the frame being worked off, at `_start`; 0 when there is none.
        self._current = 0
        self._parsing = False
        self._reading = True
        self._writable = True
        self._transport: asyncio.Transport | None = None
        self._conversation: Conversation | None = None
        self._blocks: tuple[bytes, BlockConnection] | None = None
        self.last_activity = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A peer has connected."""
        # Not asserted: uvloop's transports do not derive from asyncio's.
        made = self._transport = cast("asyncio.Transport", transport)
        if not self._server.admit(self):
            made.abort()
            return
        made.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)
        raw: Any = transport.get_extra_info("socket")
        if raw is not None:
            if raw.family != socket.AF_UNIX:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            else:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        peer = transport.get_extra_info("peername")
        self._conversation = Conversation(self._server.host, self, _peer_text(peer))

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has gone, whoever closed it."""
        self._server.gone(self)
        if self._blocks is not None:
            self._server.host.repair_sending.lost(*self._blocks)
        if self._conversation is not None:
            self._conversation.close(f"CONNECTION_LOST {exc}" if exc else "CONNECTION_CLOSED")
        self._transport = None

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Where the next bytes go."""
        if self._end == len(self._buffer):
            self._make_room(2 * len(self._buffer))
        return self._buffer[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        if self._blocks is not None:
            # Nothing is to be said there.
            self.abort()
            return
        self._end += nbytes
        self.last_activity = self._loop.time()
        self._parse()

    def eof_received(self) -> bool:
        """The peer sends no more: the session is over."""
        return False

    def pause_writing(self) -> None:
        """The peer does not drain: no further turns."""
        self._writable = False
        self._set_reading()

    def resume_writing(self) -> None:
        """It does again."""
        self._writable = True
        self.last_activity = self._loop.time()
        if self._conversation is not None:
            self._conversation.advance()
        self._parse()

    @property
    def writable(self) -> bool:
        """Whether the peer drains."""
        return self._writable

    def send(self, buffers: list[Bytes]) -> None:
        """Sends a frame."""
        if self._transport is None or self._transport.is_closing():
            return
        if len(buffers) == 1:
            self._transport.write(buffers[0])
        else:
            self._transport.writelines(buffers)

    def proceed(self) -> None:
        """The frame was worked off: goes on with what has been received."""
        self._parse()

    def finish(self) -> None:
        """Closes once what was sent has left."""
        transport = self._transport
        if transport is not None:
            transport.close()
            self._loop.call_later(FINISH_SECONDS, transport.abort)

    def abort(self) -> None:
        """Closes now."""
        if self._transport is not None:
            self._transport.abort()

    def _parse(self) -> None:
        conversation = self._conversation
        if self._parsing or conversation is None:
            return
        self._parsing = True
        try:
            while conversation.ready:
                self._start += self._current
                self._current = 0
                if not self._writable:
                    break
                length = self._next_length(conversation)
                if not length:
                    break
                frame = decode(self._buffer[self._start : self._start + length])
                self._current = length
                if not conversation.greeted and self._sends_blocks(frame, conversation):
                    return
                conversation.feed(frame)
        except FrameError as error:
            conversation.fail(error)
        finally:
            self._parsing = False
        conversation.rest()
        self._set_reading()

    def _sends_blocks(self, frame: Frame, conversation: Conversation) -> bool:
        """Whether a HELLO makes this a block connection of a repair. From then on threads write to
        the socket, and here nothing but its end is waited for."""
        token = hello_token(frame)
        raw: Any = self._transport.get_extra_info("socket") if self._transport else None
        if token is None or raw is None:
            return False
        connection = self._server.host.repair_sending.connect(token, lambda: os.dup(raw.fileno()))
        if connection is None:
            return False
        self._blocks = (token, connection)
        self._conversation = None
        if raw.family != socket.AF_UNIX:
            # Nobody pings here, and a target that is gone without a word would be kept for ever.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        self.send(encode(FrameKind.WELCOME, sequence=frame.sequence))
        conversation.close("BLOCK_CONNECTION")
        return True

    def _next_length(self, conversation: Conversation) -> int:
        """The length of the next frame when it is there whole, else 0, with room made for it."""
        have = self._end - self._start
        if not have:
            self._start = self._end = 0
        if have < HEADER_BYTES:
            self._ensure_room(max(HEADER_BYTES, BUFFER_BYTES if conversation.greeted else 0))
            return 0
        length = frame_length(self._buffer[self._start : self._start + HEADER_BYTES])
        if not conversation.greeted and length > HELLO_FRAME_BYTES_MAX:
            raise FrameError(f"a first frame of {length} bytes")
        if have < length:
            self._ensure_room(length)
            return 0
        return length

    def _ensure_room(self, length: int) -> None:
        """Room for a frame of `length` bytes from `_start` on; only while no frame is worked
        off."""
        if self._start + length <= len(self._buffer):
            return
        if length <= len(self._buffer):
            have = self._end - self._start
            self._buffer[:have] = self._buffer[self._start : self._end]
            self._start, self._end = 0, have
        else:
            self._make_room(length)

    def _make_room(self, size: int) -> None:
        """A new buffer: views into the one before stay valid."""
        have = self._end - self._start
        buffer = memoryview(bytearray(max(size, have + HEADER_BYTES)))
        buffer[:have] = self._buffer[self._start : self._end]
        self._buffer = buffer
        self._start, self._end = 0, have

    def _set_reading(self) -> None:
        transport, conversation = self._transport, self._conversation
        if transport is None or conversation is None or transport.is_closing():
            return
        wanted = conversation.ready and self._writable
        if wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            transport.resume_reading()
        else:
            transport.pause_reading()


def _peer_text(peer: object) -> str:
    if isinstance(peer, tuple):
        return f"{peer[0]}:{peer[1]}"
    return "unix"


_SOCKET_PATH_BYTES_MAX = 107


def socket_path(directory: Path, region_id: uuid.UUID) -> Path:
    """A short path for the region's unix socket, the same after each restart: the limit is 107
    bytes, and a region's directory, or the runtime directory, may have any length."""
    digest = hashlib.sha256(f"{directory.resolve()}\0{region_id}".encode()).hexdigest()[:20]
    name = f"stairwell-{os.getuid()}/d-{digest}.sock"
    preferred = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / name
    fits = len(os.fsencode(preferred)) <= _SOCKET_PATH_BYTES_MAX
    return preferred if fits else Path("/tmp") / name  # noqa: S108 - a directory of our own in it


class DataServer:
    """Listens for data connections on TCP and on a unix socket; over TLS where there is a
    `context`."""

    def __init__(self, host: RegionHost, context: ssl.SSLContext | None = None) -> None:
        self.host = host
        # The handshake's time is given only with TLS: asyncio refuses it otherwise.
        self._tls: dict[str, Any] = (
            {"ssl": context, "ssl_handshake_timeout": HELLO_SECONDS} if context is not None else {}
        )
        self.port = 0
        self.unix_path: Path | None = None
        self._connections: set[DataConnection] = set()
        self._servers: list[asyncio.Server] = []
        self._closed = False

    def admit(self, connection: DataConnection) -> bool:
        """Counts a connection in, unless there are too many, or it was accepted too late."""
        if self._closed:
            return False
        if len(self._connections) >= CONNECTIONS_MAX:
            _log.warning("too many data connections", limit=CONNECTIONS_MAX)
            return False
        self._connections.add(connection)
        return True

    def gone(self, connection: DataConnection) -> None:
        """Counts it out."""
        self._connections.discard(connection)

    async def listen(self, address: str, port: int, *, or_any: bool) -> None:
        """Binds TCP. UnavailableError PORT_IN_USE, unless any free port will do then."""
        try:
            server = await self._listening(address, port)
        except OSError as error:
            if not or_any or port == 0:
                raise UnavailableError(
                    f"cannot listen for data on {address}:{port}: {error.strerror}; "
                    "choose another --data-port",
                    reason="PORT_IN_USE",
                    address=f"{address}:{port}",
                ) from error
            server = await self._listening(address, 0)
        self._servers.append(server)
        self.port = server.sockets[0].getsockname()[1]

    async def _listening(self, address: str, port: int) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: DataConnection(self), address, port, **self._tls)

    async def listen_unix(self, path: Path) -> None:
        """Binds the unix socket; without one where the directory cannot be made or is not ours."""
        try:
            _prepare(path)
            loop = asyncio.get_running_loop()
            server = await loop.create_unix_server(
                lambda: DataConnection(self), str(path), **self._tls
            )
        except OSError as error:
            _log.warning("no unix socket for data", path=str(path), error=str(error))
            return
        self._servers.append(server)
        self.unix_path = path

    async def close(self) -> None:
        """Stops listening and cuts off what is left of the connections. One that was accepted just
        now is not let in."""
        self._closed = True
        await stop_listening(self._servers)
        if self._connections:
            # Their notices have been written; one turn of the loop sends what the sockets take.
            await asyncio.sleep(0.05)
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)
        if self.unix_path is not None:
            _remove(self.unix_path)


def _prepare(path: Path) -> None:
    """A directory of our own for the socket, and nothing in the way. OSError when that cannot
    be."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.parent.stat().st_uid != os.getuid():
        raise PermissionError(f"{path.parent} belongs to somebody else")
    path.parent.chmod(stat.S_IRWXU)
    # The region's lock is held: a socket of this name was left behind by a daemon that was killed.
    path.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
