"""Which requests were taken and not answered, in memory that outlives this process. Pure.

The layout is the protocol's, for split rings: for each ring a header (features u64, version u16,
entries u16, head of the last batch u16, used index u16) and for each descriptor 16 bytes (inflight
u8, padding, next u16, counter u64). Every store is one of aligned 1, 2 or 8 bytes, so that a
process that is killed between any two leaves a state `open` understands.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

_HEADER = struct.Struct("<QHHHH")
_ENTRY_BYTES = 16
_VERSION = 1
# Rings begin at multiples of this.
_ALIGNMENT = 64


def ring_bytes(entries: int) -> int:
    """Of one ring."""
    return -(-(_HEADER.size + entries * _ENTRY_BYTES) // _ALIGNMENT) * _ALIGNMENT


class InflightRing:
    """One ring's notes in `view`, which is `ring_bytes(entries)` long and zeroed when new."""

    def __init__(self, view: memoryview, entries: int) -> None:
        self._view = view
        self._halves = view.cast("H")
        self._words = view.cast("Q")
        self._entries = entries
        self._counter = 0

    def open(self, used: int) -> list[int]:
        """What is in flight, oldest first, `used` being the index in the used ring itself."""
        if self._halves[4] != _VERSION:
            _HEADER.pack_into(self._view, 0, 0, _VERSION, self._entries, 0, used)
            return []
        if self._halves[7] != used:
            # Killed between the used ring and these notes: the last batch was given back.
            batch = (used - self._halves[7]) & 0xFFFF
            head = self._halves[6]
            for _ in range(min(batch, self._entries)):
                if head >= self._entries:
                    break
                self._view[self._place(head)] = 0
                head = self._halves[(self._place(head) + 6) // 2]
            self._halves[7] = used
        found = [head for head in range(self._entries) if self._view[self._place(head)]]
        found.sort(key=self._count)
        if found:
            self._counter = self._count(found[-1]) + 1
        return found

    def taken(self, head: int) -> None:
        """A request begins."""
        place = self._place(head)
        self._words[(place + 8) // 8] = self._counter
        self._view[place] = 1
        self._counter += 1

    def batch(self, heads: Sequence[int]) -> None:
        """These are about to be given back, in this order."""
        last = self._halves[6]
        for head in heads:
            self._halves[(self._place(head) + 6) // 2] = last
            last = head
        self._halves[6] = last

    def given_back(self, heads: Sequence[int], used: int) -> None:
        """They were, and the used ring's index is `used`."""
        for head in heads:
            self._view[self._place(head)] = 0
        self._halves[7] = used

    def _place(self, head: int) -> int:
        return _HEADER.size + head * _ENTRY_BYTES

    def _count(self, head: int) -> int:
        return self._words[(self._place(head) + 8) // 8]
