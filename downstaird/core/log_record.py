"""The log's record: everything one flush makes durable, in one checksummed and chained piece.

    header    128 bytes, see HEADER; the rest is zero
    table     extents, remaps, discards, block addresses, block contexts, remap contexts,
              snapshots
    padding   to the next multiple of the block size (at most 4096)
    data      one block per block address
    padding   to the next multiple of 4096

A record is applied in this order: extents, remaps, discards, blocks, snapshots. The checksum covers
header and table, the header holds the hash of the data and the checksum of the record before, so a
record proves all that came earlier. docs/region-format.md has it byte by byte.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from downstaird.core.disk import Buffer
from downstaird.core.snapshot_entry import SNAPSHOT, SnapshotEntries, no_snapshots
from stairlib.model.context import CONTEXT_BYTES, ContextArray, empty_contexts

# Arrays are stored as they are in memory.
assert sys.byteorder == "little"

MAGIC = 0x524C5753  # "SWLR"
VERSION = 1
# magic, version, flags, region tag, sequence, previous checksum, flush, generation, extents,
# remaps, discards, blocks, remap contexts, snapshots, table bytes, data bytes, data hash, checksum
HEADER = struct.Struct("<IHHQQQQQIIIIIIQQQQ")
HEADER_BYTES = 128
_CHECKSUM = struct.Struct("<Q")
_CHECKSUM_AT = HEADER.size - _CHECKSUM.size
# Records begin at multiples of a page: a write to one never rewrites a sector of the record before.
RECORD_ALIGN = 4096

EXTENT = np.dtype([("extent", "<u4"), ("flags", "<u4"), ("generation", "<u8"), ("flush", "<u8")])
ExtentEntries = npt.NDArray[np.void]
U32Array = npt.NDArray[np.uint32]
I64Array = npt.NDArray[np.int64]


# Empty sections are always the same ones: nothing can be written to them.
_NO_EXTENTS: ExtentEntries = np.zeros(0, dtype=EXTENT)
NO_U32_PAIRS: U32Array = np.zeros((0, 2), dtype=np.uint32)
NO_I64_PAIRS: I64Array = np.zeros((0, 2), dtype=np.int64)
_NO_ADDRESSES: I64Array = np.zeros(0, dtype=np.int64)
_NO_CONTEXTS = empty_contexts(0)


def no_extents() -> ExtentEntries:
    """An empty extent section."""
    return _NO_EXTENTS


@dataclass(slots=True)
class Record:
    """A record's content without its data.

    remaps: shape (n, 2), logical chunk and physical chunk (0 = the chunk becomes never-written).
    discards: shape (n, 2), first address and count. remap_contexts: one array of shape
    (chunk_blocks, 4) after the other, for the remaps whose physical chunk is not 0, in their
    order. snapshots: taken by this flush, or deleted.
    """

    sequence: int = 0
    previous: int = 0
    flush: int = 0
    generation: int = 0
    extents: ExtentEntries = field(default_factory=no_extents)
    remaps: U32Array = field(default_factory=lambda: NO_U32_PAIRS)
    discards: I64Array = field(default_factory=lambda: NO_I64_PAIRS)
    addresses: I64Array = field(default_factory=lambda: _NO_ADDRESSES)
    contexts: ContextArray = field(default_factory=lambda: _NO_CONTEXTS)
    remap_contexts: ContextArray = field(default_factory=lambda: _NO_CONTEXTS)
    snapshots: SnapshotEntries = field(default_factory=no_snapshots)
    data_bytes: int = 0
    data_hash: int = 0
    checksum: int = 0
    table_bytes: int = 0


def data_start(table_bytes: int, block_size: int) -> int:
    """Where the data begins, from the start of the record."""
    align = min(RECORD_ALIGN, block_size)
    return -(-(HEADER_BYTES + table_bytes) // align) * align


def record_bytes(table_bytes: int, data_bytes: int, block_size: int) -> int:
    """Length of the whole record, padding included."""
    return -(-(data_start(table_bytes, block_size) + data_bytes) // RECORD_ALIGN) * RECORD_ALIGN


def encode(record: Record, data: Sequence[Buffer], *, tag: int, block_size: int) -> list[Buffer]:
    """The buffers to write, padding included. Fills in the record's checksum, hash and lengths."""
    hasher = xxhash.xxh3_64()
    for block in data:
        hasher.update(block)
    table = b"".join(
        part.tobytes()
        for part in (
            record.extents,
            record.remaps,
            record.discards,
            record.addresses,
            record.contexts,
            record.remap_contexts,
            record.snapshots,
        )
        if len(part)
    )
    record.data_bytes = sum(map(len, data))
    record.data_hash = hasher.intdigest()
    record.table_bytes = len(table)
    assert record.data_bytes == len(record.addresses) * block_size
    head = bytearray(HEADER_BYTES)
    _pack(head, record, tag)
    record.checksum = _checksum(head, table)
    _CHECKSUM.pack_into(head, _CHECKSUM_AT, record.checksum)
    start = data_start(len(table), block_size)
    end = record_bytes(len(table), record.data_bytes, block_size)
    front = b"".join((head, table, bytes(start - HEADER_BYTES - len(table))))
    return [front, *data, bytes(end - start - record.data_bytes)]


def _pack(head: bytearray, record: Record, tag: int) -> None:
    HEADER.pack_into(
        head,
        0,
        MAGIC,
        VERSION,
        0,
        tag,
        record.sequence,
        record.previous,
        record.flush,
        record.generation,
        len(record.extents),
        len(record.remaps),
        len(record.discards),
        len(record.addresses),
        len(record.remap_contexts),
        len(record.snapshots),
        record.table_bytes,
        record.data_bytes,
        record.data_hash,
        0,
    )


def _checksum(head: Buffer, table: Buffer) -> int:
    """xxh3-64 over the header up to the checksum field, then the table."""
    hasher = xxhash.xxh3_64(memoryview(head)[:_CHECKSUM_AT])
    hasher.update(table)
    return hasher.intdigest()


@dataclass(frozen=True, slots=True)
class RecordHead:
    """A header whose fields look like a record's; its checksum is not checked yet."""

    raw: bytes
    version: int
    sequence: int
    previous: int
    table_bytes: int
    data_bytes: int
    data_hash: int
    checksum: int


def tag_of(raw: bytes) -> int:
    """The region tag in a header, whatever that is worth."""
    tag: int = HEADER.unpack_from(raw)[3]
    return tag


def parse_head(raw: bytes, *, tag: int, block_size: int | None) -> RecordHead | None:
    """The header in `raw` (128 bytes); None when this is no record of the region `tag`. block_size
    None: of any."""
    fields = HEADER.unpack_from(raw)
    if fields[0] != MAGIC or fields[3] != tag:
        return None
    extents, remaps, discards, blocks, remap_contexts, snapshots = fields[8:14]
    table_bytes = (
        extents * EXTENT.itemsize
        + remaps * 8
        + discards * 16
        + blocks * (8 + CONTEXT_BYTES)
        + remap_contexts * CONTEXT_BYTES
        + snapshots * SNAPSHOT.itemsize
    )
    if fields[14] != table_bytes:
        return None
    if block_size is not None and fields[15] != blocks * block_size:
        return None
    return RecordHead(
        raw=raw,
        version=fields[1],
        sequence=fields[4],
        previous=fields[5],
        table_bytes=table_bytes,
        data_bytes=fields[15],
        data_hash=fields[16],
        checksum=fields[17],
    )


def is_whole(head: RecordHead, table: bytes) -> bool:
    """Whether header and table are what was written. The data is not checked."""
    return _checksum(head.raw, table) == head.checksum


def decode(head: RecordHead, table: bytes) -> Record | None:
    """The record of a header and its table; None when they are not whole."""
    if not is_whole(head, table):
        return None
    fields = HEADER.unpack_from(head.raw)
    extents, remaps, discards, blocks, remap_contexts, snapshots = fields[8:14]
    at = 0

    def take(count: int, dtype: npt.DTypeLike, width: int) -> npt.NDArray[Any]:
        nonlocal at
        part = np.frombuffer(table, dtype=dtype, count=count * width, offset=at)
        at += part.nbytes
        return part

    return Record(
        sequence=head.sequence,
        previous=head.previous,
        flush=fields[6],
        generation=fields[7],
        extents=take(extents, EXTENT, 1),
        remaps=take(remaps, "<u4", 2).reshape(-1, 2).astype(np.uint32),
        discards=take(discards, "<i8", 2).reshape(-1, 2).astype(np.int64),
        addresses=take(blocks, "<i8", 1).astype(np.int64),
        contexts=take(blocks, "<u8", 4).reshape(-1, 4).astype(np.uint64),
        remap_contexts=take(remap_contexts, "<u8", 4).reshape(-1, 4).astype(np.uint64),
        snapshots=take(snapshots, SNAPSHOT, 1),
        data_bytes=head.data_bytes,
        data_hash=head.data_hash,
        checksum=head.checksum,
        table_bytes=head.table_bytes,
    )
