"""A hypervisor's side of vhost-user, with guest memory of its own: what tests connect with."""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import struct
from collections.abc import Sequence

from tests.unit.vmmd.hw.virtio.driver import DriverRing, PlainMemory
from vmmd.vhost_user.core import wire
from vmmd.vhost_user.core.wire import Kind

SECONDS = 20.0
# Where the hypervisor has the guest's memory in its own address space.
USER = 0x7F00_0000_0000
GUEST = 0x10000
MEMORY_BYTES = 8 << 20
ENTRIES = 16


class SharedPlainMemory(PlainMemory):
    """Guest memory in a file that can be handed over."""

    def __init__(self) -> None:
        super().__init__(0)
        self.file = os.memfd_create("guest")
        os.ftruncate(self.file, MEMORY_BYTES)
        self.content = memoryview(mmap.mmap(self.file, MEMORY_BYTES))


class Front:
    """One connection, and the ring it sets up. Messages are answered in order."""

    def __init__(self, path: str, memory: SharedPlainMemory | None = None) -> None:
        self.memory = memory or SharedPlainMemory()
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.setblocking(False)
        self._path = path
        self.kicks: list[int] = []
        self.calls: list[int] = []

    async def connect(self) -> Front:
        await asyncio.get_running_loop().sock_connect(self.connection, self._path)
        return self

    def close(self) -> None:
        self.connection.close()
        for file in (*self.kicks, *self.calls):
            os.close(file)
        self.kicks, self.calls = [], []

    # ---- messages

    def send_raw(self, data: bytes, files: Sequence[int] = ()) -> None:
        socket.send_fds(self.connection, [data], files)

    def send(
        self, kind: int, payload: bytes = b"", files: Sequence[int] = (), flags: int = 1
    ) -> None:
        self.send_raw(wire.HEADER.pack(kind, flags, len(payload)) + payload, files)

    async def receive(self) -> tuple[wire.Header, bytes, list[int]]:
        """The next answer; ConnectionError when the other side has hung up."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    data, files, _flags, _address = socket.recv_fds(self.connection, 4096, 4)
                    break
                except BlockingIOError:
                    ready = loop.create_future()
                    loop.add_reader(self.connection, ready.set_result, None)
                    await ready
                    loop.remove_reader(self.connection)
        if not data:
            raise ConnectionError
        head = wire.header(data[: wire.HEADER.size])
        assert len(data) == wire.HEADER.size + head.size
        return head, data[wire.HEADER.size :], files

    async def ask(self, kind: int, payload: bytes = b"") -> bytes:
        self.send(kind, payload)
        head, answer, files = await self.receive()
        assert head.kind == kind
        assert head.flags & wire.FLAG_REPLY
        for file in files:
            os.close(file)
        return answer

    async def told(self, kind: int, payload: bytes = b"", files: Sequence[int] = ()) -> None:
        """Sends and waits until it was taken."""
        self.send(kind, payload, files, flags=1 | wire.FLAG_NEED_REPLY)
        head, answer, _files = await self.receive()
        assert (head.kind, wire.u64(answer)) == (kind, 0)

    async def hung_up(self) -> bool:
        try:
            await self.receive()
        except (ConnectionError, OSError):
            return True
        return False

    # ---- a disk

    async def negotiate(self, features: int | None = None) -> int:
        offered = wire.u64(await self.ask(Kind.GET_FEATURES))
        await self.told(Kind.SET_OWNER)
        await self.ask(Kind.GET_PROTOCOL_FEATURES)
        await self.told(Kind.SET_PROTOCOL_FEATURES, wire.u64_payload(0x1209))
        await self.told(
            Kind.SET_FEATURES, wire.u64_payload(offered if features is None else features)
        )
        region = struct.pack("<IIQQQQ", 1, 0, GUEST, MEMORY_BYTES, USER, 0)
        await self.told(Kind.SET_MEM_TABLE, region, [self.memory.file])
        return offered

    async def area(self, rings: int = 1) -> tuple[wire.Inflight, int]:
        """New memory for notes; the descriptor is the caller's."""
        self.send(Kind.GET_INFLIGHT_FD, wire.inflight_payload(wire.Inflight(0, 0, rings, ENTRIES)))
        _head, answer, (file,) = await self.receive()
        return wire.inflight(answer), file

    async def start_ring(self, ring: DriverRing, number: int = 0, base: int = 0) -> None:
        """Sets a ring up; kicks and calls come to `kicks[-1]` and `calls[-1]`."""
        descriptors, avail, used = (address - GUEST + USER for address in ring.addresses)
        await self.told(Kind.SET_VRING_NUM, wire.ring_state_payload(number, ring.entries))
        await self.told(Kind.SET_VRING_BASE, wire.ring_state_payload(number, base))
        await self.told(
            Kind.SET_VRING_ADDR, struct.pack("<IIQQQQ", number, 0, descriptors, used, avail, 0)
        )
        self.kicks.append(os.eventfd(0, os.EFD_NONBLOCK))
        self.calls.append(os.eventfd(0, os.EFD_NONBLOCK))
        await self.told(Kind.SET_VRING_CALL, wire.u64_payload(number), [self.calls[-1]])
        await self.told(Kind.SET_VRING_KICK, wire.u64_payload(number), [self.kicks[-1]])
        await self.told(Kind.SET_VRING_ENABLE, wire.ring_state_payload(number, 1))

    def kick(self, number: int = -1) -> None:
        os.eventfd_write(self.kicks[number], 1)

    async def called(self, number: int = -1) -> None:
        """Waits for an interrupt."""
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_reader(self.calls[number], lambda: ready.done() or ready.set_result(None))
        try:
            async with asyncio.timeout(SECONDS):
                await ready
            os.eventfd_read(self.calls[number])
        finally:
            loop.remove_reader(self.calls[number])


class FrontDisk:
    """Requests on a front's ring."""

    def __init__(self, front: Front, ring: DriverRing) -> None:
        self.front = front
        self.ring = ring
        self._back: dict[int, int] = {}

    def offer(
        self, kind: int, sector: int = 0, out: bytes = b"", into: int = 0
    ) -> tuple[int, int, int]:
        """(head, address of the answer's data, address of its state), not kicked."""
        memory = self.ring.memory
        header = memory.place(struct.pack("<IIQ", kind, 0, sector))
        buffers = [(header, 16, False)]
        if out:
            buffers.append((memory.place(out), len(out), False))
        data = memory.place(into) if into else 0
        if into:
            buffers.append((data, into, True))
        state = memory.place(b"\xff")
        buffers.append((state, 1, True))
        return self.ring.offer(buffers), data, state

    async def wait(self, head: int) -> None:
        while head not in self._back:
            for found, written in self.ring.collect():
                self._back[found] = written
            if head not in self._back:
                await self.front.called()
        del self._back[head]

    async def ask(
        self, kind: int, sector: int = 0, out: bytes = b"", into: int = 0
    ) -> tuple[int, bytes]:
        """(state, data) of one request."""
        head, data, state = self.offer(kind, sector, out, into)
        self.front.kick()
        await self.wait(head)
        return self.byte(state), self.bytes(data, into) if into else b""

    def byte(self, address: int) -> int:
        return self.bytes(address, 1)[0]

    def bytes(self, address: int, length: int) -> bytes:
        view = self.ring.memory.view(address, length)
        assert view is not None
        return bytes(view)
