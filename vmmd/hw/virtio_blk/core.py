"""The device's decisions: requests in, block requests out, with no backend, ring or clock.

Calls in: `take` (chains of a ring), `complete` (the backend's answers), `forget`. Each returns what
is to be done: block requests to submit and chains to give back. What changes the disk is kept by a
`Journal` until a flush that came after it is done, so that it can be done again when this process
dies; a journal that is full, or too many bytes at the backend, makes requests wait in order.
Invariants: no guest input raises; every chain taken is given back exactly once, unless `forget` let
go of it (what completes later is ignored and never touches memory the guest may have reused).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from vmmd.block.backend import BackendInfo, BlockOp, BlockStatus, Completion, Request
from vmmd.block.pieces import (
    DISCARD_PIECE_BYTES,
    PIECES_IN_FLIGHT,
    TRANSFER_PIECE_BYTES,
    ZEROES,
    split,
)
from vmmd.hw.segments import cut, gather, scatter
from vmmd.hw.virtio.ring import Chain
from vmmd.hw.virtio_blk import identify
from vmmd.hw.virtio_blk.bits import RequestStatus, RequestType
from vmmd.hw.virtio_blk.commands import Job, NoStatusError, parse

# At the backend at one time; one request may pass it.
BYTES_IN_FLIGHT_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """Something that changes `blocks` blocks from `first` on: a WRITE of `data` (of zeroes where
    that is empty), or a DISCARD."""

    op: BlockOp
    first: int
    blocks: int
    data: Sequence[memoryview] = ()


class Journal(Protocol):
    """Keeps changes, in order, until they are durable. Places in it only grow."""

    def hold(self, changes: Sequence[Change]) -> memoryview | bytes | None:
        """Keeps all of them, or none and answers None when there is no room until something is let
        go. Otherwise a contiguous copy of the last one's data, which stays as it is for as long as
        it is used."""
        ...

    def mark(self) -> int:
        """The place behind all that is held."""
        ...

    def let_go(self, mark: int) -> None:
        """What was held before `mark` is durable."""
        ...

    def half_full(self) -> bool:
        """Whether it is time to flush."""
        ...


class NoJournal:
    """Keeps nothing: for a driver that cannot come back to its requests."""

    def hold(self, changes: Sequence[Change]) -> memoryview | bytes | None:
        """A copy of the data."""
        return gather(changes[-1].data) if changes[-1].data else b""

    def mark(self) -> int:
        """Nothing is held."""
        return 0

    def let_go(self, mark: int) -> None:
        """Nothing is held."""

    def half_full(self) -> bool:
        """Never."""
        return False


@dataclass(slots=True)
class Effects:
    """What the caller is to do: submit `requests`, give back (ring, head, bytes written)."""

    requests: list[Request] = field(default_factory=list)
    done: list[tuple[int, int, int]] = field(default_factory=list)


class _OwnFlush:
    """The token of a flush that makes room in the journal."""

    __slots__ = ("mark",)

    def __init__(self, mark: int) -> None:
        self.mark = mark


class VirtioBlkCore:
    """One device; any number of rings. `serial` is cut to 20 ASCII characters."""

    def __init__(self, info: BackendInfo, serial: str, journal: Journal | None = None) -> None:
        self._info = info
        self._identifier = identify.identifier(serial)
        self._journal: Journal = journal or NoJournal()
        self._waiting: deque[Job] = deque()
        # Jobs whose requests are not all at the backend yet: their place in the journal. A flush
        # covers nothing from there on.
        self._unsent: dict[Job, int] = {}
        # How often each ring was let go of.
        self._epochs: dict[int, int] = {}
        self._bytes = 0
        self._own_flush: _OwnFlush | None = None
        self._flush_failed = False

    @property
    def waiting(self) -> int:
        """Requests that wait for room."""
        return len(self._waiting)

    def use_journal(self, journal: Journal) -> None:
        """From here on; only after every ring was let go of."""
        self._journal = journal
        self._own_flush = None
        self._unsent.clear()

    def take(self, ring: int, chains: Sequence[Chain]) -> Effects:
        """Begins the requests of these chains."""
        effects = Effects()
        self._flush_failed = False
        for chain in chains:
            try:
                job = parse(ring, chain, self._info)
            except NoStatusError:
                effects.done.append((ring, chain.head, 0))
                continue
            job.epoch = self._epochs.get(ring, 0)
            if job.status is not RequestStatus.OK:
                self._finish(job, effects)
            elif self._waiting or not self._begin(job, effects):
                self._waiting.append(job)
        self._make_room(effects)
        return effects

    def complete(self, completions: Sequence[Completion]) -> Effects:
        """Takes the backend's answers, and goes on with what waited for room."""
        effects = Effects()
        for completion in completions:
            token = completion.token
            if isinstance(token, _OwnFlush):
                self._made_room(token, completion.status, effects)
                continue
            assert isinstance(token, tuple)
            job, offset = token
            if job.type == RequestType.FLUSH and completion.status is BlockStatus.OK:
                # Also of a request that was let go: what is durable is durable.
                job.journal.let_go(job.mark)
            if job.epoch == self._epochs.get(job.ring, 0):
                self._completed(job, offset, completion, effects)
            else:
                self._completed_unseen(job)
        while self._waiting and self._begin(self._waiting[0], effects):
            self._waiting.popleft()
        self._make_room(effects)
        return effects

    def forget(self, ring: int) -> None:
        """Lets go of a ring's requests; what is at the backend goes on to its end unseen."""
        self._epochs[ring] = self._epochs.get(ring, 0) + 1
        self._waiting = deque(job for job in self._waiting if job.ring != ring)

    # --- beginning ---

    def _begin(self, job: Job, effects: Effects) -> bool:
        """Sends its first requests to the backend; False when it has to wait."""
        if self._bytes and self._bytes + job.length > BYTES_IN_FLIGHT_MAX:
            return False
        if job.type == RequestType.GET_ID:
            scatter(job.segments, self._identifier[: job.length])
            self._finish(job, effects)
            return True
        if job.type == RequestType.FLUSH:
            job.journal = self._journal
            job.mark = self._durable_place()
            job.rest = iter([Request(BlockOp.FLUSH, (job, 0))])
        elif job.type == RequestType.IN:
            job.rest = self._reads(job)
        elif not self._hold(job):
            return False
        self._bytes += job.length
        effects.requests.extend(self._more(job, PIECES_IN_FLIGHT))
        if job.outstanding == 0:
            self._end(job, effects)
        return True

    def _durable_place(self) -> int:
        """What a flush that is sent now makes durable, as a place in the journal."""
        return next(iter(self._unsent.values()), self._journal.mark())

    def _hold(self, job: Job) -> bool:
        """Has the journal keep a change; whether there was room."""
        place = self._journal.mark()
        if job.type == RequestType.OUT:
            held = self._journal.hold([Change(BlockOp.WRITE, job.first, job.blocks, job.segments)])
            if held is None:
                return False
            job.rest = self._writes(job, memoryview(held))
        else:
            op = BlockOp.DISCARD if job.type == RequestType.DISCARD else BlockOp.WRITE
            changes = [Change(op, first, blocks) for first, blocks in job.ranges if blocks]
            if changes and self._journal.hold(changes) is None:
                return False
            job.rest = self._ranges(job, op)
        self._unsent[job] = place
        return True

    def _reads(self, job: Job) -> Iterator[Request]:
        size = self._info.block_size
        for start, length in split(0, job.length, TRANSFER_PIECE_BYTES):
            yield Request(BlockOp.READ, (job, start), job.first + start // size, length // size)

    def _writes(self, job: Job, data: memoryview) -> Iterator[Request]:
        size = self._info.block_size
        for start, length in split(0, job.length, TRANSFER_PIECE_BYTES):
            first = job.first + start // size
            piece = data[start : start + length]
            yield Request(BlockOp.WRITE, (job, start), first, length // size, piece)

    def _ranges(self, job: Job, op: BlockOp) -> Iterator[Request]:
        size = self._info.block_size
        discard = op is BlockOp.DISCARD
        step = (DISCARD_PIECE_BYTES if discard else TRANSFER_PIECE_BYTES) // size
        for start, count in job.ranges:
            for first, blocks in split(start, count, step):
                data = None if discard else ZEROES[: blocks * size]
                yield Request(op, (job, 0), first, blocks, data)

    def _more(self, job: Job, count: int) -> list[Request]:
        """Up to `count` further requests of a job."""
        if job.rest is None:
            return []
        pieces = list(islice(job.rest, count))
        if len(pieces) < count:
            job.rest = None
            self._unsent.pop(job, None)
        job.outstanding += len(pieces)
        return pieces

    # --- ending ---

    def _completed(self, job: Job, offset: int, completion: Completion, effects: Effects) -> None:
        job.outstanding -= 1
        status = completion.status
        if status is not BlockStatus.OK:
            unsupported = status is BlockStatus.UNSUPPORTED
            job.status = RequestStatus.UNSUPPORTED if unsupported else RequestStatus.IO_ERROR
            job.rest = None
        elif job.type == RequestType.IN:
            self._take_data(job, offset, completion.data)
        effects.requests.extend(self._more(job, 1))
        if job.outstanding == 0:
            self._end(job, effects)

    def _completed_unseen(self, job: Job) -> None:
        """Of a request that was let go of: the rest of it is not done, and nobody is told."""
        job.rest = None
        job.outstanding -= 1
        self._unsent.pop(job, None)
        if job.outstanding == 0:
            self._bytes -= job.length

    @staticmethod
    def _take_data(job: Job, offset: int, data: bytes | bytearray | memoryview | None) -> None:
        if data is None:
            job.status = RequestStatus.IO_ERROR
            job.rest = None
        elif len(data) == job.length:
            scatter(job.segments, data)
        else:
            scatter(cut(job.segments, offset, len(data)), data)

    def _end(self, job: Job, effects: Effects) -> None:
        """Of a job that was begun."""
        self._bytes -= job.length
        self._unsent.pop(job, None)
        self._finish(job, effects)

    @staticmethod
    def _finish(job: Job, effects: Effects) -> None:
        job.status_view[0] = job.status
        effects.done.append((job.ring, job.head, job.written))

    # --- room in the journal ---

    def _make_room(self, effects: Effects) -> None:
        """A flush of the device's own when the journal fills up; one at a time."""
        if self._own_flush is not None or self._flush_failed or not self._journal.half_full():
            return
        self._own_flush = _OwnFlush(self._durable_place())
        effects.requests.append(Request(BlockOp.FLUSH, self._own_flush))

    def _made_room(self, token: _OwnFlush, status: BlockStatus, effects: Effects) -> None:
        if token is not self._own_flush:
            return  # of a journal that is no longer used
        self._own_flush = None
        if status is BlockStatus.OK:
            self._journal.let_go(token.mark)
            return
        # There will be no room: the disk cannot be flushed any more, and the guest hears of it. The
        # next try is made with its next request.
        self._flush_failed = True
        waiting, self._waiting = self._waiting, deque()
        for job in waiting:
            if job.type in (RequestType.IN, RequestType.FLUSH, RequestType.GET_ID):
                self._waiting.append(job)
            else:
                job.status = RequestStatus.IO_ERROR
                self._finish(job, effects)
