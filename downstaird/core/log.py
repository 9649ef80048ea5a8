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

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash

from downstaird.core.disk import Appender, AppendingFile, Buffer, File
from downstaird.core.log_record import (
    HEADER_BYTES,
    MAGIC,
    RECORD_ALIGN,
    VERSION,
    ExtentEntries,
    I64Array,
    Record,
    RecordHead,
    data_start,
    decode,
    encode,
    is_whole,
    parse_head,
    record_bytes,
    tag_of,
)
from stairlib import native
from stairlib.model.context import ContextArray
from stairlib.model.errors import DataError

LOG_NAMES = ("log-0", "log-1")
# Data is hashed in parts of this size at recovery, to bound memory.
_HASH_STEP = 4 << 20
_PADDING = bytes(RECORD_ALIGN)
# What follows the chain is looked through in parts of this size.
_SCAN_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LogPlace:
    """Where a record is: file index, offset of the record, offset of its data; bytes."""

    log: int
    offset: int
    data_offset: int


@dataclass(frozen=True, slots=True)
class BlocksToLog:
    """The most usual record: `extents`, and blocks with their `addresses`, shape (n,), and
    `contexts`, shape (n, 4). Nothing of it may change before the append has ended."""

    flush: int
    generation: int
    extents: ExtentEntries
    addresses: I64Array
    contexts: ContextArray
    data: Buffer


class MadeRecord(NamedTuple):
    """A record ready to be written: what goes before its data and behind it, where it goes and
    ends."""

    front: bytes
    padding: bytes
    place: LogPlace
    end: int
    checksum: int


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
        self._keep: int | None = None
        self._appending = [file if isinstance(file, AppendingFile) else None for file in files]

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
        self._write(buffers, offset, end)
        start = offset + data_start(record.table_bytes, self._block_size)
        return self._appended(LogPlace(index, offset, start), end, record.checksum)

    def append_blocks(self, blocks: BlocksToLog) -> LogPlace:
        """As `append` of a record of extents and blocks alone, made by compiled code."""
        made = self._made(blocks)
        self._write([made.front, blocks.data, made.padding], made.place.offset, made.end)
        return self._appended(made.place, made.end, made.checksum)

    def begin(self, blocks: BlocksToLog, appender: Appender) -> MadeRecord | None:
        """As `append_blocks`, by the appender's thread: what `end` is to be called with. None:
        nothing was begun."""
        file, offset = self._appending[self.active], self._ends[self.active]
        # Where zeros have to go ahead of it, that is more than an append.
        if file is None or offset + self._bytes_of(blocks) > self._zeroed[self.active]:
            return None
        made = self._made(blocks)
        file.begin_append(made.front, blocks.data, made.padding, offset, appender)
        return made

    def end(self, made: MadeRecord, appender: Appender) -> LogPlace:
        """The outcome of what was begun. Raises DataError."""
        file = self._appending[made.place.log]
        assert file is not None
        file.end_append(appender)
        return self._appended(made.place, made.end, made.checksum)

    def _bytes_of(self, blocks: BlocksToLog) -> int:
        """Of the whole record."""
        table_bytes = blocks.extents.nbytes + blocks.addresses.nbytes + blocks.contexts.nbytes
        return record_bytes(table_bytes, len(blocks.data), self._block_size)

    def _made(self, blocks: BlocksToLog) -> MadeRecord:
        front, checksum = native.record_front(
            self._tag,
            self.next_sequence,
            self.chain,
            blocks.flush,
            blocks.generation,
            blocks.extents,
            blocks.addresses,
            blocks.contexts,
            blocks.data,
            self._block_size,
        )
        offset = self._ends[self.active]
        start, end = offset + len(front), offset + self._bytes_of(blocks)
        padding = _PADDING[: end - start - len(blocks.data)]
        return MadeRecord(front, padding, LogPlace(self.active, offset, start), end, checksum)

    def _write(self, buffers: Sequence[Buffer], offset: int, end: int) -> None:
        """To the active file, and syncs it; with zeros ahead where they end."""
        file = self.files[self.active]
        file.pwritev(buffers, offset)
        if end > self._zeroed[self.active]:
            ahead = -(-self._zero_bytes // RECORD_ALIGN) * RECORD_ALIGN
            file.pwritev([bytes(ahead)], end)
            self._zeroed[self.active] = end + ahead
        file.datasync()

    def _appended(self, place: LogPlace, end: int, checksum: int) -> LogPlace:
        """The record at `place` is durable."""
        self._ends[place.log] = end
        self.next_sequence += 1
        self.chain = checksum
        return place

    def switch(self) -> None:
        """Seals the active file: the next record begins the other one, which must be free."""
        self.active = 1 - self.active
        self._ends[self.active] = 0
        keep = self._keep
        if keep is not None and self._zeroed[self.active] > keep:
            self.files[self.active].truncate(keep)
            self._zeroed[self.active] = keep

    def retire(self, index: int, keep_bytes: int) -> None:
        """The file's records are no longer needed. Space above `keep_bytes` is given back when the
        file is used again: until then the older state file could still be read with it."""
        assert index != self.active
        self._ends[index] = 0
        self._keep = keep_bytes


@dataclass(frozen=True, slots=True)
class Replayed:
    """One record that recovery found. whole: its data is what was flushed; where it is not, a later
    record proves that it had been."""

    record: Record
    place: LogPlace
    whole: bool = True

    def end(self, block_size: int) -> int:
        """Offset of the first byte behind the record."""
        record = self.record
        return self.place.offset + record_bytes(record.table_bytes, record.data_bytes, block_size)


@dataclass(frozen=True, slots=True)
class LostRecord:
    """A flushed record that cannot be read: what it changed is not known. highest: the last
    sequence that is in the files."""

    file: str
    offset: int
    sequence: int
    highest: int

    @property
    def text(self) -> str:
        """What is lost and what helps, for people."""
        return (
            f"{self.file} is damaged at byte {self.offset}: flushed record {self.sequence} cannot "
            "be read, though later ones were made, and what it changed is not known; all extents "
            "wait for repair from another replica"
        )


@dataclass(frozen=True, slots=True)
class Chain:
    """All that recovery found: records in order, and where to go on. lost: where the chain was
    broken before its end."""

    found: list[Replayed]
    active: int
    ends: tuple[int, int]
    next_sequence: int
    chain: int
    lost: LostRecord | None = None


class LogReader:
    """Finds the chain that begins at a given sequence. Reads only."""

    def __init__(
        self, files: Sequence[File], *, tag: int, block_size: int, void: Collection[int]
    ) -> None:
        self._files = files
        self._tag = tag
        self._block_size = block_size
        self._void = void

    def replay(self, first: int, sequence: int, chain: int, followed: int = 0) -> Chain:
        """The chain from the start of file `first`, then of the other. followed: a record that is
        known to have been there, and what came before it. DataError for a file of another region,
        or for what a newer version has written."""
        for index in (0, 1):
            self._check_ours(index)
        found: list[Replayed] = []
        start = self._skip_void(sequence)
        following = start
        before = chain
        for index in (first, 1 - first):
            offset = 0
            if index != first and found and self._is_replaced(found, index, chain, followed):
                following = found.pop().record.sequence
                before = found[-1].record.checksum if found else chain
            while (taken := self._record_at(index, offset, following, before)) is not None:
                found.append(taken)
                before = taken.record.checksum
                following = self._skip_void(following + 1)
                offset = taken.end(self._block_size)
        ends = self._ends(found)
        highest = self._highest_behind(ends, following)
        if found and not found[-1].whole:
            last = found[-1].record.sequence
            if highest < following and followed < last:
                # Nothing says that it was ever synced: torn, as a power cut leaves it.
                found.pop()
                following = last
                before = found[-1].record.checksum if found else chain
                ends = self._ends(found)
        active = found[-1].place.log if found else first
        lost = None
        if highest > following or followed >= following:
            highest = max(highest, followed)
            lost = LostRecord(self._files[active].name, ends[active], following, highest)
        return Chain(found, active, ends, following, before, lost)

    def _is_replaced(
        self, found: Sequence[Replayed], other: int, chain: int, followed: int
    ) -> bool:
        """Whether the last record of the first file was torn and made anew in the other one: so it
        is when a checkpoint began between the power cut and the next flush."""
        torn = found[-1]
        if torn.whole:
            return False
        before = found[-2].record.checksum if len(found) > 1 else chain
        sequence = torn.record.sequence
        instead = self._record_at(other, 0, sequence, before)
        return instead is not None and (instead.whole or followed < sequence)

    def _ends(self, found: Sequence[Replayed]) -> tuple[int, int]:
        ends = [0, 0]
        for each in found:
            ends[each.place.log] = each.end(self._block_size)
        return ends[0], ends[1]

    def _skip_void(self, sequence: int) -> int:
        while sequence in self._void:
            sequence += 1
        return sequence

    def _check_ours(self, index: int) -> None:
        """A file begins with a record of this region, with zeros, or with what was torn. A file
        that was mixed up can be put back, so it is not taken for damage."""
        file = self._files[index]
        if file.size() < HEADER_BYTES:
            return
        raw = file.pread(HEADER_BYTES, 0)
        head = parse_head(raw, tag=tag_of(raw), block_size=None)
        if head is None or tag_of(raw) == self._tag or not self._is_whole(head, index, 0):
            return
        raise DataError(
            f"{file.name} is not this region's: at byte 0 it holds a record of another one; put "
            "the right file back, or replace this region by repair from other replicas",
            file=file.name,
            offset="0",
        )

    def _head_at(self, index: int, offset: int) -> RecordHead | None:
        file = self._files[index]
        if offset + HEADER_BYTES > file.size():
            return None
        raw = file.pread(HEADER_BYTES, offset)
        return parse_head(raw, tag=self._tag, block_size=self._block_size)

    def _record_at(self, index: int, offset: int, sequence: int, chain: int) -> Replayed | None:
        """The record, if header and table are whole and it is the chain's next."""
        file = self._files[index]
        head = self._head_at(index, offset)
        if head is None or head.sequence != sequence or head.previous != chain:
            return None
        record = decode(head, self._table(head, index, offset))
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
        start = offset + data_start(head.table_bytes, self._block_size)
        return Replayed(
            record, LogPlace(index, offset, start), self._data_is_whole(head, index, start)
        )

    def _data_is_whole(self, head: RecordHead, index: int, start: int) -> bool:
        file = self._files[index]
        if start + head.data_bytes > file.size():
            return False
        hasher = xxhash.xxh3_64()
        for at in range(0, head.data_bytes, _HASH_STEP):
            step = min(_HASH_STEP, head.data_bytes - at)
            try:
                hasher.update(file.pread(step, start + at))
            except DataError:
                return False
        return hasher.intdigest() == head.data_hash

    def _highest_behind(self, ends: tuple[int, int], following: int) -> int:
        """The highest sequence, from `following` on, of the records behind the chain's end in both
        files; less than that where there is none. A record that was never synced has no successor:
        one that has is damaged, not torn."""
        # What earlier rounds left there is older, and not looked into.
        highest = following - 1
        for index, end in enumerate(ends):
            for offset in self._marked(index, end):
                head = self._head_at(index, offset)
                if head is None or head.sequence <= highest:
                    continue
                if self._is_whole(head, index, offset):
                    highest = head.sequence
        return highest

    def _marked(self, index: int, start: int) -> Iterator[int]:
        """Offsets from `start` on where a record of any kind may begin."""
        file = self._files[index]
        size = file.size() // RECORD_ALIGN * RECORD_ALIGN
        for at in range(start, size, _SCAN_BYTES):
            raw = file.pread(min(_SCAN_BYTES, size - at), at)
            words = np.frombuffer(raw, dtype="<u4")[:: RECORD_ALIGN // 4]
            for place in np.flatnonzero(words == MAGIC).tolist():
                yield at + place * RECORD_ALIGN

    def _is_whole(self, head: RecordHead, index: int, offset: int) -> bool:
        return is_whole(head, self._table(head, index, offset))

    def _table(self, head: RecordHead, index: int, offset: int) -> bytes:
        file = self._files[index]
        size = min(head.table_bytes, max(0, file.size() - offset - HEADER_BYTES))
        return file.pread(size, offset + HEADER_BYTES)
