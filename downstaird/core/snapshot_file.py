"""The file `snapshots`: the map and the stamps of each settled snapshot, in a place of its own.

    page 0    header, see HEADER
    pages     as those of a state file: the map, then the extent table

A place is written and synced once, before the state that names it. A damaged page costs the
snapshot the extents it speaks of; a damaged header costs it all.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import xxhash

from downstaird.core.disk import File
from downstaird.core.layout import Layout
from downstaird.core.log_record import ExtentEntries
from downstaird.core.state_file import (
    PAGE_BYTES,
    decode_pages,
    encode_pages,
    page_counts,
)
from stairlib.model.errors import DataError

SNAPSHOTS_NAME = "snapshots"
MAGIC = 0x53535753  # "SWSS"
VERSION = 1
# magic, version, zero, region tag, id of the snapshot, map pages, extent pages, checksum
HEADER = struct.Struct("<IHHQQIIQ")


@dataclass(frozen=True, slots=True)
class SnapshotMap:
    """Where everything of a snapshot is. chunks, sides, extents: as of a State. lost: per chunk,
    whether its part of the map is damaged."""

    chunks: npt.NDArray[np.uint32]
    sides: bytearray
    extents: ExtentEntries
    lost: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))


def place_bytes(layout: Layout) -> int:
    """Bytes of one place."""
    return (1 + sum(page_counts(layout))) * PAGE_BYTES


def store_map(
    file: File, layout: Layout, tag: int, place: int, number: int, what: SnapshotMap
) -> None:
    """Writes the map of snapshot `number`; not synced. DataError."""
    map_pages, extent_pages = page_counts(layout)
    head = HEADER.pack(MAGIC, VERSION, 0, tag, number, map_pages, extent_pages, 0)[:-8]
    head += struct.pack("<Q", xxhash.xxh3_64_intdigest(head))
    pages = encode_pages(what.chunks, what.sides, what.extents, number)
    file.pwritev([head.ljust(PAGE_BYTES, b"\0"), pages], place * place_bytes(layout))


def load_map(file: File, layout: Layout, tag: int, place: int, number: int) -> SnapshotMap:
    """The map of snapshot `number`; what cannot be read of it is lost. DataError when its header
    is damaged."""
    offset = place * place_bytes(layout)
    _check_head(file, offset, tag, number)
    size = place_bytes(layout) - PAGE_BYTES
    raw = bytearray(size)
    available = min(size, max(0, file.size() - offset - PAGE_BYTES))
    raw[:available] = file.pread(available, offset + PAGE_BYTES)
    found = decode_pages(raw, layout, number)
    return SnapshotMap(found.chunks, found.sides, found.extents, found.lost)


def _check_head(file: File, offset: int, tag: int, number: int) -> None:
    raw = file.pread(HEADER.size, offset) if file.size() >= offset + HEADER.size else b""
    if len(raw) == HEADER.size:
        magic, version, _, found_tag, found, _, _, checksum = HEADER.unpack(raw)
        whole = magic == MAGIC and checksum == xxhash.xxh3_64_intdigest(raw[:-8])
        if whole and version != VERSION:
            raise DataError(
                f"{file.name} has version {version} at byte {offset}; this program reads version "
                f"{VERSION}: run the newer one",
                reason="FORMAT_VERSION",
                file=file.name,
                offset=str(offset),
            )
        if whole and found_tag == tag and found == number:
            return
    raise DataError(
        f"{file.name} is damaged at byte {offset}: the map of a snapshot should be there; delete "
        "the snapshot, it cannot be read",
        reason="SNAPSHOT_DAMAGED",
        file=file.name,
        offset=str(offset),
    )
