"""The built-in guest's memory: what devices reach by DMA, and where the guest's drivers get pages.

Addresses are guest-physical bytes. Memory lies below 3 GiB and goes on at 4 GiB, which leaves the
space between to devices. It is anonymous and sparse: pages never touched cost nothing.
"""

from __future__ import annotations

import mmap

from stairlib.model.errors import LimitError

PAGE_BYTES = 4096
LOW_END = 3 << 30
HIGH_START = 4 << 30
# Page zero stays free, so that an address of 0 is always a mistake.
_FIRST_FREE = PAGE_BYTES
# The driver's queues and one transfer buffer: less is no machine.
MEMORY_BYTES_MIN = 8 << 20


class GuestRam:
    """`size` bytes of memory with a page allocator; implements vmmd.hw.memory.GuestMemory."""

    def __init__(self, size: int) -> None:
        if size < MEMORY_BYTES_MIN:
            raise LimitError(
                f"{size} bytes of memory: the built-in guest needs {MEMORY_BYTES_MIN} (8 MiB)"
            )
        self.size = size
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        whole = memoryview(mmap.mmap(-1, size, flags=flags))
        self._low = whole[: min(size, LOW_END)]
        self._high = whole[len(self._low) :]
        self._next = _FIRST_FREE
        # Freed runs by length in pages: drivers ask for the same few lengths again.
        self._free: dict[int, list[int]] = {}

    def view(self, address: int, length: int) -> memoryview | None:
        """As GuestMemory.view."""
        if address < 0 or length < 0:
            return None
        if address + length <= len(self._low):
            return self._low[address : address + length]
        start = address - HIGH_START
        if start >= 0 and start + length <= len(self._high):
            return self._high[start : start + length]
        return None

    def allocate(self, length: int) -> int:
        """The address of a zeroed, page-aligned, contiguous run of at least `length` bytes.

        LimitError when memory is used up.
        """
        pages = max(1, -(-length // PAGE_BYTES))
        reusable = self._free.get(pages)
        if reusable:
            address = reusable.pop()
            self._low[address : address + pages * PAGE_BYTES] = bytes(pages * PAGE_BYTES)
            return address
        address = self._next
        if address + pages * PAGE_BYTES > len(self._low):
            raise LimitError(
                f"the guest's memory of {self.size} bytes is used up: "
                f"give the machine more memory or fewer disks"
            )
        self._next += pages * PAGE_BYTES
        return address

    def free(self, address: int, length: int) -> None:
        """Gives back what `allocate(length)` returned. No device may use it any more."""
        assert address % PAGE_BYTES == 0
        pages = max(1, -(-length // PAGE_BYTES))
        self._free.setdefault(pages, []).append(address)
