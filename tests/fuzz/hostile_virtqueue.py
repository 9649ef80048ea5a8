"""A driver out of its mind at a virtio block device: any bytes are a run of descriptors and heads.

Its memory is random where it is not made to lead somewhere. What must hold of any run: nothing
raises; the backend is only asked what it can do; once the driver behaves a sane request is done.
"""

from __future__ import annotations

import random
import struct

from tests.fuzz.hostile_guest import Bytes
from vmmd.block.backend import BackendInfo, Request
from vmmd.block.memory import MemoryBackend
from vmmd.hw.virtio.ring import (
    DESCRIPTOR_BYTES,
    BrokenChainError,
    SplitRing,
    avail_bytes,
    used_bytes,
)
from vmmd.hw.virtio_blk.bits import RequestStatus, RequestType
from vmmd.hw.virtio_blk.core import Effects, VirtioBlkCore

BLOCK, BLOCKS = 4096, 32
ENTRIES = 16
MEMORY_BYTES = 1 << 17
# Where in memory the guest has what, at addresses from GUEST on.
GUEST = 0x10000
TABLE, AVAIL, USED, BUFFERS = 0, 0x1000, 0x2000, 0x4000
INFO = BackendInfo(BLOCK, BLOCKS, read_only=False, supports_discard=True)


class Memory:
    """Satisfies GuestMemory."""

    def __init__(self) -> None:
        self.content = bytearray(MEMORY_BYTES)

    def view(self, address: int, length: int) -> memoryview | None:
        start = address - GUEST
        if start < 0 or start + length > MEMORY_BYTES:
            return None
        return memoryview(self.content)[start : start + length]


class Driver:
    """One queue, its device, and a disk that answers at once."""

    def __init__(self) -> None:
        self.memory = Memory()
        views = [
            memoryview(self.memory.content)[start : start + size]
            for start, size in (
                (TABLE, ENTRIES * DESCRIPTOR_BYTES),
                (AVAIL, avail_bytes(ENTRIES)),
                (USED, used_bytes(ENTRIES)),
            )
        ]
        self.ring = SplitRing(ENTRIES, *views, self.memory)
        self.core = VirtioBlkCore(INFO, "hostile")
        self.disk = MemoryBackend(BLOCK, BLOCKS)
        self.offered = 0

    def descriptor(self, index: int, address: int, length: int, flags: int, following: int) -> None:
        at = TABLE + index * DESCRIPTOR_BYTES
        struct.pack_into(
            "<QIHH", self.memory.content, at, address, length, flags & 0xFFFF, following & 0xFFFF
        )

    def offer(self, head: int) -> None:
        """Puts a head into the driver's ring, and has the device look."""
        at = AVAIL + 4 + 2 * (self.offered % ENTRIES)
        struct.pack_into("<H", self.memory.content, at, head)
        self.offered = (self.offered + 1) & 0xFFFF
        struct.pack_into("<H", self.memory.content, AVAIL + 2, self.offered)
        self.work()

    def work(self) -> None:
        """As the shell does: a queue with more than it has room for is nonsense and left."""
        while 0 < self.ring.waiting <= ENTRIES:
            head = self.ring.next_head()
            try:
                chain = self.ring.chain(head)
            except BrokenChainError:
                self.ring.give_back([(head, 0)])
                continue
            self.do(self.core.take(0, [chain]))

    def do(self, effects: Effects) -> None:
        self.ring.give_back([(head, written) for _ring, head, written in effects.done])
        for request in effects.requests:
            self.check(request)
            self.disk.submit([request], lambda found: self.do(self.core.complete(found)))

    def check(self, request: Request) -> None:
        """Nothing is asked of a disk that it has not."""
        assert request.offset >= 0
        assert request.offset + request.length <= BLOCKS

    def sane_write(self, block: int, data: bytes) -> int:
        """A request as a driver makes it; its status."""
        content = self.memory.content
        header = struct.pack("<IIQ", RequestType.OUT, 0, block * BLOCK // 512)
        content[BUFFERS : BUFFERS + 16] = header
        content[BUFFERS + BLOCK : BUFFERS + 2 * BLOCK] = data
        content[BUFFERS + 2 * BLOCK] = 0xFF
        base = GUEST + BUFFERS
        self.descriptor(0, base, 16, 1, 1)
        self.descriptor(1, base + BLOCK, BLOCK, 1, 2)
        self.descriptor(2, base + 2 * BLOCK, 1, 2, 0)
        self.offer(0)
        return content[BUFFERS + 2 * BLOCK]


def fill(driver: Driver, chance: random.Random) -> None:
    """Random memory, with headers that are requests at places that descriptors often name."""
    content = driver.memory.content
    content[BUFFERS:] = chance.randbytes(MEMORY_BYTES - BUFFERS)
    for at in (BUFFERS, MEMORY_BYTES - 16):
        kind = chance.choice([*RequestType, 99])
        struct.pack_into("<IIQ", content, at, kind, 0, chance.randrange(400))


def prove_it_works(driver: Driver, data: bytes) -> None:
    """What was written into the rings is the guest's own doing; from here on it behaves."""
    driver.offered = driver.ring.taken
    struct.pack_into("<H", driver.memory.content, AVAIL + 2, driver.offered)
    assert driver.sane_write(7, data) == RequestStatus.OK
    assert driver.disk.content[7 * BLOCK : 8 * BLOCK] == data


_PLACES = (0, GUEST + TABLE, GUEST + AVAIL, GUEST + USED, GUEST + BUFFERS, GUEST + MEMORY_BYTES - 8)


class HostileDriver:
    """Call it with bytes; AssertionError, or whatever the device raised, when one is wrong."""

    def __call__(self, data: bytes) -> None:
        """One run, on a device of its own."""
        source, driver = Bytes(data), Driver()
        fill(driver, random.Random(source.number(2)))
        while source.left:
            if source.number(1) & 3:
                self._describe(driver, source)
            else:
                driver.offer(source.number(2) if source.number(1) & 8 else source.number(1) & 0xF)
        prove_it_works(driver, bytes(BLOCK))

    @staticmethod
    def _describe(driver: Driver, source: Bytes) -> None:
        """Fields of a few bytes each, so that most are near something that is there."""
        index, where = source.number(1) % ENTRIES, source.number(1)
        known = where < 128
        address = _PLACES[where % len(_PLACES)] if known else source.number(8)
        length = source.number(2) if source.number(1) & 7 else source.number(4)
        driver.descriptor(index, address, length, source.number(1) & 7, source.number(1) & 0x1F)


def seeds() -> list[bytes]:
    """Requests of each shape: one, two and three descriptors, in a circle, an indirect table."""
    header, status = bytes((1, 0, 4, 1, 16, 0, 1, 1)), bytes((1, 2, 5, 1, 1, 0, 2, 0))
    offer = bytes((0, 0, 0))
    found = [
        header + bytes((1, 1, 4, 1, 0, 16, flags, 2)) + status + offer for flags in (0, 1, 2, 3)
    ]
    found.append(header + status + offer)
    # One that leads to itself, and a table that is the ring itself.
    found.append(bytes((1, 0, 4, 1, 16, 0, 1, 0)) + offer)
    found.append(bytes((1, 0, 1, 1, 64, 0, 4, 0)) + offer)
    return [bytes(2) + run for run in found] + [bytes(2) + b"".join(found)]
