"""Changes that were made and are not durable yet, in memory that outlives this process. Pure.

A write is acknowledged when the volume has taken it, and durable at the next flush. If this process
dies in between, the guest lives on and knows nothing of it: to it the disk never lost power. So
each change is noted first in memory that the hypervisor keeps for us (the end of the inflight
area), and made again, in order, by the process that comes next.

    header (64 bytes)  magic u64, bytes of records u64, head u64
    records            in a circle, each at a multiple of 64 bytes:
                       place u64, op u32, blocks u32, first u64, data bytes u32, -, then the data

Places count bytes from the journal's beginning and only grow; a record lies at its place modulo the
size, and never across the end (the rest is skipped by a record of its own). A record counts when
the place it bears is the one where it is looked for; that word is stored last. `head` is the oldest
record that a flush does not cover. Nothing here is checked against tampering: who can write here
is the guest's own hypervisor.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from vmmd.block.backend import BlockOp
from vmmd.hw.virtio_blk.core import Change

_MAGIC = 0x6C6E_726A_6C6C_7473
_HEADER_BYTES = 64
_RECORD = struct.Struct("<IIQI")
_RECORD_BYTES = 64
_ALIGNMENT = 64
# Nothing: goes on at the beginning.
_SKIP = 0


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


class ChangeJournal:
    """Implements vmmd.hw.virtio_blk.core.Journal in `view`, zeroed when new."""

    def __init__(self, view: memoryview, block_size: int) -> None:
        size = (len(view) - _HEADER_BYTES) // _ALIGNMENT * _ALIGNMENT
        assert size >= 4 * _ALIGNMENT
        self._words = view[:_HEADER_BYTES].cast("Q")
        self._records = view[_HEADER_BYTES : _HEADER_BYTES + size]
        self._places = self._records.cast("Q")
        self._size = size
        self._block_size = block_size
        if self._words[0] != _MAGIC or self._words[1] != size:
            self._words[2] = size
            self._words[1] = size
            self._words[0] = _MAGIC
        # From one round on, so that memory that is all zeros is no record.
        self._head = self._words[2]
        self._tail = self._head
        for _change, after in self._read():
            self._tail = after

    def __len__(self) -> int:
        """Bytes in use."""
        return self._tail - self._head

    def hold(self, changes: Sequence[Change]) -> memoryview | None:
        """As Journal.hold."""
        tail = self._tail
        placed: list[tuple[int, Change | None]] = []
        for change in changes:
            length = _RECORD_BYTES + _aligned(sum(map(len, change.data)))
            left = self._size - tail % self._size
            if length > left:
                placed.append((tail, None))
                tail += left
            placed.append((tail, change))
            tail += length
        if tail - self._head > self._size:
            return None
        # The last ones first: without the one before it, a record is not found.
        data = self._records[:0]
        for place, entry in reversed(placed):
            view = self._store(place, entry)
            if entry is changes[-1]:
                data = view
        self._tail = tail
        return data

    def _store(self, place: int, change: Change | None) -> memoryview:
        at = place % self._size
        if change is None:
            _RECORD.pack_into(self._records, at + 8, _SKIP, 0, 0, 0)
            self._places[at // 8] = place
            return self._records[:0]
        position = start = at + _RECORD_BYTES
        for part in change.data:
            self._records[position : position + len(part)] = part
            position += len(part)
        _RECORD.pack_into(
            self._records, at + 8, change.op, change.blocks, change.first, position - start
        )
        self._places[at // 8] = place
        return self._records[start:position]

    def mark(self) -> int:
        """As Journal.mark."""
        return self._tail

    def let_go(self, mark: int) -> None:
        """As Journal.let_go."""
        if mark > self._head:
            self._head = self._words[2] = mark

    def half_full(self) -> bool:
        """As Journal.half_full."""
        return 2 * len(self) >= self._size

    def changes(self) -> list[Change]:
        """All that is held, oldest first."""
        return [change for change, _after in self._read() if change is not None]

    def _read(self) -> Iterator[tuple[Change | None, int]]:
        """(change, place behind it); None for a skip."""
        place = self._head
        end = self._head + self._size
        while place < end:
            at = place % self._size
            if self._places[at // 8] != place:
                return
            op, blocks, first, length = _RECORD.unpack_from(self._records, at + 8)
            if op == _SKIP:
                place += self._size - at
                yield None, place
                continue
            start = at + _RECORD_BYTES
            data = (self._records[start : start + length],) if length else ()
            place += _RECORD_BYTES + _aligned(length)
            if start + length > self._size or place > end or op not in _OPS:
                return
            if length not in (0, blocks * self._block_size):
                return
            yield Change(BlockOp(op), first, blocks, data), place


_OPS = frozenset({BlockOp.WRITE, BlockOp.DISCARD})
