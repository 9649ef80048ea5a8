"""Guest requests: admission, and the frames that carry them.

Writes and discards are encoded once, sent to every usable member as the same bytes, and
acknowledged at once (the volume is a disk with a volatile write cache). A few small ones that come
one by one are held for a moment and leave as one frame, before anything that came after them: a
frame costs each member, and us for its answer, about the same whatever is in it (docs/adr/0050).
Requests above the admission limits wait in order, and never fail for that. A batch is unordered in
itself; its writes go first, then its flush, then its reads, so that a flush covers at least what it
has to.

A WRITE_UNWRITTEN goes the way of a write, and every member decides block by block from what it
holds. They decide alike because they hold alike: an active member has the same blocks at the same
place in the order of frames; one that is sent frames again comes to the same end, since a block
that was written stays so until it is discarded. Only a member under live repair does not know yet
which of its blocks were written: while there is one, WRITE_UNWRITTEN completes BUSY and nothing is
sent (docs/adr/0013).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from operator import itemgetter

import numpy as np

from stairlib.model.context import ContextArray
from stairlib.wire.frame import OPS_MAX, PAYLOAD_BYTES_MAX, Bytes, OpKind
from vmmd.block.backend import READS, TELLS_OWNED, BlockOp, BlockStatus, Completion, Request
from vmmd.block.request_run import Run, Whole
from vmmd.upstairs.core import limits
from vmmd.upstairs.core.events import CompleteGuest, Effect, SendHeldAfter
from vmmd.upstairs.core.reads import Read, ReadBook
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.upstairs_states import UpstairsState

_READING = READS | TELLS_OWNED


class _WriteFrame:
    """Writes and discards being gathered into one frame."""

    __slots__ = ("data", "held_since", "ops", "payload_bytes", "unwritten")

    def __init__(self) -> None:
        self.ops: list[tuple[int, int, int]] = []
        self.data: list[Bytes] = []
        self.payload_bytes = 0
        # There is a WRITE_UNWRITTEN among them.
        self.unwritten = False
        # When the first of them was held; before anything is, at no time.
        self.held_since = 0.0


class GuestOps:
    """Takes guest batches; keeps what has to wait."""

    def __init__(self, region: RegionSet, reads: ReadBook) -> None:
        self._region = region
        self._reads = reads
        geometry = region.config.geometry
        self._read_only = region.config.read_only
        self._block_size = geometry.block_size
        self._block_count = geometry.block_count
        # A question for holes is a read of the blocks: members tell of none without their data.
        self._told_blocks_max = max(1, limits.READ_FRAME_BYTES_MAX // geometry.block_size)
        self._waiting: deque[tuple[object, Request]] = deque()
        self._frame = _WriteFrame()
        # A SendHeld is on its way.
        self._told = False
        region.send_held = self.send_held
        self._new_reads: list[Read] = []
        self._new_owned_reads: list[Read] = []
        self._new_runs: list[tuple[object, Run]] = []
        self._flush_waiters: list[tuple[object, object]] = []
        # What may be started now: mutations go to every member, a read to the least busy one.
        self._room_jobs = 0
        self._room_bytes = 0
        self._read_jobs = 0
        self._read_bytes = 0

    @property
    def waiting(self) -> int:
        """Requests that wait for admission."""
        return len(self._waiting)

    def submit(self, submissions: Sequence[tuple[object, Sequence[Request]]]) -> None:
        """Takes a batch: starts what there is room for, in order, and keeps the rest."""
        done: list[CompleteGuest] = []
        self._measure_room()
        for key, requests in submissions:
            if type(requests) is Run and self._take_run(key, requests, done):
                continue
            completions: list[Completion] = []
            for request in requests:
                if self._waiting or not self._fits(request):
                    self._wait(key, request, completions)
                else:
                    self._start(key, request, completions)
            if completions:
                done.append(CompleteGuest(key, completions))
        if self._may_hold():
            self._hold()
        else:
            self._send()
        self._region.effects.extend(done)

    # ---- writes that are held

    @property
    def holding(self) -> bool:
        """Whether writes were acknowledged that are still to be sent."""
        return bool(self._frame.ops)

    def on_time(self) -> None:
        """The time is over that was told when writes were held. What is held now may have come
        since: what was held then was sent before a flush."""
        left = self.left_to_hold(self._region.now)
        self._told = left > 0
        if left > 0:
            self._region.effects.append(SendHeldAfter(left))
        else:
            self.send_held()

    def left_to_hold(self, now: float) -> float:
        """Seconds until what is held is to be sent; 0 when that is now, or nothing is held."""
        if not self._frame.ops:
            return 0.0
        left = self._frame.held_since + limits.HELD_SECONDS - now
        # A loop's clock may tell whole milliseconds: less than one is no time to wait for.
        return left if left >= limits.HELD_SECONDS_LEAST else 0.0

    def send_held(self) -> None:
        """Sends what is held, as one frame. When nobody is left who has all that was acknowledged,
        it is as lost as what was under way to them, and the next flush says so."""
        if not self._frame.ops:
            return
        if any(member.complete for member in self._region.members):
            self._send_writes()
        else:
            self._frame = _WriteFrame()
            self._region.flushes.lost_writes = True

    def _may_hold(self) -> bool:
        """Whether there is nothing to send but a few small writes that nobody waits for."""
        frame = self._frame
        return not (
            self._flush_waiters
            or self._new_reads
            or self._new_owned_reads
            or self._new_runs
            or self._waiting
            or len(frame.ops) >= limits.HELD_OPS_MAX
            or frame.payload_bytes >= limits.HELD_BYTES_MAX
            # Not while a member is being filled, and that may begin meanwhile.
            or frame.unwritten
        )

    def _hold(self) -> None:
        frame, region = self._frame, self._region
        if not frame.ops:
            return
        # The guest may reuse its memory once it is answered.
        frame.data = [data if isinstance(data, bytes) else bytes(data) for data in frame.data]
        region.flushes.acknowledged(region.now)
        frame.held_since = frame.held_since or region.now
        if not self._told:
            self._told = True
            region.effects.append(SendHeldAfter(limits.HELD_SECONDS))

    def hold_run(self, key: object, run: Run, now: float) -> tuple[Effect, ...] | None:
        """Takes writes that may be held with what is held already, where that is all there is to
        do; None: nothing was done. The set must be active, and nothing may wait."""
        region, frame = self._region, self._frame
        size = frame.payload_bytes + run.data_bytes
        count = len(frame.ops) + run.requests
        if count >= limits.HELD_OPS_MAX or size >= limits.HELD_BYTES_MAX or self._read_only:
            return None
        if region.usable_count < limits.WRITES_NEEDED or frame.unwritten:
            return None
        if not self._has_room(count, size):
            return None
        assert run.payload is not None
        frame.ops += run.ops()
        frame.data.append(run.payload)
        frame.payload_bytes = size
        region.now = now
        region.flushes.acknowledged(now)
        frame.held_since = frame.held_since or now
        done = CompleteGuest(key, Whole(run))
        if self._told:
            return (done,)
        self._told = True
        return (SendHeldAfter(limits.HELD_SECONDS), done)

    def flush_alone(self, key: object, token: object, now: float) -> bool:
        """Takes a flush that came alone, in a set that is active and where nothing waits; False:
        nothing was done."""
        region, frame = self._region, self._frame
        if region.usable_count < limits.WRITES_NEEDED or self._read_only:
            return False
        # One that is away may be given up for what is held for it: that is for a full step.
        if len(region.links) != len(region.receivers):
            return False
        if not self._has_room(len(frame.ops) + 1, frame.payload_bytes):
            return False
        region.now = now
        self.send_held()
        self.flush([(key, token)])
        return True

    def _has_room(self, jobs: int, size: int) -> bool:
        """Whether so much may be sent to every member."""
        log = self._region.log
        if log.jobs + jobs > limits.REPLAY_JOBS_MAX:
            return False
        if log.payload_bytes + size > limits.REPLAY_BYTES_MAX:
            return False
        for member in self._region.receivers:
            if member.jobs + jobs > limits.ADMITTED_JOBS_MAX:
                return False
            if member.bytes + size > limits.ADMITTED_BYTES_MAX:
                return False
        return True

    def pump(self) -> None:
        """Starts waiting requests as far as there is room."""
        if not self._waiting:
            return
        self._measure_room()
        done: list[CompleteGuest] = []
        while self._waiting and self._fits(self._waiting[0][1]):
            key, request = self._waiting.popleft()
            completions: list[Completion] = []
            self._start(key, request, completions)
            if completions:
                done.append(CompleteGuest(key, completions))
        self._send()
        self._region.effects.extend(done)

    def abort(self) -> None:
        """Ends what waits; the upstairs is stopping."""
        self._frame = _WriteFrame()
        waiting, self._waiting = self._waiting, deque()
        self._region.complete(
            [(key, request.token) for key, request in waiting], BlockStatus.ABORTED
        )

    def _wait(self, key: object, request: Request, completions: list[Completion]) -> None:
        if len(self._waiting) >= limits.GUEST_WAITING_MAX:
            completions.append(Completion(request.token, BlockStatus.FAILED))
        else:
            self._waiting.append((key, request))

    def _measure_room(self) -> None:
        region = self._region
        jobs = limits.REPLAY_JOBS_MAX - region.log.jobs
        size = limits.REPLAY_BYTES_MAX - region.log.payload_bytes
        for member in region.receivers:
            jobs = min(jobs, limits.ADMITTED_JOBS_MAX - member.jobs)
            size = min(size, limits.ADMITTED_BYTES_MAX - member.bytes)
        self._room_jobs = jobs - len(self._frame.ops)
        self._room_bytes = size - self._frame.payload_bytes
        least = min(region.active, key=_load, default=None)
        self._read_jobs = limits.ADMITTED_JOBS_MAX - self._reads.parked_jobs()
        self._read_bytes = limits.ADMITTED_BYTES_MAX
        if least is not None:
            self._read_jobs -= least.jobs
            self._read_bytes -= least.bytes

    def _fits(self, request: Request) -> bool:
        if request.op in _READING:
            return self._read_jobs > 0 and self._read_bytes > 0
        return self._room_jobs > 0 and self._room_bytes > 0

    def _take_run(self, key: object, run: Run, done: list[CompleteGuest]) -> bool:
        """Starts all of a run as one, where nothing speaks against any of it."""
        region, frame, size = self._region, self._frame, run.data_bytes
        if self._waiting or region.state is not UpstairsState.ACTIVE:
            return False
        if run.end > self._block_count or run.block_size != self._block_size:
            return False
        if run.reads:
            if run.requests > self._read_jobs or size > self._read_bytes:
                return False
            if size > limits.READ_FRAME_BYTES_MAX:
                return False
            self._read_jobs -= run.requests
            self._read_bytes -= size
            self._new_runs.append((key, run))
            return True
        if self._read_only or region.usable_count < limits.WRITES_NEEDED:
            return False
        if run.requests > self._room_jobs or size > self._room_bytes:
            return False
        if (
            len(frame.ops) + run.requests > OPS_MAX
            or frame.payload_bytes + size > PAYLOAD_BYTES_MAX
        ):
            return False
        assert run.payload is not None
        self._room_jobs -= run.requests
        self._room_bytes -= size
        frame.ops += run.ops()
        frame.data.append(run.payload)
        frame.payload_bytes += size
        done.append(CompleteGuest(key, Whole(run)))
        return True

    def _start(self, key: object, request: Request, completions: list[Completion]) -> None:
        op, token, offset, length, data = request
        region = self._region
        if region.state is not UpstairsState.ACTIVE:
            completions.append(Completion(token, BlockStatus.ABORTED))
        elif self._read_only and op not in _READING:
            # There is never anything to flush.
            status = BlockStatus.OK if op is BlockOp.FLUSH else BlockStatus.READ_ONLY
            completions.append(Completion(token, status))
        elif op is BlockOp.FLUSH:
            if region.usable_count < limits.WRITES_NEEDED:
                completions.append(Completion(token, BlockStatus.FAILED))
            else:
                self._flush_waiters.append((key, token))
        elif offset < 0 or length < 0 or offset + length > self._block_count:
            completions.append(Completion(token, BlockStatus.OUT_OF_RANGE))
        elif not length:
            completions.append(_nothing(op, token))
        elif op is BlockOp.READ:
            self._read_jobs -= 1
            self._read_bytes -= length * self._block_size
            self._new_reads.extend(self._reads.split(key, token, offset, length))
        elif op in TELLS_OWNED:
            if op is BlockOp.ALLOCATION:
                length = min(length, self._told_blocks_max)
            self._read_jobs -= 1
            self._read_bytes -= length * self._block_size
            self._new_owned_reads.extend(self._reads.split(key, token, offset, length, owned=True))
        elif region.usable_count < limits.WRITES_NEEDED:
            completions.append(Completion(token, BlockStatus.FAILED))
        elif op is BlockOp.WRITE:
            status = self._write(OpKind.WRITE, offset, length, data)
            completions.append(Completion(token, status))
        elif op is BlockOp.WRITE_UNWRITTEN:
            status = BlockStatus.BUSY
            if not region.filling:
                status = self._write(OpKind.WRITE_UNWRITTEN, offset, length, data)
            completions.append(Completion(token, status))
        else:
            self._room_jobs -= 1
            self._add_op(OpKind.DISCARD, offset, length)
            completions.append(Completion(token, BlockStatus.OK))

    def _write(self, kind: OpKind, offset: int, length: int, data: Bytes | None) -> BlockStatus:
        size = length * self._block_size
        if data is None or len(data) != size:
            return BlockStatus.FAILED
        self._room_jobs -= 1
        self._room_bytes -= size
        if size <= PAYLOAD_BYTES_MAX:
            self._add_write(kind, offset, length, data, size)
            return BlockStatus.OK
        view = memoryview(data)
        piece = PAYLOAD_BYTES_MAX // self._block_size
        for at in range(0, length, piece):
            count = min(piece, length - at)
            start = at * self._block_size
            end = start + count * self._block_size
            self._add_write(kind, offset + at, count, view[start:end], end - start)
        return BlockStatus.OK

    def _add_write(self, kind: OpKind, offset: int, length: int, data: Bytes, size: int) -> None:
        if self._frame.payload_bytes + size > PAYLOAD_BYTES_MAX:
            self._send_writes()
        self._add_op(kind, offset, length)
        frame = self._frame
        frame.data.append(data)
        frame.payload_bytes += size

    def _add_op(self, kind: OpKind, offset: int, length: int) -> None:
        if len(self._frame.ops) >= OPS_MAX:
            self._send_writes()
        self._frame.ops.append((kind, offset, length))
        if kind == OpKind.WRITE_UNWRITTEN:
            self._frame.unwritten = True

    def _send(self) -> None:
        self.send_held()
        if self._flush_waiters:
            waiters, self._flush_waiters = self._flush_waiters, []
            self.flush(waiters)
        if self._new_reads:
            reads, self._new_reads = self._new_reads, []
            self._reads.send(reads)
        if self._new_runs:
            runs, self._new_runs = self._new_runs, []
            for key, run in runs:
                self._reads.send_run(key, run)
        if self._new_owned_reads:
            reads, self._new_owned_reads = self._new_owned_reads, []
            self._reads.send(reads)

    def _send_writes(self) -> None:
        frame, self._frame = self._frame, _WriteFrame()
        region = self._region
        # The one copy: the guest may reuse its memory once it is answered, the frame is kept for
        # replay.
        only = frame.data[0] if len(frame.data) == 1 else None
        payload: Bytes = only if isinstance(only, bytes) else b"".join(frame.data)
        contexts: ContextArray | None = None
        if payload:
            spans = map(_span, filter(_carries_data, frame.ops))
            contexts, payload = region.codec.seal(payload, spans, region.generation)
        region.mutate(frame.ops, contexts, payload)

    def flush(self, waiters: list[tuple[object, object]]) -> None:
        """A guest's flush: joins the last one when that covers everything already."""
        region = self._region
        last = region.flushes.last
        if region.flushes.lost_writes:
            region.flushes.lost_writes = False
            region.complete(waiters, BlockStatus.FAILED)
        elif region.flushes.dirty or (last is not None and last.judged and not last.succeeded):
            region.send_flush(waiters)
        elif last is None or last.judged:
            region.complete(waiters, BlockStatus.OK)
        else:
            last.waiters.extend(waiters)


def _nothing(op: BlockOp, token: object) -> Completion:
    """The end of a request for no blocks."""
    if op is BlockOp.READ:
        return Completion(token, BlockStatus.OK, b"")
    if op in TELLS_OWNED:
        return Completion(token, BlockStatus.OK, b"", np.zeros(0, dtype=np.bool_))
    return Completion(token, BlockStatus.OK)


# (first block, blocks) of an op.
_span = itemgetter(1, 2)


def _carries_data(op: tuple[int, int, int]) -> bool:
    return op[0] != OpKind.DISCARD


def _load(member: Member) -> tuple[int, int]:
    return member.bytes, member.jobs
