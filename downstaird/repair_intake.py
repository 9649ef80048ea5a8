"""The target's end of a repair's block connections: bytes of blocks from a socket into a buffer
that is there already.

Each copy that runs has a connection for itself, so that one which waits for its turn holds up no
other. Invariants: threads read, the loop opens and closes; a socket is closed only when no thread
uses it; what was received is checked by who asked for it."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Iterator

import grpc

from downstaird.core.engine import Buffer
from downstaird.core.repair_plan import CHUNK_BYTES_MAX, CopySource, checksum
from stairlib.model.errors import StairwellError
from stairlib.rpc.errors import translated
from stairlib.runtime.addresses import parse_address
from stairlib.telemetry.logs import get_logger
from stairlib.wire.frame import (
    HEADER_BYTES,
    FrameError,
    FrameKind,
    OpKind,
    decode,
    encode,
    frame_length,
    pack_op,
)
from stairlib.wire.repair_chunk import Chunk
from stairwell.downstairs.v1 import repair_service_pb2 as repair_pb
from stairwell.downstairs.v1 import repair_service_pb2_grpc as repair_grpc

_log = get_logger(__name__)

# For the connection, and for the call before it.
CONNECT_SECONDS = 5.0
# As of a message: a source under load sends late, a dead one never.
IDLE_SECONDS = 15.0
# Copies of one repair follow each other; each connection holds a buffer of 2 MiB.
KEEP_SECONDS = 10.0
# struct timeval, for SO_RCVTIMEO.
_TIMEVAL = struct.Struct("ll")


class Intake:
    """One block connection, and the buffer it is read into."""

    def __init__(self, token: bytes, connected: socket.socket) -> None:
        self.token = token
        self._socket = connected
        self._lock = threading.Lock()
        self._receiving = False
        self._over = False
        # Of the kernel, and kept: its pages are there for all that comes.
        self._buffer = memoryview(mmap.mmap(-1, CHUNK_BYTES_MAX))

    def alive(self) -> bool:
        """Whether it is open at the other end too, as far as is known here, and empty."""
        try:
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def part(self, size: int) -> memoryview:
        """Where the next `size` bytes will be."""
        if size > len(self._buffer):
            self._buffer = memoryview(mmap.mmap(-1, size))
        return self._buffer[:size]

    def receive(self, part: memoryview) -> None:
        """On a thread: fills it. ConnectionError."""
        with self._lock:
            if self._over:
                raise ConnectionAbortedError("the connection for its blocks was closed here")
            self._receiving = True
        try:
            have = 0
            while have < len(part):
                count = self._socket.recv_into(part[have:], 0, socket.MSG_WAITALL)
                if not count:
                    raise ConnectionResetError("it closed the connection for its blocks")
                have += count
        except BlockingIOError:
            raise ConnectionAbortedError(f"no blocks for {IDLE_SECONDS:.0f} seconds") from None
        except OSError as error:
            raise ConnectionAbortedError(str(error)) from error
        finally:
            self._received()

    def _received(self) -> None:
        with self._lock:
            self._receiving = False
            if self._over:
                self._socket.close()

    def close(self) -> None:
        """Ends it; a thread that reads is woken."""
        with self._lock:
            self._over = True
            if self._receiving:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
            else:
                self._socket.close()


class Incoming:
    """The blocks of one message of StreamExtent: in it, or to come on a connection."""

    def __init__(self, chunk: Chunk, intake: Intake | None) -> None:
        self.chunk = chunk
        self.first_block = chunk.first_block
        self.apart = bool(chunk.sent_bytes)
        self.data: Buffer = chunk.data
        self._intake = intake
        if intake is not None and self.apart:
            self.data = intake.part(chunk.sent_bytes)

    def arrive(self) -> bool:
        """On a thread: returns when they are there, the second time at once. Whether they are known
        to be what was sent; when they come apart their contexts must say so. ConnectionError."""
        if not self.apart:
            return checksum(self.chunk.contexts, (self.chunk.data,)) == self.chunk.checksum
        if self._intake is not None:
            intake, self._intake = self._intake, None
            intake.receive(memoryview(self.data))
        return True


class Intakes:
    """The block connections of one session's copies."""

    def __init__(self) -> None:
        self._free: dict[str, list[Intake]] = defaultdict(list)
        self._all: set[Intake] = set()
        # Sources that offer none, or that cannot be reached so: asked once.
        self._without: set[str] = set()
        self._over = False
        self._lent = 0
        self._used = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    async def take(self, source: CopySource, channel: grpc.aio.Channel) -> Intake | None:
        """A connection to the source for one call; None where its blocks come in messages."""
        if source.address in self._without:
            return None
        free = self._free[source.address]
        while free:
            idle = free.pop()
            if idle.alive():
                return idle
            self._drop(idle)
        try:
            intake = await self._opened(source, channel)
        except (StairwellError, FrameError, OSError) as error:
            # Whoever cannot be reached at all says so once more, to the call that must succeed.
            _log.info("blocks come in messages", source=source.address, why=str(error))
            intake = None
        if intake is None:
            self._without.add(source.address)
            return None
        self._all.add(intake)
        if self._over:
            self._drop(intake)
        return intake

    async def _opened(self, source: CopySource, channel: grpc.aio.Channel) -> Intake | None:
        request = repair_pb.OpenBlockConnectionRequest(
            upstairs_id=str(source.upstairs_id), generation=source.generation
        )
        with translated(f"repair source {source.address}"):
            answer = await repair_grpc.RepairServiceStub(channel).OpenBlockConnection(
                request, timeout=CONNECT_SECONDS
            )
        if not answer.token:
            return None
        job = asyncio.get_running_loop().run_in_executor(None, _dial, answer)
        try:
            connected = await asyncio.shield(job)
        except asyncio.CancelledError:
            job.add_done_callback(_unwanted)
            raise
        return Intake(answer.token, connected)

    @contextlib.contextmanager
    def lent(self, source: CopySource, intake: Intake | None) -> Iterator[None]:
        """For one call. When this does not end well the connection ends: something may still be on
        its way in it."""
        self._lent += 1
        try:
            yield
        except BaseException:
            if intake is not None:
                self._drop(intake)
            raise
        else:
            if intake is not None:
                self._free[source.address].append(intake)
        finally:
            self._lent -= 1
            self._used = self._loop.time()
            if self._timer is None and not self._over:
                self._timer = self._loop.call_later(KEEP_SECONDS, self._age)

    def _age(self) -> None:
        """Lets go of what nobody has used for a while: a session may live for months."""
        self._timer = None
        left = self._used + KEEP_SECONDS - self._loop.time()
        if self._lent or left > 0:
            self._timer = self._loop.call_later(max(left, KEEP_SECONDS / 2), self._age)
            return
        for intake in [one for free in self._free.values() for one in free]:
            self._drop(intake)
        self._free.clear()

    def _drop(self, intake: Intake) -> None:
        self._all.discard(intake)
        intake.close()

    def close(self) -> None:
        """Ends all of them."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        self._free.clear()
        for intake in list(self._all):
            self._drop(intake)


def _unwanted(job: asyncio.Future[socket.socket]) -> None:
    if job.exception() is None:
        job.result().close()


def _dial(answer: repair_pb.OpenBlockConnectionResponse) -> socket.socket:
    """The quickest way there: the unix socket when it is on this host, else TCP. OSError."""
    connected = _connected(answer)
    try:
        _greet(connected, answer.token)
        # From here on threads may wait in the kernel, for so long at most.
        connected.setblocking(True)
        seconds = _TIMEVAL.pack(int(IDLE_SECONDS), 0)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
    except BaseException:
        connected.close()
        raise
    return connected


def _greet(connected: socket.socket, token: bytes) -> None:
    hello = pack_op(0, OpKind.NOOP, blob_bytes=len(token))
    for part in encode(FrameKind.HELLO, [hello], blobs=[token]):
        connected.sendall(part)
    head = _exactly(connected, HEADER_BYTES)
    frame = decode(head + _exactly(connected, frame_length(head) - HEADER_BYTES))
    if frame.kind is not FrameKind.WELCOME:
        raise ConnectionRefusedError("the source does not take the token")


def _connected(answer: repair_pb.OpenBlockConnectionResponse) -> socket.socket:
    if answer.data_unix_path:
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        found.settimeout(CONNECT_SECONDS)
        try:
            found.connect(answer.data_unix_path)
        except OSError:
            # On another host, or in another container, the path is simply not there.
            found.close()
        else:
            return found
    address = parse_address(answer.data_address)
    return socket.create_connection((address.host, address.port), timeout=CONNECT_SECONDS)


def _exactly(connected: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connected.recv(size - len(data))
        if not part:
            raise ConnectionResetError("the source closed the connection")
        data += part
    return data
