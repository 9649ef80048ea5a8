"""The two log files: one takes the records of flushes while the other waits for, or has gone
through, its checkpoint.

Invariants:
- records of one file lie end to end from offset 0; sequences rise by one, voided ones left out;
- each record holds the checksum of the one before, over the change of file too, so nothing
  stale is ever taken;
- a file is written again from 0 only after the state that no longer needs it is durable;
- an append that failed is never followed by another: the region is closed to writes until reopened.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import xxhash

from downstaird.core.disk import Buffer, File
from downstaird.core.log_record import (
    HEADER_BYTES,
    RECORD_ALIGN,
    VERSION,
    Record,
    RecordHead,
    data_start,
    decode,
    encode,
    parse_head,
    record_bytes,
)
from stairlib.model.errors import DataError

LOG_NAMES = ("log-0", "log-1")
# Data is hashed in parts of this size at recovery, to bound memory.
_HASH_STEP = 4 << 20


@dataclass(frozen=True, slots=True)
class LogPlace:
    """Where a record is: file index, offset of the record, offset of its data; bytes."""

    log: int
    offset: int
    data_offset: int


class Log:
    """Appends records; knows the end of the chain."""

    def __init__(
        self,
        files: Sequence[File],
        *,
        tag: int,
        block_size: int,
        zero_bytes: int,
        next_sequence: int = 1,
        chain: int = 0,
    ) -> None:
        self.files = files
        self.active = 0
        self.next_sequence = next_sequence
        self.chain = chain
        self._tag = tag
        self._block_size = block_size
        self._zero_bytes = zero_bytes
        self._ends = [0, 0]
        self._zeroed = [file.size() for file in files]

    @property
    def active_bytes(self) -> int:
        """How far the active file has been filled."""
        return self._ends[self.active]

    def resume(self, active: int, ends: tuple[int, int], next_sequence: int, chain: int) -> None:
        """Goes on where recovery found the end of the chain."""
        self.active = active
        self._ends = list(ends)
        self.next_sequence = next_sequence
        self.chain = chain

    def append(self, record: Record, data: Sequence[Buffer]) -> LogPlace:
        """Writes the record and syncs the file: one fdatasync. Raises DataError."""
        record.sequence = self.next_sequence
        record.previous = self.chain
        buffers = encode(record, data, tag=self._tag, block_size=self._block_size)
        index = self.active
        offset = self._ends[index]
        end = offset + record_bytes(record.table_bytes, record.data_bytes, self._block_size)
        file = self.files[index]
        file.pwritev(buffers, offset)
        if end > self._zeroed[index]:
            ahead = -(-self._zero_bytes // RECORD_ALIGN) * RECORD_ALIGN
            file.pwritev([bytes(ahead)], end)
            self._zeroed[index] = end + ahead
        file.datasync()
        self._ends[index] = end
        self.next_sequence += 1
        self.chain = record.checksum
        start = offset + data_start(record.table_bytes, self._block_size)
        return LogPlace(index, offset, start)

    def switch(self) -> None:
        """Seals the active file: the next record begins the other one, which must be free."""
        self.active = 1 - self.active
        self._ends[self.active] = 0

    def retire(self, index: int, keep_bytes: int) -> None:
        """The file's records are no longer needed. Space above `keep_bytes` is given back."""
        assert index != self.active
        self._ends[index] = 0
        if self._zeroed[index] > keep_bytes:
            self.files[index].truncate(keep_bytes)
            self._zeroed[index] = keep_bytes


@dataclass(frozen=True, slots=True)
class Replayed:
    """One record that recovery found whole."""

    record: Record
    place: LogPlace


@dataclass(frozen=True, slots=True)
class Chain:
    """All that recovery found: records in order, and where to go on."""

    found: list[Replayed]
    active: int
    ends: tuple[int, int]
    next_sequence: int
    chain: int


class LogReader:
    """Finds the chain that begins at a given sequence. Reads only."""

    def __init__(
        self, files: Sequence[File], *, tag: int, block_size: int, void: Collection[int]
    ) -> None:
        self._files = files
        self._tag = tag
        self._block_size = block_size
        self._void = void

    def replay(self, first: int, sequence: int, chain: int) -> Chain:
        """The chain from the start of file `first`, then of the other. DataError where what is
        recorded there is damaged though it had once been synced, or was written by a newer
        version."""
        found: list[Replayed] = []
        ends = [0, 0]
        active = first
        sequence = self._skip_void(sequence)
        for index in (first, 1 - first):
            begun = len(found)
            offset = 0
            while (taken := self._record_at(index, offset, sequence, chain)) is not None:
                found.append(taken)
                chain = taken.record.checksum
                sequence = self._skip_void(sequence + 1)
                offset += record_bytes(
                    taken.record.table_bytes, taken.record.data_bytes, self._block_size
                )
            if len(found) > begun:
                active = index
                ends[index] = offset
        self._check_nothing_follows(active, ends[active], sequence, chain)
        return Chain(found, active, (ends[0], ends[1]), sequence, chain)

    def _skip_void(self, sequence: int) -> int:
        while sequence in self._void:
            sequence += 1
        return sequence

    def _head_at(self, index: int, offset: int) -> RecordHead | None:
        file = self._files[index]
        if offset + HEADER_BYTES > file.size():
            return None
        raw = file.pread(HEADER_BYTES, offset)
        return parse_head(raw, tag=self._tag, block_size=self._block_size)

    def _record_at(self, index: int, offset: int, sequence: int, chain: int) -> Replayed | None:
        file = self._files[index]
        head = self._head_at(index, offset)
        if head is None or head.sequence != sequence or head.previous != chain:
            return None
        start = data_start(head.table_bytes, self._block_size)
        if offset + start + head.data_bytes > file.size():
            return None
        record = decode(head, file.pread(head.table_bytes, offset + HEADER_BYTES))
        if record is None:
            return None
        if head.version != VERSION:
            raise DataError(
                f"{file.name} holds a log record of version {head.version} at byte {offset}; this "
                f"program reads version {VERSION}: run the newer one",
                reason="FORMAT_VERSION",
                file=file.name,
                offset=str(offset),
            )
        hasher = xxhash.xxh3_64()
        for at in range(0, head.data_bytes, _HASH_STEP):
            step = min(_HASH_STEP, head.data_bytes - at)
            hasher.update(file.pread(step, offset + start + at))
        if hasher.intdigest() != head.data_hash:
            return None
        return Replayed(record, LogPlace(index, offset, offset + start))

    def _check_nothing_follows(self, index: int, offset: int, sequence: int, chain: int) -> None:
        """A record that was never synced has no successor. One that does is damaged, not torn."""
        head = self._head_at(index, offset)
        places = [(1 - index, 0)]
        if head is not None and head.sequence == sequence and head.previous == chain:
            length = record_bytes(head.table_bytes, head.data_bytes, self._block_size)
            places.append((index, offset + length))
        else:
            head = None
        for other, at in places:
            successor = self._head_at(other, at)
            if successor is None or successor.sequence <= sequence:
                continue
            if head is not None and successor.previous != head.checksum:
                continue
            if decode(successor, self._table_of(successor, other, at)) is None:
                continue
            name = self._files[index].name
            raise DataError(
                f"{name} is damaged at byte {offset}: flushed record {sequence} cannot be read, "
                "though a later one is there: replace this region by repair from other replicas",
                reason="DATA_LOSS",
                file=name,
                offset=str(offset),
            )

    def _table_of(self, head: RecordHead, index: int, offset: int) -> bytes:
        file = self._files[index]
        size = min(head.table_bytes, max(0, file.size() - offset - HEADER_BYTES))
        return file.pread(size, offset + HEADER_BYTES)
