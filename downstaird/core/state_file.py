"""What a checkpoint makes durable: the map of chunks, the extent table, and where the log goes on.

Two files, `state-0` and `state-1`, written in turn and synced; the whole one with the higher
count is true.

    page 0    header, see HEADER, and its checksum
    pages     the map (u32 per logical chunk: bit 31 = which contexts file, below it the physical
              chunk), then the extent table (24 bytes per extent); 4080 bytes a page, then its
              number and checksum

A damaged page costs the extents it speaks of, which are faulted; a damaged header costs that copy.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import xxhash

from downstaird.core.disk import File
from downstaird.core.layout import Layout
from downstaird.core.log_record import EXTENT, ExtentEntries
from downstaird.core.snapshot_entry import SNAPSHOT, SnapshotEntries, no_snapshots
from stairlib.model.errors import DataError
from stairlib.wire.frame import FLAG_FAULTED

STATE_NAMES = ("state-0", "state-1")
MAGIC = 0x54535753  # "SWST"
VERSION = 1
# magic, version, log that the chain begins in, region tag, count of checkpoints, first sequence,
# chain, map pages, extent pages, checksum
HEADER = struct.Struct("<IHHQQQQIIQ")
# Behind the header, in its sector: the last record that was there when the state was made, and a
# checksum of the header and of that. Where they do not fit together nothing is known of it.
_FOLLOWED = struct.Struct("<QQ")
# Behind that: pages of the list of snapshots, and a checksum of all before; zeros where there is
# no list.
_LISTED = struct.Struct("<QQ")
_HEAD_BYTES = HEADER.size + _FOLLOWED.size + _LISTED.size
PAGE_BYTES = 4096
PAYLOAD_BYTES = 4080
_TRAILER = struct.Struct("<IIQ")  # page number, low half of the count, checksum
_MAP_ENTRIES = PAYLOAD_BYTES // 4
_EXTENT_ENTRIES = PAYLOAD_BYTES // EXTENT.itemsize
_SNAPSHOT_ENTRIES = PAYLOAD_BYTES // SNAPSHOT.itemsize
_SIDE_BIT = np.uint32(1 << 31)


@dataclass(slots=True)
class State:
    """A region as of a checkpoint. chunks: physical chunk per logical one. sides: contexts file
    per physical chunk.

    file: which of the two state files. followed: sequence of the last record when the state was
    made, which must be there still; 0 where that is not known. damaged: extents whose part could
    not be read. lost: per chunk, whether its part of the map could not be. snapshots: those whose
    map is in its place.
    """

    file: int
    count: int
    log: int
    sequence: int
    chain: int
    chunks: npt.NDArray[np.uint32]
    sides: bytearray
    extents: ExtentEntries
    followed: int = 0
    damaged: frozenset[int] = frozenset()
    lost: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    snapshots: SnapshotEntries = field(default_factory=no_snapshots)


@dataclass(frozen=True, slots=True)
class Pages:
    """What the pages of a map and of an extent table say; see State."""

    chunks: npt.NDArray[np.uint32]
    sides: bytearray
    extents: ExtentEntries
    damaged: frozenset[int]
    lost: npt.NDArray[np.bool_]


def encode_state(state: State, tag: int) -> bytes:
    """All pages of one state file."""
    pages = encode_pages(state.chunks, state.sides, state.extents, state.count)
    count = len(pages) // PAGE_BYTES
    low = state.count & 0xFFFFFFFF
    listed = _pages(state.snapshots.tobytes(), _SNAPSHOT_ENTRIES * SNAPSHOT.itemsize)
    extent_pages = -(-len(state.extents) // _EXTENT_ENTRIES)
    out = [_encode_head(state, tag, count - extent_pages, extent_pages, len(listed)), pages]
    for number, page in enumerate(listed, start=count + 1):
        out.append(_seal(page.tobytes(), number, low))
    return b"".join(out)


def encode_pages(
    chunks: npt.NDArray[np.uint32], sides: bytearray, extents: ExtentEntries, count: int
) -> bytes:
    """The pages of a map and of an extent table, marked with `count`."""
    side_of = np.frombuffer(bytes(sides), dtype=np.uint8)
    entries = chunks.astype("<u4")
    mapped = np.flatnonzero(entries)
    entries[mapped] |= np.where(side_of[entries[mapped]] == 1, _SIDE_BIT, np.uint32(0))
    pages = np.concatenate(
        [
            _pages(entries.tobytes(), _MAP_ENTRIES * 4),
            _pages(extents.tobytes(), _EXTENT_ENTRIES * EXTENT.itemsize),
        ]
    )
    low = count & 0xFFFFFFFF
    return b"".join(
        _seal(page.tobytes(), number, low) for number, page in enumerate(pages, start=1)
    )


def page_counts(layout: Layout) -> tuple[int, int]:
    """Pages of the map and of the extent table."""
    extents = layout.geometry.extent_count
    return -(-layout.chunk_count // _MAP_ENTRIES), -(-extents // _EXTENT_ENTRIES)


def store_state(file: File, state: State, tag: int) -> None:
    """Returns once the state is durable: its pages first, then the header that makes it count.
    DataError."""
    raw = memoryview(encode_state(state, tag))
    file.pwritev([raw[PAGE_BYTES:]], PAGE_BYTES)
    file.datasync()
    file.pwritev([raw[:PAGE_BYTES]], 0)
    file.datasync()


def page_of_chunk(chunk: int) -> int:
    """Offset of the page of the map that has the chunk."""
    return (1 + chunk // _MAP_ENTRIES) * PAGE_BYTES


def page_of_extent(extent: int, layout: Layout) -> int:
    """Offset of the page of the extent table that has the extent."""
    map_pages = -(-layout.chunk_count // _MAP_ENTRIES)
    return (1 + map_pages + extent // _EXTENT_ENTRIES) * PAGE_BYTES


def _pages(raw: bytes, used: int) -> npt.NDArray[np.uint8]:
    """Cuts into pages with `used` bytes each. Shape (pages, PAYLOAD_BYTES)."""
    count = -(-len(raw) // used)
    padded = np.zeros(count * used, dtype=np.uint8)
    padded[: len(raw)] = np.frombuffer(raw, dtype=np.uint8)
    pages = np.zeros((count, PAYLOAD_BYTES), dtype=np.uint8)
    pages[:, :used] = padded.reshape(count, used)
    return pages


def _seal(payload: bytes, number: int, low: int) -> bytes:
    mark = struct.pack("<II", number, low)
    checksum = xxhash.xxh3_64_intdigest(payload + mark)
    return payload + _TRAILER.pack(number, low, checksum)


def _encode_head(
    state: State, tag: int, map_pages: int, extent_pages: int, snapshot_pages: int
) -> bytes:
    head = HEADER.pack(
        MAGIC,
        VERSION,
        state.log,
        tag,
        state.count,
        state.sequence,
        state.chain,
        map_pages,
        extent_pages,
        0,
    )
    body = head[:-8]
    head = body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))
    head += _followed(head, state.followed)
    if snapshot_pages:
        head += _listed(head, snapshot_pages)
    return head.ljust(PAGE_BYTES, b"\0")


def _listed(head: bytes, pages: int) -> bytes:
    checksum = xxhash.xxh3_64_intdigest(head + struct.pack("<Q", pages))
    return _LISTED.pack(pages, checksum)


def _followed(head: bytes, sequence: int) -> bytes:
    checksum = xxhash.xxh3_64_intdigest(head + struct.pack("<Q", sequence))
    return _FOLLOWED.pack(sequence, checksum)


def load_state(files: Sequence[File], layout: Layout, tag: int, void: int) -> State:
    """The newer whole copy, the one with count `void` left out. DataError when there is none, or a
    newer version wrote it."""
    found = [(index, _read_head(file, tag)) for index, file in enumerate(files)]
    heads = [(index, head) for index, head in found if head is not None and head[4] != void]
    if not heads:
        raise DataError(
            f"{files[0].name} and {files[1].name} are both damaged at byte 0: the region cannot be "
            "opened; replace it by repair from the other replicas",
            file=files[0].name,
            offset="0",
        )
    index, fields = max(heads, key=lambda head: head[1][4])
    return _read_pages(files[index], index, fields, layout)


def _read_head(file: File, tag: int) -> tuple[int, ...] | None:
    if file.size() < PAGE_BYTES:
        return None
    page = file.pread(_HEAD_BYTES, 0)
    raw = page[: HEADER.size]
    fields = HEADER.unpack(raw)
    if fields[0] != MAGIC or fields[3] != tag:
        return None
    if xxhash.xxh3_64_intdigest(raw[:-8]) != fields[9]:
        return None
    if fields[1] != VERSION:
        raise DataError(
            f"{file.name} has version {fields[1]} at byte 0; this program reads version {VERSION}: "
            "run the newer one",
            reason="FORMAT_VERSION",
            file=file.name,
            offset="0",
        )
    followed, _ = _FOLLOWED.unpack_from(page, HEADER.size)
    known = _followed(raw, followed) == page[HEADER.size : -_LISTED.size]
    snapshot_pages, _ = _LISTED.unpack_from(page, HEADER.size + _FOLLOWED.size)
    if any(page[-_LISTED.size :]) and page != (
        (head := page[: -_LISTED.size]) + _listed(head, snapshot_pages)
    ):
        return None
    fields = (*fields, followed if known else 0, snapshot_pages)
    # Without its list a state would free what snapshots hold: then it is not whole.
    return fields if _snapshots_of(file, fields) is not None else None


def _snapshots_of(file: File, fields: tuple[int, ...]) -> SnapshotEntries | None:
    """The list of a state with that header; None where it is damaged."""
    first, count, low = 1 + fields[7] + fields[8], fields[11], fields[4] & 0xFFFFFFFF
    if not count:
        return no_snapshots()
    if file.size() < (first + count) * PAGE_BYTES:
        return None
    raw = file.pread(count * PAGE_BYTES, first * PAGE_BYTES)
    parts = []
    for number in range(count):
        page = memoryview(raw)[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
        if not _page_is_whole(page, first + number, low):
            return None
        parts.append(bytes(page[: _SNAPSHOT_ENTRIES * SNAPSHOT.itemsize]))
    entries: SnapshotEntries = np.frombuffer(b"".join(parts), dtype=SNAPSHOT)
    there: SnapshotEntries = entries[entries["id"] != 0]
    return there


def _read_pages(file: File, index: int, fields: tuple[int, ...], layout: Layout) -> State:
    count, map_pages, extent_pages = fields[4], fields[7], fields[8]
    expected = page_counts(layout)
    if (map_pages, extent_pages) != expected:
        raise DataError(
            f"{file.name} is damaged at byte 0: it has {map_pages} + {extent_pages} pages where "
            f"the region's geometry needs {expected[0]} + {expected[1]}",
            file=file.name,
            offset="0",
        )
    raw = bytearray((map_pages + extent_pages) * PAGE_BYTES)
    available = min(len(raw), max(0, file.size() - PAGE_BYTES))
    raw[:available] = file.pread(available, PAGE_BYTES)
    found = decode_pages(raw, layout, count)
    snapshots = _snapshots_of(file, fields)
    assert snapshots is not None
    return State(
        file=index,
        count=count,
        log=fields[2],
        sequence=fields[5],
        chain=fields[6],
        chunks=found.chunks,
        sides=found.sides,
        extents=found.extents,
        followed=fields[10],
        damaged=found.damaged,
        lost=found.lost,
        snapshots=snapshots,
    )


def decode_pages(raw: bytearray, layout: Layout, count: int) -> Pages:
    """What `encode_pages` made; damaged pages are zeroed in `raw`, their extents faulted."""
    map_pages, extent_pages = page_counts(layout)
    chunk_count, extent_count = layout.chunk_count, layout.geometry.extent_count
    low = count & 0xFFFFFFFF
    damaged: set[int] = set()
    lost = np.zeros(chunk_count, dtype=np.bool_)
    view = memoryview(raw)
    for number in range(map_pages + extent_pages):
        page = view[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
        if not _page_is_whole(page, number + 1, low):
            page[:] = bytes(PAGE_BYTES)
            damaged |= _extents_of(number, map_pages, layout)
            if number < map_pages:
                lost[number * _MAP_ENTRIES : (number + 1) * _MAP_ENTRIES] = True
    pages = np.frombuffer(raw, dtype=np.uint8).reshape(-1, PAGE_BYTES)
    entries = pages[:map_pages, : _MAP_ENTRIES * 4].reshape(-1).view("<u4")[:chunk_count]
    used = _EXTENT_ENTRIES * EXTENT.itemsize
    table = pages[map_pages:, :used].reshape(-1).view(EXTENT)[:extent_count].copy()
    table["extent"] = np.arange(extent_count, dtype=np.uint32)
    if damaged:
        table["flags"][sorted(damaged)] |= FLAG_FAULTED
    chunks = entries & ~_SIDE_BIT
    sides = np.zeros(int(chunks.max(initial=0)) + 1, dtype=np.uint8)
    sides[chunks] = entries >> np.uint32(31)
    return Pages(chunks, bytearray(sides.tobytes()), table, frozenset(damaged), lost)


def _page_is_whole(page: memoryview, number: int, low: int) -> bool:
    found = _TRAILER.unpack_from(page, PAYLOAD_BYTES)
    checksum = xxhash.xxh3_64_intdigest(page[: PAYLOAD_BYTES + 8])
    return found == (number, low, checksum)


def _extents_of(index: int, map_pages: int, layout: Layout) -> set[int]:
    """Extents that page `index` (from 0, the header not counted) speaks of."""
    if index >= map_pages:
        first = (index - map_pages) * _EXTENT_ENTRIES
        return set(range(first, min(first + _EXTENT_ENTRIES, layout.geometry.extent_count)))
    per_extent = layout.chunks_per_extent
    first_chunk = index * _MAP_ENTRIES
    last_chunk = min(first_chunk + _MAP_ENTRIES, layout.chunk_count) - 1
    return set(range(first_chunk // per_extent, last_chunk // per_extent + 1))
