"""A driver's side of a split ring, in plain bytes: what tests put before a device."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vmmd.hw.virtio.ring import DESCRIPTOR_BYTES, SplitRing, avail_bytes, used_bytes

NEXT, WRITE, INDIRECT = 1, 2, 4
# Where guest-physical memory begins, so that 0 is no address.
BASE = 0x10000


class PlainMemory:
    """`size` bytes of guest memory from BASE on; implements vmmd.hw.memory.GuestMemory."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.content = memoryview(bytearray(size))
        self._next = BASE

    def view(self, address: int, length: int) -> memoryview | None:
        start = address - BASE
        if start < 0 or start + length > len(self.content):
            return None
        return self.content[start : start + length]

    def place(self, content: bytes | int) -> int:
        """The address of new memory with this content, or of so many zeros."""
        data = bytes(content) if isinstance(content, int) else content
        address = self._next
        view = self.view(address, len(data))
        assert view is not None
        view[:] = data
        self._next += -(-len(data) // 16) * 16
        return address


class DriverRing:
    """Offers chains of (address, length, writable) and collects what comes back."""

    def __init__(self, memory: PlainMemory, entries: int = 8, start: int = 0) -> None:
        self.memory = memory
        self.entries = entries
        self.addresses = [
            memory.place(size)
            for size in (entries * DESCRIPTOR_BYTES, avail_bytes(entries), used_bytes(entries))
        ]
        views = [
            memory.view(address, size)
            for address, size in zip(
                self.addresses,
                (entries * DESCRIPTOR_BYTES, avail_bytes(entries), used_bytes(entries)),
                strict=True,
            )
        ]
        self.descriptors, self.avail, self.used = (view for view in views if view is not None)
        self._free = list(range(entries))
        self._chains: dict[int, list[int]] = {}
        self._offered = self._seen = start
        struct.pack_into("<H", self.avail, 2, start)
        struct.pack_into("<H", self.used, 2, start)

    def device(self) -> SplitRing:
        """The other end."""
        return SplitRing(self.entries, self.descriptors, self.avail, self.used, self.memory)

    def describe(self, index: int, address: int, length: int, flags: int, following: int) -> None:
        struct.pack_into(
            "<QIHH", self.descriptors, index * DESCRIPTOR_BYTES, address, length, flags, following
        )

    def offer(self, buffers: Sequence[tuple[int, int, bool]]) -> int:
        """The head of a chain of these buffers."""
        indexes = [self._free.pop(0) for _ in buffers]
        for at, (index, (address, length, writable)) in enumerate(
            zip(indexes, buffers, strict=True)
        ):
            more = at + 1 < len(indexes)
            flags = WRITE * writable + NEXT * more
            self.describe(index, address, length, flags, indexes[at + 1] if more else 0)
        self._chains[indexes[0]] = indexes
        return self.put(indexes[0])

    def put(self, head: int) -> int:
        """Makes whatever is at `head` available."""
        struct.pack_into("<H", self.avail, 4 + 2 * (self._offered % self.entries), head & 0xFFFF)
        self._offered = (self._offered + 1) & 0xFFFF
        struct.pack_into("<H", self.avail, 2, self._offered)
        return head

    def collect(self) -> list[tuple[int, int]]:
        """(head, bytes written) of all that came back since the last look."""
        (index,) = struct.unpack_from("<H", self.used, 2)
        found = []
        while self._seen != index:
            head, written = struct.unpack_from(
                "<II", self.used, 4 + 8 * (self._seen % self.entries)
            )
            found.append((head, written))
            self._free += self._chains.pop(head, [])
            self._seen = (self._seen + 1) & 0xFFFF
        return found
