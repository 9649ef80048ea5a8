"""A hypervisor's side of vfio-user, with guest memory and an NVMe driver of its own: what tests
connect with. Messages go out as they are given, so that they may be wrong."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import socket
import struct
from collections.abc import Sequence

from vmmd.hw.nvme import bits
from vmmd.hw.nvme.commands import ENTRY
from vmmd.vfio_user.core import wire
from vmmd.vfio_user.core.wire import Command, Irq

SECONDS = 20.0
MEMORY_BYTES = 8 << 20
PAGE = 4096
# Where the guest has its memory, and where in it a driver has its things.
GUEST = 1 << 20
ASQ, ACQ, SQ, CQ, DATA = (GUEST + n * 0x10000 for n in range(1, 6))
ENTRIES = 16
NO_REPLY = wire.FLAG_NO_REPLY


class RefusedError(Exception):
    """An answer that is an errno."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


class Front:
    """One connection. `begin` negotiates, maps memory and asks what QEMU asks."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.setblocking(False)
        self.file = os.memfd_create("guest")
        os.ftruncate(self.file, MEMORY_BYTES)
        self.memory = memoryview(mmap.mmap(self.file, MEMORY_BYTES))
        self.events: dict[int, int] = {}
        self._number = 0
        self._received = b""

    async def connect(self) -> Front:
        await asyncio.get_running_loop().sock_connect(self.connection, self._path)
        return self

    def close(self) -> None:
        self.connection.close()
        for file in (self.file, *self.events.values()):
            os.close(file)
        self.events = {}

    # ---- messages

    def message(self, command: int, payload: bytes = b"", flags: int = 0) -> bytes:
        self._number += 1
        return wire.request(self._number & 0xFFFF, command, payload, flags)

    def send_raw(self, data: bytes, files: Sequence[int] = ()) -> None:
        socket.send_fds(self.connection, [data], files)

    def send(
        self, command: int, payload: bytes = b"", files: Sequence[int] = (), flags: int = 0
    ) -> None:
        self.send_raw(self.message(command, payload, flags), files)

    async def receive(self) -> tuple[wire.Header, bytes]:
        """The next answer; ConnectionError when the other side has hung up."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(SECONDS):
            while True:
                if len(self._received) >= 16:
                    head = wire.Header._make(wire.HEADER.unpack_from(self._received))
                    if len(self._received) >= head.size:
                        payload = self._received[16 : head.size]
                        self._received = self._received[head.size :]
                        return head, payload
                data = await loop.sock_recv(self.connection, 65536)
                if not data:
                    raise ConnectionError
                self._received += data

    async def ask(self, command: int, payload: bytes = b"", files: Sequence[int] = ()) -> bytes:
        """The answer's payload; RefusedError when it is an errno."""
        self.send(command, payload, files)
        head, answer = await self.receive()
        assert head.id == self._number & 0xFFFF
        assert head.command == command
        assert head.flags & wire.FLAG_REPLY
        if head.flags & wire.FLAG_ERROR:
            assert answer == b""
            raise RefusedError(head.error)
        return answer

    async def hung_up(self) -> bool:
        try:
            await self.receive()
        except (ConnectionError, OSError):
            return True
        return False

    # ---- a conversation

    async def version(self) -> bytes:
        told = b'{"capabilities":{"max_msg_fds":16,"migration":{"pgsize":4096}}}\0'
        return await self.ask(Command.VERSION, struct.pack("<HH", 0, 0) + told)

    async def map(
        self,
        address: int = GUEST,
        size: int = MEMORY_BYTES,
        *,
        offset: int = 0,
        flags: int = 3,
        file: int | None = None,
    ) -> None:
        payload = struct.pack("<IIQQQ", 32, flags, offset, address, size)
        await self.ask(Command.DMA_MAP, payload, [self.file if file is None else file])

    async def unmap(self, address: int = GUEST, size: int = MEMORY_BYTES, flags: int = 0) -> bytes:
        return await self.ask(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, flags, address, size))

    async def use_interrupts(self, irq: Irq = Irq.MSIX, vectors: int = 2) -> None:
        """An eventfd for each vector from 0 on."""
        self.events = {vector: os.eventfd(0, os.EFD_NONBLOCK) for vector in range(vectors)}
        payload = struct.pack("<IIIII", 20, 0x24, irq, 0, vectors)
        await self.ask(Command.DEVICE_SET_IRQS, payload, list(self.events.values()))

    async def begin(self) -> Front:
        await self.version()
        await self.map()
        await self.ask(Command.DEVICE_RESET)
        await self.use_interrupts()
        return self

    # ---- registers

    async def read(self, offset: int, size: int = 4, region: int = 0) -> int:
        answer = await self.ask(Command.REGION_READ, struct.pack("<QII", offset, region, size))
        assert answer[:16] == struct.pack("<QII", offset, region, size)
        return int.from_bytes(answer[16:], "little")

    def write_message(self, offset: int, value: int, size: int = 4, region: int = 0) -> bytes:
        """Posted, as QEMU does."""
        payload = struct.pack("<QII", offset, region, size) + value.to_bytes(size, "little")
        return self.message(Command.REGION_WRITE, payload, NO_REPLY)

    def write(self, offset: int, value: int, size: int = 4, region: int = 0) -> None:
        self.send_raw(self.write_message(offset, value, size, region))

    # ---- memory

    def store(self, address: int, data: bytes) -> None:
        self.memory[address - GUEST : address - GUEST + len(data)] = data

    def load(self, address: int, size: int) -> bytes:
        return bytes(self.memory[address - GUEST : address - GUEST + size])

    async def interrupted(self, vector: int) -> None:
        """Returns when the vector was raised, once or several times."""
        loop = asyncio.get_running_loop()
        file = self.events[vector]
        raised = loop.create_future()

        def ready() -> None:
            os.eventfd_read(file)
            loop.remove_reader(file)
            if not raised.done():
                raised.set_result(None)

        loop.add_reader(file, ready)
        try:
            async with asyncio.timeout(SECONDS):
                await raised
        finally:
            loop.remove_reader(file)


class FrontDisk:
    """A driver: one admin queue and one queue pair, commands one after another."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.tails = {0: 0, 1: 0}
        self.heads = {0: 0, 1: 0}
        self._next = 1

    async def start(self) -> FrontDisk:
        front = self.front
        front.write(bits.REG_CC, 0)
        front.store(ASQ, bytes(CQ + 0x10000 - ASQ))
        self.tails, self.heads = {0: 0, 1: 0}, {0: 0, 1: 0}
        front.write(bits.REG_AQA, (ENTRIES - 1) << 16 | ENTRIES - 1)
        for register, base in ((bits.REG_ASQ, ASQ), (bits.REG_ACQ, ACQ)):
            front.write(register, base & 0xFFFFFFFF)
            front.write(register + 4, base >> 32)
        front.write(bits.REG_CC, 0x460001)
        assert await front.read(bits.REG_CSTS) == bits.CSTS_READY
        shape = (ENTRIES - 1) << 16 | 1
        create_cq, create_sq = bits.AdminOpcode.CREATE_CQ, bits.AdminOpcode.CREATE_SQ
        assert await self.admin(create_cq, prp1=CQ, cdw10=shape, cdw11=1 << 16 | 3) == 0
        assert await self.admin(create_sq, prp1=SQ, cdw10=shape, cdw11=1 << 16 | 1) == 0
        return self

    def queue(self, queue: int, opcode: int, **fields: int) -> int:
        """Puts a command into the queue without ringing; its identifier."""
        identifier, self._next = self._next, self._next + 1
        base = (ASQ if queue == 0 else SQ) + 64 * self.tails[queue]
        names = ("prp1", "prp2", "cdw10", "cdw11", "cdw12")
        values = [fields.get(name, 0) for name in names]
        namespace = fields.get("namespace", queue)
        self.front.store(
            base,
            ENTRY.pack(opcode, 0, identifier, namespace, 0, 0, *values, 0, 0, 0),
        )
        self.tails[queue] = (self.tails[queue] + 1) % ENTRIES
        return identifier

    def doorbell(self, queue: int) -> bytes:
        return self.front.write_message(bits.REG_DOORBELLS + 8 * queue, self.tails[queue])

    def ring(self, queue: int) -> None:
        self.front.send_raw(self.doorbell(queue))

    def completions(self, queue: int) -> list[tuple[int, int]]:
        """(identifier, status) of what is new in the completion queue, taken."""
        found = []
        while True:
            at, round_ = self.heads[queue] % ENTRIES, self.heads[queue] // ENTRIES
            raw = self.front.load((ACQ if queue == 0 else CQ) + 16 * at, 16)
            _result, _zero, _head, _sq, identifier, word = struct.unpack("<IIHHHH", raw)
            if word & 1 == round_ % 2:
                break
            found.append((identifier, word >> 1))
            self.heads[queue] += 1
        if found:
            head = self.heads[queue] % ENTRIES
            self.front.write(bits.REG_DOORBELLS + 8 * queue + 4, head)
        return found

    async def completed(self, queue: int, count: int = 1) -> list[tuple[int, int]]:
        """Waits by interrupts."""
        found: list[tuple[int, int]] = []
        while len(found) < count:
            found += self.completions(queue)
            if len(found) < count:
                await self.front.interrupted(queue)
        return found

    async def admin(self, opcode: int, **fields: int) -> int:
        identifier = self.queue(0, opcode, **fields)
        self.ring(0)
        [(found, status)] = await self.completed(0)
        assert found == identifier
        return status

    async def io(self, opcode: int, **fields: int) -> int:
        identifier = self.queue(1, opcode, **fields)
        self.ring(1)
        [(found, status)] = await self.completed(1)
        assert found == identifier
        return status


EINVAL, ENOTSUP = errno.EINVAL, errno.ENOTSUP
