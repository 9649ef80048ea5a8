"""Whatever a guest leaves in a virtqueue or a UART's registers, the device goes on.

The guest's memory is random where it is not made to lead somewhere: descriptors that point outside,
in circles, across borders, at the rings themselves; requests that are no requests. A sane request
behind all that is done.
"""

from __future__ import annotations

import random
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from vmmd.block.backend import BackendInfo, Request
from vmmd.block.memory import MemoryBackend
from vmmd.hw.uart.uart16550 import REGISTERS, Uart16550
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


# Addresses near borders, at the rings, and anywhere; lengths likewise.
ADDRESS = st.one_of(
    st.sampled_from(
        [0, GUEST, GUEST + TABLE, GUEST + USED, GUEST + BUFFERS, GUEST + MEMORY_BYTES - 8]
    ),
    st.integers(GUEST, GUEST + MEMORY_BYTES),
    st.integers(0, (1 << 64) - 1),
)
LENGTH = st.one_of(st.integers(0, 48), st.integers(0, 3 * BLOCK), st.integers(0, (1 << 32) - 1))
FLAGS = st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF))
NEXT = st.one_of(st.integers(0, ENTRIES), st.integers(0, 0xFFFF))
DESCRIPTORS = st.lists(
    st.tuples(st.integers(0, ENTRIES - 1), ADDRESS, LENGTH, FLAGS, NEXT), max_size=8
)
STEP = st.tuples(DESCRIPTORS, st.one_of(st.integers(0, ENTRIES), st.integers(0, 0xFFFF)))


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=6), st.integers(0, 1 << 32))
def test_any_descriptors(steps: list[tuple[list[tuple[int, ...]], int]], seed: int) -> None:
    driver = Driver()
    chance = random.Random(seed)
    driver.memory.content[BUFFERS:] = chance.randbytes(MEMORY_BYTES - BUFFERS)
    # Headers that are requests, at places that descriptors often name.
    for at in (BUFFERS, MEMORY_BYTES - 16):
        kind = chance.choice([*RequestType, 99])
        struct.pack_into("<IIQ", driver.memory.content, at, kind, 0, chance.randrange(400))
    for descriptors, head in steps:
        for descriptor in descriptors:
            driver.descriptor(*descriptor)
        driver.offer(head)
    # What was written into the rings is the guest's own doing; from here on it behaves.
    driver.offered = driver.ring.taken
    struct.pack_into("<H", driver.memory.content, AVAIL + 2, driver.offered)
    data = chance.randbytes(BLOCK)
    assert driver.sane_write(7, data) == RequestStatus.OK
    assert driver.disk.content[7 * BLOCK : 8 * BLOCK] == data


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, REGISTERS - 1), st.integers(0, 255), st.integers(0, 3))))
def test_any_use_of_a_uart(steps: list[tuple[int, int, int]]) -> None:
    uart = Uart16550()
    for register, value, what in steps:
        if what == 0:
            uart.write(register, value)
        elif what == 1:
            assert 0 <= uart.read(register) <= 255
        elif what == 2:
            uart.receive(value)
        else:
            taken = uart.take_transmitted()
            assert taken is None or 0 <= taken <= 255
        assert uart.interrupt in (True, False)
    uart.reset()
    uart.write(0, 0x41)
    assert uart.take_transmitted() == 0x41
