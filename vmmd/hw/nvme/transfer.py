"""The I/O commands: checks an entry and turns it into block requests.

`begin` fills an `Ongoing` and returns the first requests, or raises CommandError or PrpError with
the status the command completes with. A command without requests (a deallocate of nothing) is done.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from vmmd.block.backend import BackendInfo, BlockOp, Request
from vmmd.block.pieces import (
    DISCARD_PIECE_BYTES,
    PIECES_IN_FLIGHT,
    TRANSFER_PIECE_BYTES,
    ZEROES,
    split,
)
from vmmd.hw.memory import GuestMemory
from vmmd.hw.nvme import bits, identify, prp
from vmmd.hw.nvme.commands import CommandError, Entry, Ongoing
from vmmd.hw.segments import gather

_RANGE = struct.Struct("<IIQ")


@dataclass(frozen=True, slots=True)
class Namespace:
    """What I/O commands are checked against."""

    memory: GuestMemory
    info: BackendInfo


def begin(namespace: Namespace, entry: Entry, ongoing: Ongoing, *, cached: bool) -> list[Request]:
    """The first requests of a command. `cached` is whether writes may stay in the write cache."""
    if not entry.plain:
        raise CommandError(bits.INVALID_FIELD)
    opcode = entry.opcode
    if opcode in (bits.IoOpcode.READ, bits.IoOpcode.WRITE):
        _check_namespace(entry)
        return _read_or_write(namespace, entry, ongoing, cached=cached)
    if opcode == bits.IoOpcode.FLUSH:
        if entry.namespace not in (bits.NAMESPACE, bits.NAMESPACE_ALL):
            raise CommandError(bits.INVALID_NAMESPACE)
        return [Request(BlockOp.FLUSH, ongoing)]
    if opcode == bits.IoOpcode.WRITE_ZEROES:
        _check_namespace(entry)
        return _write_zeroes(namespace, entry, ongoing, cached=cached)
    if opcode == bits.IoOpcode.DATASET_MANAGEMENT and namespace.info.supports_discard:
        _check_namespace(entry)
        return _dataset_management(namespace, entry, ongoing)
    raise CommandError(bits.INVALID_OPCODE)


def next_pieces(ongoing: Ongoing, count: int) -> list[Request]:
    """Up to `count` further requests of a command that takes many."""
    if ongoing.rest is None:
        return []
    pieces = list(islice(ongoing.rest, count))
    if len(pieces) < count:
        ongoing.rest = None
    return pieces


def _check_namespace(entry: Entry) -> None:
    if entry.namespace != bits.NAMESPACE:
        raise CommandError(bits.INVALID_NAMESPACE)


def _check_range(info: BackendInfo, start: int, count: int) -> None:
    if start + count > info.block_count:
        raise CommandError(bits.LBA_OUT_OF_RANGE)


def _read_or_write(
    namespace: Namespace, entry: Entry, ongoing: Ongoing, *, cached: bool
) -> list[Request]:
    info = namespace.info
    start, count = entry.start_lba, entry.block_count
    length = count * info.block_size
    if length > identify.TRANSFER_BYTES_MAX:
        raise CommandError(bits.INVALID_FIELD)
    _check_range(info, start, count)
    writing = entry.opcode == bits.IoOpcode.WRITE
    if writing and info.read_only:
        raise CommandError(bits.READ_ONLY_RANGE)
    segments = prp.walk(namespace.memory, entry.prp1, entry.prp2, length)
    ongoing.bytes_held = length
    if writing:
        ongoing.flush_after = not cached or bool(entry.cdw12 & bits.RW_FUA)
        return [Request(BlockOp.WRITE, ongoing, start, count, gather(segments))]
    ongoing.segments = segments
    # FUA on a read asks for what is on the medium; the backend never answers from a cache that
    # could differ from it.
    return [Request(BlockOp.READ, ongoing, start, count)]


def _write_zeroes(
    namespace: Namespace, entry: Entry, ongoing: Ongoing, *, cached: bool
) -> list[Request]:
    info = namespace.info
    _check_range(info, entry.start_lba, entry.block_count)
    if info.read_only:
        raise CommandError(bits.READ_ONLY_RANGE)
    ongoing.flush_after = not cached or bool(entry.cdw12 & bits.RW_FUA)
    ongoing.rest = _zero_pieces(info, entry.start_lba, entry.block_count, ongoing)
    return next_pieces(ongoing, PIECES_IN_FLIGHT)


def _zero_pieces(info: BackendInfo, start: int, count: int, token: Ongoing) -> Iterator[Request]:
    for offset, length in split(start, count, TRANSFER_PIECE_BYTES // info.block_size):
        data = ZEROES[: length * info.block_size]
        yield Request(BlockOp.WRITE, token, offset, length, data)


def _dataset_management(namespace: Namespace, entry: Entry, ongoing: Ongoing) -> list[Request]:
    """Deallocation of up to 256 ranges. The other attributes are hints and need nothing."""
    if not entry.cdw11 & bits.DSM_DEALLOCATE:
        return []
    if namespace.info.read_only:
        raise CommandError(bits.READ_ONLY_RANGE)
    ranges = (entry.cdw10 & 0xFF) + 1
    buffers = prp.walk(namespace.memory, entry.prp1, entry.prp2, ranges * bits.DSM_RANGE_BYTES)
    wanted = []
    for _attributes, count, start in _RANGE.iter_unpack(gather(buffers)):
        _check_range(namespace.info, start, count)
        wanted.append((start, count))
    step = DISCARD_PIECE_BYTES // namespace.info.block_size
    ongoing.rest = (
        Request(BlockOp.DISCARD, ongoing, offset, length)
        for start, count in wanted
        for offset, length in split(start, count, step)
    )
    return next_pieces(ongoing, PIECES_IN_FLIGHT)
