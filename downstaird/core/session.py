"""One session's ops run against the region: frames in; reply frames and work for other threads and
tasks out.

Ops start in the order `work_queue` allows. Reads, writes and the like are done on the spot and
answered together, in one reply to a request frame where it is not too large; flushes, repair begins
and extent copies leave as effects and are answered when their outcome comes back. A frame is worked
off in turns: each turn ends with a reply of bounded size, so that a caller whose peer does not
drain simply does not ask for the next one.

Invariants: a write whose data does not match its contexts reaches the region in no part; an op that
fails is answered and changes nothing about the others; a flush takes exactly the changes before it
in the order; nothing of a frame is kept after it was worked off, but for copies of the ops that
wait."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from downstaird.core.at_once import at_once
from downstaird.core.engine import Engine
from downstaird.core.extent_answers import ExtentAnswers
from downstaird.core.repair_plan import parse_source
from downstaird.core.replies import Answer, Reply, status_of
from downstaird.core.session_counters import Counters
from downstaird.core.session_effects import (
    PUT_OFF,
    CopyExtent,
    Effect,
    LimitRepair,
    PutOff,
    RunWork,
    Turn,
)
from downstaird.core.session_flush import begun_flush, lone_flush
from downstaird.core.session_ops import (
    ASYNCHRONOUS,
    CARRY_DATA,
    CHANGING,
    COPY_CHECK,
    DISCARD,
    EXTENT_COPY,
    EXTENT_DIGEST,
    EXTENT_STATES,
    FLUSH,
    GUEST,
    IMMEDIATE,
    KINDS,
    MUTATING,
    NOOP,
    ORDERS,
    READ,
    REPAIR_BEGIN,
    REPAIR_END,
    REPAIR_LIMIT,
    WRITE,
    check_range,
    damaged,
)
from downstaird.core.session_progress import Progress, Row
from downstaird.core.work_queue import Claim, WorkQueue
from stairlib.model.context import ContextArray, empty_contexts, mismatches
from stairlib.model.errors import DataError, InvalidRequestError, StairwellError
from stairlib.wire.frame import (
    FLUSH_KEEPS_MARKS,
    FLUSH_WITH_NEXT,
    OPS_MAX,
    PAYLOAD_BYTES_MAX,
    Bytes,
    Frame,
    FrameError,
    FrameKind,
    OpStatus,
)

# From so many writes of one block on they are taken in one go: below that, finding out costs more.
_RUN_MIN = 4
# What an op that waits costs beside its data.
_OP_HELD_BYTES = 500
# Flushes whose work the next one does; what is behind that many is done at once.
PUT_OFF_MAX = 64


@dataclass(slots=True)
class _Op:
    """An op that takes the ordered way; its data is copied only when it has to wait."""

    row: Row
    contexts: ContextArray | None
    data: Bytes
    blob: bytes
    intact: bool


class Session:
    """The state of one session. Pure: runs against any Engine, knows neither sockets nor
    threads."""

    def __init__(self, region: Engine, *, read_only: bool, lane_free: bool) -> None:
        self._region = region
        self._at_once = at_once(region)
        self._read_only = read_only
        geometry = region.definition.geometry
        self._block_size = geometry.block_size
        self._blocks = geometry.block_count
        self._extents = geometry.extent_count
        self._answering = ExtentAnswers(region)
        # Why the first mutation that failed did so. From then on no flush of this session succeeds.
        self._lost = ""
        self._blocks_per_extent = geometry.blocks_per_extent
        self._encrypted = region.definition.encrypted
        self._queue: WorkQueue[_Op] = WorkQueue()
        self._queue.lane_free = lane_free
        self._released: deque[Claim[_Op]] = deque()
        self._answers: deque[Answer] = deque()
        self._frame: Progress | None = None
        self._open_flush: RunWork | None = None
        # Jobs of the flushes whose work, and whose answer, is the next one's.
        self._put_off: list[int] = []
        # Extents copied since the last flush that did not keep marks, with their stamps; used once
        # the peer has sent a flush that does.
        self._copied: list[tuple[int, int, int]] = []
        self._keeps_marks = False
        self._last_flush = (0, 0)
        self._ended = False
        self.counters = Counters()

    @property
    def ended(self) -> bool:
        """Nothing is done any more."""
        return self._ended

    @property
    def ready(self) -> bool:
        """The frame before has been worked off: another may be taken."""
        return self._frame is None

    @property
    def idle(self) -> bool:
        """There is nothing for `run` to do."""
        return self._frame is None and not (self._answers or self._released)

    @property
    def wants_lane(self) -> bool:
        """Something waits that the lane might let go on."""
        return not self._queue.idle

    @property
    def reserves_lane(self) -> bool:
        """Something was let go that will take the lane in the next turn: it must stay free."""
        return any(claim.needs_lane for claim in self._released)

    def at_once(self, frame: Frame) -> tuple[bytes, bool] | None:
        """Does a request of the most usual kind as a whole, while nothing waits that might have to
        come first: its reply, and whether that is patient, as a turn's. None: nothing was done, it
        is to be taken. As `take`."""
        if self._at_once is None or self._ended or not self._queue.idle:
            return None
        if self._answers or self._released:
            return None
        served = self._at_once.serve(frame, read_only=self._read_only)
        if served is None:
            return None
        reply, read, written = served
        self.counters.frames += 1
        self.counters.guest_frames += 1
        self.counters.read_blocks += read
        self.counters.written_blocks += written
        return reply, written > 0

    def flush_at_once(self, frame: Frame) -> RunWork | PutOff | None:
        """Begins a flush that came alone, while nothing waits that might have to come first: its
        work, whose outcome is told as any other's, or that it is the next one's. None: nothing was
        done, it is to be taken."""
        queue = self._queue
        row = lone_flush(frame)
        if row is None or self._ended or self._read_only or not queue.idle:
            return None
        if self._answers or self._released or self._lost or self._copied:
            return None
        if queue.is_pending(job := row[0]):
            return None
        waits = row[3] & FLUSH_WITH_NEXT and len(self._put_off) < PUT_OFF_MAX
        if waits:
            self._region.put_off_flush(row[9], row[8])
            queue.put_off(job)
            self._put_off.append(job)
        elif not queue.lane_free:
            return None
        else:
            try:
                work = self._region.begin_flush(row[9], row[8])
            except StairwellError:
                # Told to whom it concerns by whoever meets it again.
                return None
            queue.took_lane(job)
        self._keeps_marks = self._keeps_marks or bool(row[3] & FLUSH_KEEPS_MARKS)
        self._last_flush = max(self._last_flush, (row[8], row[9]))
        self.counters.frames += 1
        self.counters.guest_frames += 1
        self.counters.flushes += 1
        return PUT_OFF if waits else RunWork(work, FLUSH, [*self._take_put_off(), job])

    def _take_put_off(self) -> list[int]:
        """The jobs whose answer is that of the flush that begins."""
        jobs, self._put_off = self._put_off, []
        return jobs

    def done_at_once(self, effect: RunWork) -> bool:
        """As `work_done` of a flush that went well, where nothing but that is to be told or might
        go on: it is to be answered. False: nothing was done."""
        if self._answers or self._released or self._frame is not None or not self._queue.idle:
            return False
        if self._ended or effect.kind != FLUSH or effect.refused:
            return False
        for job in effect.jobs:
            self._queue.finish(job)
        return True

    def take(self, frame: Frame) -> None:
        """A request to be worked off by `run`; FrameError when it contradicts itself. Only while
        `ready`."""
        assert self._frame is None
        if frame.kind is not FrameKind.REQUEST:
            raise FrameError(f"a {frame.kind.name} frame has no place in a session")
        rows: list[Row] = frame.ops.tolist()
        blocks = reads = 0
        for row in rows:
            if row[1] in CARRY_DATA:
                blocks += row[6]
            elif row[1] == READ:
                reads += row[6]
        if blocks != len(frame.contexts) or blocks * self._block_size != len(frame.payload):
            raise FrameError(
                f"writes of {blocks} blocks of {self._block_size} bytes came with "
                f"{len(frame.contexts)} contexts and {len(frame.payload)} bytes"
            )
        bad = (
            mismatches(frame.payload, frame.contexts, self._block_size, encrypted=self._encrypted)
            if blocks
            else []
        )
        self.counters.frames += 1
        self.counters.read_blocks += reads
        self.counters.written_blocks += blocks
        if any(row[1] in GUEST for row in rows):
            self.counters.guest_frames += 1
        self._frame = Progress(frame, rows, bad, self._block_size)

    def run(self) -> Turn:
        """Carries on until nothing can go on, or a reply is full."""
        reply = Reply()
        effects: list[Effect] = []
        sequence = self._frame.frame.sequence if self._frame is not None else 0
        self._open_flush = None
        more = False
        if not self._ended:
            more = self._run_pending(reply, effects) or self._run_frame(reply, effects)
        self._open_flush = None
        buffers = reply.frame(sequence) if len(reply) else None
        return Turn(buffers, effects, more, reply.patient)

    def _run_pending(self, reply: Reply, effects: list[Effect]) -> bool:
        """Outcomes of asynchronous work, then what they let go on. True when the reply is full."""
        while self._answers:
            if len(reply) >= OPS_MAX:
                return True
            answer = self._answers.popleft()
            if answer.status is OpStatus.OK:
                reply.done(answer.job, answer.kind, number=answer.number)
            else:
                self.counters.failed += 1
                reply.failed(answer.job, answer.kind, answer.status, answer.text)
        while self._released:
            claim = self._released[0]
            if self._is_full(reply, claim.item.row):
                return True
            self._released.popleft()
            self._execute_claim(claim, reply, effects)
        return False

    def _run_frame(self, reply: Reply, effects: list[Effect]) -> bool:
        progress = self._frame
        if progress is None:
            return False
        queue, rows = self._queue, progress.rows
        while progress.at < len(rows):
            row = rows[progress.at]
            if self._is_full(reply, row):
                return True
            kind = row[1]
            if kind == WRITE and row[6] == 1 and queue.idle and self._write_run(progress, reply):
                continue
            if queue.idle and not row[4] and kind in IMMEDIATE:
                blob = progress.frame.blob(progress.at) if row[7] else b""
                contexts, data, intact = progress.carried(row)
                self._execute(row, contexts, data, blob, intact, reply, effects)
            elif queue.full:
                return False
            else:
                self._offer(progress, row, reply, effects)
            progress.at += 1
        self._frame = None
        return False

    def _write_run(self, progress: Progress, reply: Reply) -> bool:
        """Does the next writes in one go, where they are some of one block each and the region
        takes them so. False: nothing was done; each has to go its own way."""
        if self._read_only or len(progress.rows) - progress.at < _RUN_MIN:
            return False
        rows = progress.single_writes(OPS_MAX - len(reply))
        if len(rows) < _RUN_MIN:
            return False
        before = progress.block
        contexts, data = progress.take(len(rows))
        if not self._region.write_scattered([row[5] for row in rows], contexts, data):
            progress.block = before
            return False
        self._open_flush = None
        reply.all_done(rows)
        progress.at += len(rows)
        return True

    def _is_full(self, reply: Reply, row: Row) -> bool:
        """Whether the reply must go out before this op is done."""
        return not reply.has_room(row[6] * self._block_size if row[1] == READ else 0)

    def _offer(self, progress: Progress, row: Row, reply: Reply, effects: list[Effect]) -> None:
        """The ordered way: the op starts now or waits with a copy of its data."""
        kind = row[1]
        contexts, data, intact = progress.carried(row)
        first_dependency = progress.dependency
        progress.dependency += row[4]
        blob = progress.frame.blob(progress.at) if row[7] else b""
        if kind not in KINDS:
            reply.failed(row[0], kind, OpStatus.BAD_REQUEST, f"unknown op kind {kind}")
            return
        if self._queue.is_pending(row[0]):
            text = f"job {row[0]} is pending already: job ids are used once"
            reply.failed(row[0], kind, OpStatus.BAD_REQUEST, text)
            return
        op = _Op(row, contexts, data, blob, intact)
        claim = self._claim(op)
        if row[4]:
            named = progress.frame.dependencies[first_dependency : progress.dependency]
            claim.dependencies = frozenset(named.tolist())
            if not claim.dependencies.isdisjoint(self._put_off):
                text = "a flush that was to be done with the next one cannot be waited for"
                reply.failed(row[0], kind, OpStatus.BAD_REQUEST, text)
                return
        if kind == FLUSH and self._open_flush is not None and self._may_join(claim):
            self._open_flush.jobs.append(row[0])
            self._last_flush = max(self._last_flush, (row[8], row[9]))
            return
        if self._queue.offer(claim):
            self._execute_claim(claim, reply, effects)
            return
        if contexts is not None:
            op.contexts, op.data = contexts.copy(), bytes(data)

    def _may_join(self, claim: Claim[_Op]) -> bool:
        """A flush right behind one that began in this turn shares its work."""
        return self._queue.idle and not claim.dependencies and self._may_share(claim.item)

    def _may_share(self, op: _Op) -> bool:
        """A flush that clears marks does so itself: one that began before it cannot."""
        clears = bool(self._copied) and not op.row[3] & FLUSH_KEEPS_MARKS
        return not op.blob and not clears

    def _claim(self, op: _Op) -> Claim[_Op]:
        row = op.row
        kind, offset, length = row[1], row[5], row[6]
        if kind == EXTENT_DIGEST:
            offset, length = offset * self._blocks_per_extent, length * self._blocks_per_extent
        return Claim(
            row[0],
            ORDERS[kind],
            op,
            offset,
            offset + length,
            held_bytes=_OP_HELD_BYTES + len(op.data) + len(op.blob),
            asynchronous=kind in ASYNCHRONOUS and not self._read_only,
            needs_lane=kind in (FLUSH, REPAIR_BEGIN) and not self._read_only,
            may_join=kind == FLUSH and self._may_share(op),
        )

    def _execute_claim(self, claim: Claim[_Op], reply: Reply, effects: list[Effect]) -> None:
        op = claim.item
        if op.row[1] == FLUSH:
            self._flush(op, claim.joined, reply, effects)
            return
        failed = self._execute(op.row, op.contexts, op.data, op.blob, op.intact, reply, effects)
        if failed and claim.asynchronous:
            self._never_began(claim)

    def _never_began(self, claim: Claim[_Op]) -> None:
        """An asynchronous op that was refused when it started."""
        self._queue.finish(claim.job)
        for job in claim.joined:
            self._queue.finish(job)
        if claim.needs_lane:
            self._queue.lane_free = True
        self._released.extend(self._queue.release())

    def _execute(
        self,
        row: Row,
        contexts: ContextArray | None,
        data: Bytes,
        blob: bytes,
        intact: bool,
        reply: Reply,
        effects: list[Effect],
    ) -> bool:
        """Does the op and answers it, or sends it off. True when it failed."""
        job, kind, offset, length = row[0], row[1], row[5], row[6]
        try:
            if kind == READ:
                check_range(offset, length, self._blocks)
                if length * self._block_size > PAYLOAD_BYTES_MAX:
                    raise InvalidRequestError(
                        f"a read of {length} blocks is above {PAYLOAD_BYTES_MAX} bytes"
                    )
                found, buffers = (
                    self._region.read(offset, length) if length else (empty_contexts(0), ())
                )
                reply.read(job, kind, offset, found, buffers)
            elif self._read_only and kind in CHANGING:
                reply.failed(job, kind, OpStatus.READ_ONLY, "the region is served read-only")
                return True
            elif kind in CARRY_DATA:
                assert contexts is not None
                if not intact:
                    raise damaged(offset, length)
                self._write(kind, offset, length, contexts, data)
                reply.done(job, kind, offset, length)
            elif kind == DISCARD:
                check_range(offset, length, self._blocks)
                self._open_flush = None
                if length:
                    self._region.discard(offset, length)
                reply.done(job, kind, offset, length)
            else:
                self._execute_rare(row, blob, reply, effects)
        except StairwellError as error:
            self.counters.failed += 1
            if kind in MUTATING:
                self._lost = self._lost or error.message
            reply.failed(job, kind, status_of(error), error.message)
            return True
        return False

    def _write(
        self, kind: int, offset: int, length: int, contexts: ContextArray, data: Bytes
    ) -> None:
        check_range(offset, length, self._blocks)
        self._open_flush = None
        if not length:
            return
        if kind == WRITE:
            self._region.write(offset, contexts, data)
            return
        self._answering.check_whole(offset, length)
        self._region.write_unwritten(offset, contexts, data)

    def _execute_rare(self, row: Row, blob: bytes, reply: Reply, effects: list[Effect]) -> None:
        job, kind, offset, length = row[0], row[1], row[5], row[6]
        if kind == NOOP:
            reply.done(job, kind)
        elif kind == EXTENT_STATES:
            first, count = (offset, length) if length else (0, self._extents)
            reply.array(job, kind, first, count, self._answering.states(first, count))
        elif kind == EXTENT_DIGEST:
            reply.array(job, kind, offset, length, self._answering.digests(offset, length))
        elif kind == REPAIR_LIMIT:
            effects.append(LimitRepair(row[9], length))
            reply.done(job, kind, self.counters.moved_bytes, length, row[9])
        elif kind == REPAIR_BEGIN:
            marks = self._answering.marks(blob)
            self._open_flush = None
            effects.append(RunWork(self._region.repair_begin(marks), kind, [job]))
        elif kind in (EXTENT_COPY, COPY_CHECK):
            self._answering.check(offset, 1)
            source = parse_source(blob)
            effects.append(CopyExtent(job, offset, source, rehearsal=kind == COPY_CHECK))
        elif kind == REPAIR_END:
            self._region.repair_end()
            reply.done(job, kind)
        else:
            raise InvalidRequestError(f"unknown op kind {kind}")

    def _flush(self, op: _Op, joined: list[int], reply: Reply, effects: list[Effect]) -> None:
        row = op.row
        # Of a snapshot that is refused, the first one is told.
        jobs = [row[0], *joined, *self._take_put_off()]
        if self._read_only:
            if op.blob:
                jobs.remove(row[0])
                text = "the region is served read-only: no snapshot can be taken"
                reply.failed(row[0], FLUSH, OpStatus.READ_ONLY, text)
            for job in jobs:
                reply.done(job, FLUSH, number=row[9])
            return
        try:
            if self._lost:
                # What failed is missing here; a stamp would make the extent look like the others'.
                raise DataError(f"an earlier write of this session failed: {self._lost}")
            if row[3] & FLUSH_KEEPS_MARKS:
                self._keeps_marks = True
            else:
                self._take_copied()
            work, refused = begun_flush(self._region, row, op.blob)
        except StairwellError as error:
            for job in jobs:
                self._queue.finish(job)
                reply.failed(job, FLUSH, status_of(error), error.message)
            self.counters.failed += len(jobs)
            self._queue.lane_free = True
            self._released.extend(self._queue.release())
            return
        self._last_flush = max(self._last_flush, (row[8], row[9]))
        self.counters.flushes += 1
        self._open_flush = RunWork(work, FLUSH, jobs, refused)
        effects.append(self._open_flush)

    def lane_changed(self, *, free: bool) -> None:
        """The lane was taken for, or freed from, something that is not this session's."""
        if self._queue.idle and not self._released:
            self._queue.lane_free = free
            return
        self._queue.lane_free = free and not self.reserves_lane
        self._released.extend(self._queue.release())

    def work_done(self, effect: RunWork, error: StairwellError | None, *, lane_free: bool) -> None:
        """The outcome of a flush or repair begin; call `run` next."""
        for job in effect.jobs:
            self._queue.finish(job)
            if error is None and effect.refused and job == effect.jobs[0]:
                status, text = OpStatus.SNAPSHOT_FAILED, f"no snapshot: {effect.refused}"
                self._answers.append(Answer(job, effect.kind, 0, status, text))
                continue
            self._answer(job, effect.kind, error)
        self.lane_changed(free=lane_free)

    def copy_done(self, effect: CopyExtent, stamp: tuple[int, int], copied: int) -> None:
        """The extent is as the source's was; `stamp` is the (generation, flush) the source had
        before.

        A stamp later than every flush that began here is not taken over: a write that the source
        had flushed by then is still on its way to this region, which will stamp the extent for it
        in turn."""
        error: StairwellError | None = None
        if self._ended:
            return
        if effect.rehearsal:
            self._finish_copy(effect, None, copied)
            return
        generation, number = stamp if stamp <= self._last_flush else (0, 0)
        if self._keeps_marks:
            self._copied.append((effect.extent, generation, number))
        else:
            try:
                self._region.repair_extent_copied(effect.extent, generation, number)
            except StairwellError as problem:
                error = problem
        self.counters.copied_bytes += copied
        self._finish_copy(effect, error, copied)

    def _take_copied(self) -> None:
        """The flush that begins now covers all that was copied, here as on the other members."""
        copied, self._copied = self._copied, []
        for extent, generation, number in copied:
            self._region.repair_extent_copied(extent, generation, number)

    def copy_failed(self, effect: CopyExtent, error: StairwellError) -> None:
        """The copy was given up."""
        if not self._ended:
            self._finish_copy(effect, error, 0)

    def _finish_copy(self, effect: CopyExtent, error: StairwellError | None, copied: int) -> None:
        self._queue.finish(effect.job)
        kind = COPY_CHECK if effect.rehearsal else EXTENT_COPY
        self._answer(effect.job, kind, error, copied)
        self._released.extend(self._queue.release())

    def _answer(self, job: int, kind: int, error: StairwellError | None, number: int = 0) -> None:
        if error is None:
            self._answers.append(Answer(job, kind, number))
        else:
            self._answers.append(Answer(job, kind, 0, status_of(error), error.message))

    def end(self) -> None:
        """The session is over: what waits is dropped, what comes back later is ignored."""
        self._ended = True
        if self._put_off:
            self._region.put_off_no_more()
        self._queue.drop_all()
        self._released.clear()
        self._answers.clear()
        self._frame = None
