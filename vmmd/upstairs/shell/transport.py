"""The data connection of one session: frames over a unix socket, TCP, or a gRPC stream.

All three look alike from outside: `send` takes a frame's buffers, frames come by callback, `lost`
is called exactly once at the end. A frame's buffers are views of the receive buffer, valid until
the callback returns. Invariants: a PING every 5 s; 20 s without a byte end the connection; bad
bytes end it; nothing is written after the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol, cast

import grpc

from stairlib.model.errors import UnavailableError
from stairlib.rpc.errors import from_rpc_error
from stairlib.rpc.tls import PeerTls
from stairlib.runtime.addresses import parse_address
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
    pack_op,
)
from stairwell.downstairs.v1 import block_service_pb2 as block_pb
from stairwell.downstairs.v1 import block_service_pb2_grpc as block_grpc

_log = get_logger(__name__)

PING_SECONDS = 5.0
SILENCE_SECONDS = 20.0
CONNECT_SECONDS = 5.0
# One full turn of small replies; grows to the largest frame that comes.
BUFFER_BYTES = 256 << 10
SOCKET_BUFFER_BYTES = 1 << 20
# Frames waiting for the gRPC stream; admission bounds their bytes long before.
STREAM_FRAMES_MAX = 8192
# gRPC's message limit is below the largest frame: the stream carries pieces of the byte stream.
STREAM_PIECE_BYTES = 2 << 20


class ConnectionEvents(Protocol):
    """What a connection tells. `lost` comes once, last."""

    def welcomed(self) -> None:
        """The daemon has accepted the token."""
        ...

    def received(self, frame: Frame) -> None:
        """A REPLY frame."""
        ...

    def noticed(self, text: str) -> None:
        """The daemon says why it ends the session."""
        ...

    def lost(self, reason: str) -> None:
        """The connection is gone."""
        ...


class DataConnection(Protocol):
    """Any of the transports."""

    def send(self, buffers: Sequence[Bytes]) -> None:
        """Sends a frame, or several one after the other; does nothing after the end."""
        ...

    def close(self, reason: str) -> None:
        """Ends the connection; `lost` follows."""
        ...


class _Conversation:
    """What is the same for every transport: greeting, pings, silence, the meaning of frames."""

    def __init__(self, connection: DataConnection, events: ConnectionEvents, token: bytes) -> None:
        self._connection = connection
        self._events = events
        self._token = token
        self._loop = asyncio.get_running_loop()
        self.last_received = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._over = False

    def begin(self) -> None:
        """The transport stands: shows the token."""
        hello = pack_op(0, 0, blob_bytes=len(self._token))
        self._connection.send(encode(FrameKind.HELLO, [hello], blobs=[self._token]))
        self._timer = self._loop.call_later(PING_SECONDS, self._ping)

    def _ping(self) -> None:
        silent = self._loop.time() - self.last_received
        if silent >= SILENCE_SECONDS:
            self._connection.close(f"nothing was heard for {silent:.0f} seconds")
            return
        self._connection.send(encode(FrameKind.PING))
        self._timer = self._loop.call_later(PING_SECONDS, self._ping)

    def frame(self, frame: Frame) -> None:
        """One frame from the daemon."""
        if frame.kind is FrameKind.REPLY:
            self._events.received(frame)
        elif frame.kind is FrameKind.WELCOME:
            self._events.welcomed()
        elif frame.kind is FrameKind.NOTICE:
            self._events.noticed(frame.text(0) if len(frame.ops) else "")
        elif frame.kind is not FrameKind.PONG:
            raise FrameError(f"a {frame.kind.name} frame has no place in a session")

    def end(self, reason: str) -> None:
        """The transport is gone."""
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        self._events.lost(reason)


class SocketConnection(asyncio.BufferedProtocol):
    """TCP or unix socket: bytes are received in place, frames leave by a scatter write."""

    def __init__(self, events: ConnectionEvents, token: bytes) -> None:
        self._conversation = _Conversation(self, events, token)
        self._loop = asyncio.get_running_loop()
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._start = 0
        self._end = 0
        self._transport: asyncio.Transport | None = None
        self._reason = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        # Not asserted: uvloop's transports do not derive from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        raw: socket.socket | None = transport.get_extra_info("socket")
        if raw is not None:
            if raw.family == socket.AF_UNIX:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
            else:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._conversation.begin()

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Where the next bytes go: always room for at least one byte."""
        if self._end == len(self._buffer):
            self._make_room(self._end - self._start + 1)
        return self._buffer[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come: handles every whole frame among them."""
        self._end += nbytes
        self._conversation.last_received = self._loop.time()
        try:
            self._parse()
        except FrameError as error:
            self.close(f"bad frame: {error}")

    def _parse(self) -> None:
        while self._end - self._start >= HEADER_BYTES and not self._reason:
            head = self._buffer[self._start : self._start + HEADER_BYTES]
            length = frame_length(head)
            if self._end - self._start < length:
                self._make_room(length)
                return
            end = self._start + length
            self._conversation.frame(decode(self._buffer[self._start : end]))
            self._start = end
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start + HEADER_BYTES > len(self._buffer):
            self._make_room(HEADER_BYTES)

    def _make_room(self, length: int) -> None:
        """Makes the frame that begins at `_start` fit whole. Never while a frame is handled: its
        views are of the buffer."""
        if self._start + length <= len(self._buffer) and self._end < len(self._buffer):
            return
        kept = self._end - self._start
        size = len(self._buffer)
        while size < length:
            size *= 2
        buffer = self._buffer if size == len(self._buffer) else memoryview(bytearray(size))
        buffer[:kept] = self._buffer[self._start : self._end]
        self._buffer, self._start, self._end = buffer, 0, kept

    def eof_received(self) -> bool:
        """The daemon sends no more: the session is over."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone, whoever ended it."""
        self._transport = None
        default = f"connection lost: {exc}" if exc else "the daemon closed the connection"
        self._conversation.end(self._reason or default)

    def pause_writing(self) -> None:
        """Admission bounds what is sent: nothing to do."""

    def resume_writing(self) -> None:
        """As `pause_writing`."""

    def send(self, buffers: Sequence[Bytes]) -> None:
        """Sends a frame, or several one after the other."""
        transport = self._transport
        if transport is None or self._reason:
            return
        if len(buffers) == 1:
            transport.write(buffers[0])
        else:
            transport.writelines(buffers)

    def close(self, reason: str) -> None:
        """Ends it; what was sent may still leave, but a daemon that hangs does not hold us up."""
        if self._reason:
            return
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()


class StreamConnection:
    """The same frames inside one gRPC call: for where only one port can be reached."""

    def __init__(self, channel: grpc.aio.Channel, events: ConnectionEvents, token: bytes) -> None:
        self._conversation = _Conversation(self, events, token)
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._received = b""
        self._reason = ""
        self._call = block_grpc.BlockServiceStub(channel).Data(self._requests())
        self._conversation.begin()
        self._task = self._loop.create_task(self._receive())

    async def _requests(self) -> AsyncIterator[block_pb.DataRequest]:
        while (data := await self._queue.get()) is not None:
            for at in range(0, len(data), STREAM_PIECE_BYTES):
                yield block_pb.DataRequest(frame=data[at : at + STREAM_PIECE_BYTES])

    async def _receive(self) -> None:
        reason = "the daemon ended the stream"
        try:
            async for response in self._call:
                self._conversation.last_received = self._loop.time()
                self._take(response.frame)
        except grpc.aio.AioRpcError as error:
            reason = from_rpc_error(error).message
        except FrameError as error:
            reason = f"bad frame: {error}"
        except asyncio.CancelledError:
            if not self._reason:
                raise
        finally:
            self._call.cancel()
            self._queue.put_nowait(None)
            self._conversation.end(self._reason or reason)

    def _take(self, piece: bytes) -> None:
        received = self._received + piece if self._received else piece
        at = 0
        while len(received) - at >= HEADER_BYTES and not self._reason:
            length = frame_length(received[at : at + HEADER_BYTES])
            if len(received) - at < length:
                break
            self._conversation.frame(decode(received[at : at + length]))
            at += length
        self._received = received[at:]

    def send(self, buffers: Sequence[Bytes]) -> None:
        """Sends a frame, or several one after the other."""
        if self._reason:
            return
        if self._queue.qsize() >= STREAM_FRAMES_MAX:
            self.close("the daemon does not drain the stream")
            return
        self._queue.put_nowait(b"".join(buffers))

    def close(self, reason: str) -> None:
        """Ends it."""
        if not self._reason:
            self._reason = reason
            self._task.cancel()


async def connect(
    opened: block_pb.OpenSessionResponse,
    channel: grpc.aio.Channel,
    events: ConnectionEvents,
    *,
    stream_only: bool = False,
    tls: PeerTls | None = None,
) -> DataConnection:
    """The quickest transport that can be reached: the unix socket when it is on this host, TCP, the
    stream. All of them over TLS where the channel is."""
    loop = asyncio.get_running_loop()
    secure: dict[str, Any] = {}
    if tls is not None:
        secure = {"ssl": tls.context, "server_hostname": tls.server_name}
    if stream_only:
        return StreamConnection(channel, events, opened.token)
    path = opened.data_unix_path
    if path:
        # On another host, or in another container, the path is simply not there.
        with contextlib.suppress(OSError):
            async with asyncio.timeout(CONNECT_SECONDS):
                _transport, unix = await loop.create_unix_connection(
                    lambda: SocketConnection(events, opened.token), path, **secure
                )
            return unix
    try:
        address = parse_address(opened.data_address)
        async with asyncio.timeout(CONNECT_SECONDS):
            _transport, tcp = await loop.create_connection(
                lambda: SocketConnection(events, opened.token),
                address.host,
                address.port,
                **secure,
            )
    except (OSError, TimeoutError) as error:
        _log.info(
            "data address not reached, using the stream",
            address=opened.data_address,
            error=str(error),
        )
        return StreamConnection(channel, events, opened.token)
    return tcp


def not_reached(address: str, what: str) -> UnavailableError:
    """For a daemon that did not answer in time."""
    return UnavailableError(f"{address} did not {what} in time: is downstaird running there?")
