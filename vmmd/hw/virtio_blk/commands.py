"""A request of the driver: its header checked, and what it is while the backend works on it.

The buffers of a chain are one stream of bytes in each direction, wherever the driver cut them: a
header of 16 bytes and data one way; data and a state of one byte the other way.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from vmmd.block.backend import BackendInfo, Request
from vmmd.hw.segments import cut, gather
from vmmd.hw.virtio.ring import Chain
from vmmd.hw.virtio_blk import bits, identify
from vmmd.hw.virtio_blk.bits import RequestStatus, RequestType

_HEADER = struct.Struct("<IIQ")
_RANGE = struct.Struct("<QII")
_UNMAP = 1


class RequestError(Exception):
    """The request is answered with `status` and nothing else happens."""

    def __init__(self, status: RequestStatus) -> None:
        super().__init__(status.name)
        self.status = status


class NoStatusError(Exception):
    """The chain has no room for a state: it can only be given back."""


class Job:
    """One request; the token of its backend requests is (job, byte offset in its data).

    `segments` are the guest's buffers of its data, in either direction; `ranges` (first block,
    blocks) what a discard or a write of zeroes names; `status_view` is where the driver looks how
    it ended. `mark` is, for a flush, the place in `journal` that it makes durable.
    """

    __slots__ = (
        "blocks",
        "epoch",
        "first",
        "head",
        "journal",
        "length",
        "mark",
        "outstanding",
        "ranges",
        "rest",
        "ring",
        "segments",
        "status",
        "status_view",
        "type",
    )

    def __init__(self, ring: int, head: int, kind: int, status_view: memoryview) -> None:
        self.ring = ring
        self.head = head
        self.type = kind
        self.status_view = status_view
        self.status = RequestStatus.OK
        self.epoch = 0
        self.outstanding = 0
        self.first = 0
        self.blocks = 0
        self.length = 0
        self.segments: list[memoryview] = []
        self.ranges: list[tuple[int, int]] = []
        self.rest: Iterator[Request] | None = None
        self.mark = 0
        self.journal: Any = None

    @property
    def written(self) -> int:
        """Bytes the device wrote into the chain, its state included."""
        reading = self.type in (RequestType.IN, RequestType.GET_ID)
        return 1 + (self.length if reading and self.status is RequestStatus.OK else 0)


def parse(ring: int, chain: Chain, info: BackendInfo) -> Job:
    """The checked request, `status` telling when it will not do; NoStatusError when it cannot even
    be told."""
    if not chain.writable or not chain.writable[-1]:
        raise NoStatusError
    state = chain.writable[-1][-1:]
    answer = [*chain.writable[:-1], chain.writable[-1][:-1]]
    header = gather(cut(chain.readable, 0, _HEADER.size))
    if len(header) < _HEADER.size:
        job = Job(ring, chain.head, -1, state)
        job.status = RequestStatus.IO_ERROR
        return job
    kind, _reserved, sector = _HEADER.unpack(header)
    job = Job(ring, chain.head, kind, state)
    given = sum(map(len, chain.readable)) - _HEADER.size
    try:
        if kind == RequestType.IN:
            _transfer(job, sector, answer, sum(map(len, answer)), info)
        elif kind == RequestType.OUT:
            _refuse_read_only(info)
            _transfer(job, sector, cut(chain.readable, _HEADER.size, given), given, info)
        elif kind in (RequestType.DISCARD, RequestType.WRITE_ZEROES):
            _refuse_read_only(info)
            _name_ranges(job, gather(cut(chain.readable, _HEADER.size, given)), info)
        elif kind == RequestType.GET_ID:
            job.segments = [part for part in cut(answer, 0, bits.ID_BYTES) if len(part)]
            job.length = sum(map(len, job.segments))
        elif kind != RequestType.FLUSH:
            job.status = RequestStatus.UNSUPPORTED
    except RequestError as error:
        job.status = error.status
    return job


def _refuse_read_only(info: BackendInfo) -> None:
    if info.read_only:
        raise RequestError(RequestStatus.IO_ERROR)


def _transfer(
    job: Job, sector: int, segments: list[memoryview], length: int, info: BackendInfo
) -> None:
    """Whole blocks only: the configuration space tells the driver how large they are."""
    start = sector * bits.SECTOR_BYTES
    if not 0 < length <= identify.TRANSFER_BYTES_MAX:
        raise RequestError(RequestStatus.IO_ERROR)
    if length % info.block_size or start % info.block_size:
        raise RequestError(RequestStatus.IO_ERROR)
    if start + length > info.total_bytes:
        raise RequestError(RequestStatus.IO_ERROR)
    job.segments = [segment for segment in segments if len(segment)]
    job.length = length
    job.first, job.blocks = start // info.block_size, length // info.block_size


def _name_ranges(job: Job, raw: bytes, info: BackendInfo) -> None:
    count, rest = divmod(len(raw), _RANGE.size)
    if rest or not 0 < count <= identify.RANGES_MAX:
        raise RequestError(RequestStatus.UNSUPPORTED if rest == 0 else RequestStatus.IO_ERROR)
    if job.type == RequestType.DISCARD and not info.supports_discard:
        raise RequestError(RequestStatus.UNSUPPORTED)
    per_block = info.block_size // bits.SECTOR_BYTES
    for sector, sectors, flags in _RANGE.iter_unpack(raw):
        # To discard, no flag is defined; zeroes may be unmapped, which is not asked of us.
        if flags & ~_UNMAP or (flags and job.type == RequestType.DISCARD):
            raise RequestError(RequestStatus.UNSUPPORTED)
        if sector % per_block or sectors % per_block or sectors > identify.RANGE_SECTORS_MAX:
            raise RequestError(RequestStatus.IO_ERROR)
        first, blocks = sector // per_block, sectors // per_block
        if first + blocks > info.block_count:
            raise RequestError(RequestStatus.IO_ERROR)
        job.ranges.append((first, blocks))
