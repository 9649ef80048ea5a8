"""One hypervisor's connection: the messages it sends, and the rings it sets up by them.

Messages are handled one at a time, in order, and never wait for I/O of the disk, with one
exception: the hypervisor that stops a ring waits for what is in flight, STOP_SECONDS at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from stairlib.telemetry.logs import get_logger
from vmmd.hw.virtio.ring import ENTRIES_MAX, Chain
from vmmd.vhost_user.core import wire
from vmmd.vhost_user.core.inflight import InflightRing, ring_bytes
from vmmd.vhost_user.core.wire import Kind, ProtocolError
from vmmd.vhost_user.memory import SharedMemory
from vmmd.vhost_user.ring import Ring

_log = get_logger(__name__)

RINGS_MAX = 16
# The hypervisor stands still while it waits for a ring to stop. What is then still in flight is
# noted in the inflight area and taken up again when the ring is started.
STOP_SECONDS = 2.0
# A hypervisor speaks first, and at once. QEMU 7.2 that lost a connection in the middle of its first
# words may hold the next one and say nothing on it, until it is hung up on.
FIRST_SECONDS = 5.0
_PROTOCOL_FEATURES = (
    wire.PROTOCOL_MULTI_QUEUE
    | wire.PROTOCOL_REPLY_ACK
    | wire.PROTOCOL_CONFIG
    | wire.PROTOCOL_INFLIGHT
)


class Device(Protocol):
    """The disk, as far as a connection is concerned."""

    features: int
    config: bytes
    rings: int
    journal_bytes: int

    def take(self, ring: int, chains: Sequence[Chain]) -> None:
        """New chains of a ring."""
        ...

    def use_journal(self, area: memoryview | None, ready: Callable[[], None]) -> None:
        """Takes up what the area holds, then calls `ready`; rings are started after that."""
        ...

    def forget(self, ring: int) -> None:
        """Lets go of a ring's requests."""
        ...


class Session:
    """See the module. `run` serves the socket until it ends."""

    def __init__(self, connection: socket.socket, device: Device) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._device = device
        self._memory = SharedMemory()
        self._rings: list[Ring] = []
        self._ready = True
        self._features = 0
        self._closed = False

    async def run(self) -> None:
        """Until the peer hangs up, or does something it may not."""
        loop = asyncio.get_running_loop()
        self._rings = [
            Ring(number, self._memory, self._device.take) for number in range(self._device.rings)
        ]
        silence: float | None = FIRST_SECONDS
        try:
            while True:
                head, files = await self._first_or_next(loop, silence)
                silence = None
                if head is None:
                    return
                try:
                    payload = await self._exactly(loop, head.size)
                    await self._handle(head, payload, files)
                finally:
                    for file in files:
                        os.close(file)
        except ProtocolError as error:
            _log.warning("hypervisor hung up on", reason=str(error))
        except OSError as error:
            _log.warning("connection of a hypervisor lost", reason=error.strerror or str(error))
        finally:
            self.close()

    def close(self) -> None:
        """Lets go of everything of this connection."""
        if self._closed:
            return
        self._closed = True
        self._ready = False
        for ring in self._rings:
            ring.close()
            self._device.forget(ring.number)
        # Mappings hold descriptors of their own: they are not left to the garbage collector.
        self._memory.map([], [])
        self._rings = []
        self._connection.close()

    def give_back(self, ring: int, done: Sequence[tuple[int, int]]) -> None:
        """Chains of a ring are done."""
        if not self._closed:
            self._rings[ring].give_back(done)

    # --- the socket

    async def _first_or_next(
        self, loop: asyncio.AbstractEventLoop, seconds: float | None
    ) -> tuple[wire.Header | None, list[int]]:
        try:
            async with asyncio.timeout(seconds):
                return await self._receive(loop)
        except TimeoutError:
            raise ProtocolError(f"it said nothing for {seconds} s") from None

    async def _receive(
        self, loop: asyncio.AbstractEventLoop
    ) -> tuple[wire.Header | None, list[int]]:
        """The next header and the descriptors that came with it; None at the end."""
        files: list[int] = []
        raw = b""
        try:
            while len(raw) < wire.HEADER.size:
                await _readable(loop, self._connection)
                with contextlib.suppress(BlockingIOError):
                    data, got, _flags, _address = socket.recv_fds(
                        self._connection, wire.HEADER.size - len(raw), wire.FDS_MAX
                    )
                    files += got
                    raw += data
                    if not data:
                        _check_ended(raw)
                        return None, files
            return wire.header(raw), files
        except BaseException:
            for file in files:
                os.close(file)
            raise

    async def _exactly(self, loop: asyncio.AbstractEventLoop, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = await loop.sock_recv(self._connection, length - len(data))
            if not part:
                raise ProtocolError("a message that is cut off")
            data += part
        return data

    def _send(self, data: bytes, files: Sequence[int] = ()) -> None:
        """Answers are a few hundred bytes: a peer that does not read them is not worth waiting
        for."""
        try:
            sent = socket.send_fds(self._connection, [data], files)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            raise ProtocolError("the peer does not read its answers")

    # --- messages

    async def _handle(self, head: wire.Header, payload: bytes, files: list[int]) -> None:
        try:
            kind = Kind(head.kind)
        except ValueError:
            raise ProtocolError(f"request {head.kind}, which was not negotiated") from None
        if kind in wire.ANSWERED:
            answer, attached = await self._answer(kind, payload)
            self._send(wire.reply(kind, answer), attached)
            for file in attached:
                os.close(file)
            return
        self._obey(kind, payload, files)
        if head.flags & wire.FLAG_NEED_REPLY:
            self._send(wire.reply(kind, wire.u64_payload(0)))
        self._start_rings()

    async def _answer(self, kind: Kind, payload: bytes) -> tuple[bytes, list[int]]:
        match kind:
            case Kind.GET_FEATURES:
                return wire.u64_payload(self._device.features | wire.FEATURE_PROTOCOL), []
            case Kind.GET_PROTOCOL_FEATURES:
                return wire.u64_payload(_PROTOCOL_FEATURES), []
            case Kind.GET_QUEUE_NUM:
                return wire.u64_payload(self._device.rings), []
            case Kind.GET_VRING_BASE:
                number, _unused = wire.ring_state(payload)
                base = await self._ring(number).stop(STOP_SECONDS)
                self._device.forget(number)
                self._ring(number).set_kick(None)
                return wire.ring_state_payload(number, base), []
            case Kind.GET_CONFIG:
                offset, size, flags = wire.config_request(payload)
                if offset + size > 256:
                    raise ProtocolError(f"{size} bytes of configuration at {offset}")
                config = self._device.config.ljust(256, b"\0")
                return wire.config_payload(offset, flags, config[offset : offset + size]), []
            case _:
                assert kind is Kind.GET_INFLIGHT_FD
                return self._make_area(wire.inflight(payload))

    def _obey(self, kind: Kind, payload: bytes, files: list[int]) -> None:
        match kind:
            case Kind.SET_FEATURES:
                self._set_features(wire.u64(payload))
            case Kind.SET_MEM_TABLE:
                self._set_memory(payload, files)
            case Kind.SET_VRING_NUM:
                number, entries = wire.ring_state(payload)
                self._ring(number).set_entries(entries)
            case Kind.SET_VRING_ADDR:
                addresses = wire.ring_addresses(payload)
                self._ring(addresses.ring).addresses = addresses
            case Kind.SET_VRING_BASE:
                number, base = wire.ring_state(payload)
                self._ring(number).base = base & 0xFFFF
            case Kind.SET_VRING_KICK | Kind.SET_VRING_CALL | Kind.SET_VRING_ERR:
                self._set_file(kind, payload, files)
            case Kind.SET_VRING_ENABLE:
                number, enabled = wire.ring_state(payload)
                self._ring(number).enabled = bool(enabled)
            case Kind.SET_INFLIGHT_FD:
                self._set_area(wire.inflight(payload), files)
            case _:
                # SET_OWNER, RESET_OWNER, SET_PROTOCOL_FEATURES, SET_CONFIG: nothing hangs on them.
                pass

    def _ring(self, number: int) -> Ring:
        if number >= len(self._rings):
            raise ProtocolError(f"ring {number} of {len(self._rings)}")
        return self._rings[number]

    def _set_features(self, features: int) -> None:
        unknown = features & ~(self._device.features | wire.FEATURE_PROTOCOL)
        if unknown:
            raise ProtocolError(f"features {unknown:#x}, which were not offered")
        self._features = features
        if not features & wire.FEATURE_PROTOCOL:
            for ring in self._rings:
                ring.enabled = True

    def _set_memory(self, payload: bytes, files: list[int]) -> None:
        regions = wire.regions(payload)
        if len(files) != len(regions):
            raise ProtocolError(f"{len(files)} files for {len(regions)} regions of memory")
        self._memory.map(regions, files)

    def _set_file(self, kind: Kind, payload: bytes, files: list[int]) -> None:
        value = wire.u64(payload)
        ring = self._ring(value & wire.RING_MASK)
        if bool(value & wire.NO_FD) == bool(files):
            raise ProtocolError(f"{kind.name} with {len(files)} files")
        if kind is Kind.SET_VRING_ERR:
            return  # nothing is ever told there
        file = files.pop(0) if files else None
        if kind is Kind.SET_VRING_CALL:
            ring.set_call(file)
        elif file is None:
            raise ProtocolError("a ring to be polled, which is not offered")
        else:
            ring.set_kick(file)

    def _start_rings(self) -> None:
        if self._ready and not self._closed:
            for ring in self._rings:
                if ring.startable:
                    ring.start()

    # --- the area that outlives this process

    def _make_area(self, wanted: wire.Inflight) -> tuple[bytes, list[int]]:
        """New memory for notes and journal; the hypervisor hands it back with SET_INFLIGHT_FD."""
        if not 0 < wanted.rings <= RINGS_MAX or not 0 < wanted.entries <= ENTRIES_MAX:
            raise ProtocolError(f"{wanted.rings} rings of {wanted.entries} entries")
        size = wanted.rings * ring_bytes(wanted.entries) + self._device.journal_bytes
        file = os.memfd_create("stairwell-inflight", os.MFD_CLOEXEC)
        os.ftruncate(file, size)
        return wire.inflight_payload(wanted._replace(size=size, offset=0)), [file]

    def _set_area(self, area: wire.Inflight, files: list[int]) -> None:
        if any(ring.running for ring in self._rings):
            raise ProtocolError("an inflight area for rings that run")
        notes = area.rings * ring_bytes(area.entries)
        if len(files) != 1 or area.offset or notes > area.size:
            raise ProtocolError(f"an inflight area of {area.size} bytes for {area.rings} rings")
        if not 0 < area.entries <= ENTRIES_MAX or not 0 < area.rings <= RINGS_MAX:
            raise ProtocolError(f"an inflight area for {area.rings} rings of {area.entries}")
        try:
            if os.fstat(files[0]).st_size < area.size:
                raise ProtocolError("an inflight area that is smaller than it says")
            whole = memoryview(mmap.mmap(files[0], area.size))
        except (OSError, ValueError) as error:
            raise ProtocolError(f"the inflight area cannot be mapped: {error}") from error
        # As many as the hypervisor uses.
        for ring in self._rings[: area.rings]:
            start = ring.number * ring_bytes(area.entries)
            view = whole[start : start + ring_bytes(area.entries)]
            ring.inflight = InflightRing(view, area.entries)
        self._ready = False
        journal = whole[notes:] if area.size - notes == self._device.journal_bytes else None
        self._device.use_journal(journal or None, self._area_ready)

    def _area_ready(self) -> None:
        self._ready = True
        try:
            self._start_rings()
        except ProtocolError as error:
            _log.warning("hypervisor hung up on", reason=str(error))
            self.close()


def _check_ended(raw: bytes) -> None:
    """The peer has hung up; ProtocolError when it did so in the middle of a header."""
    if raw:
        raise ProtocolError("a message that is cut off")


async def _readable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """Returns when there is something to read."""
    readable: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(connection.fileno(), ready)
    try:
        await readable
    finally:
        loop.remove_reader(connection.fileno())
