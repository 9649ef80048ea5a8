"""Reads: one member each, checked against their contexts, another member on any doubt.

The reads of a guest batch travel in few frames, each to the member with the least outstanding. A
frame whose reply is whole and right, the usual case, is completed as one. Anything else is looked
at read by read, and what failed goes to a member that has not been tried for it; with none left the
guest gets FAILED. Data that does not match its context is never given to the guest; the blocks that
were bad are written again once they were read well (`read_repair`).

Reads that ask for ownership travel in frames of their own, so that the plain ones pay nothing for
them. A read whose member's connection broke has not been tried there: it may be sent to it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from stairlib.model.context import ContextArray, written
from stairlib.wire.frame import PAYLOAD_BYTES_MAX, Frame, FrameKind, OpKind, encode, pack_op
from vmmd.block.backend import BlockStatus, Completion
from vmmd.block.request_run import Run, Whole
from vmmd.upstairs.core import limits
from vmmd.upstairs.core.events import CompleteGuest, SendFrame
from vmmd.upstairs.core.read_repair import NO_BLOCKS, Blocks, ReadRepair
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.slot import Member


class Gather:
    """A guest read too large for one frame, put together from its pieces. `owned`, one entry a
    block, is there when ownership was asked for."""

    __slots__ = ("buffer", "failed", "left", "owned")

    def __init__(
        self, length_bytes: int, pieces: int, owned: npt.NDArray[np.bool_] | None = None
    ) -> None:
        self.buffer = bytearray(length_bytes)
        self.left = pieces
        self.failed = False
        self.owned = owned


class Read(NamedTuple):
    """One op of a read frame; `gather_at` is the byte offset of the piece in `gather`. With `owned`
    the completion tells which blocks were ever written; all reads of a frame do or do not."""

    key: object
    token: object
    offset: int
    length: int
    gather: Gather | None = None
    gather_at: int = 0
    owned: bool = False


class RunReads(Sequence[Read]):
    """The reads of a run, made when one is asked for."""

    __slots__ = ("key", "run")

    def __init__(self, key: object, run: Run) -> None:
        self.key = key
        self.run = run

    def __len__(self) -> int:
        return self.run.requests

    @overload
    def __getitem__(self, index: int) -> Read: ...

    @overload
    def __getitem__(self, index: slice) -> list[Read]: ...

    def __getitem__(self, index: int | slice) -> Read | list[Read]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        _handle, offset, length, _before = self.run.span(index)
        return Read(self.key, self.run.token(index), offset, length)


class Trail(NamedTuple):
    """What reads have behind them: the members that `failed`, by their bits, the connections that
    broke (`losses`), and the blocks that were `bad` somewhere."""

    failed: int = 0
    losses: int = 0
    bad: Blocks = NO_BLOCKS


_FRESH = Trail()


class ReadFrame:
    """The reads of one frame, sent to one member. `answered` marks ops of a reply that came in
    parts."""

    __slots__ = ("answered", "blocks", "first_job", "left", "member", "reads", "trail")

    def __init__(self, first_job: int, reads: Sequence[Read], member: Member, trail: Trail) -> None:
        """`reads` of a run know how many blocks they are."""
        self.first_job = first_job
        self.reads = reads
        self.member = member
        self.trail = trail
        if type(reads) is RunReads:
            self.blocks = reads.run.blocks
        else:
            self.blocks = sum(read.length for read in reads)
        self.left = len(reads)
        self.answered: set[int] = set()


class ReadBook:
    """All reads in flight. Reads wait in `_parked` while only members away for a short time could
    serve them."""

    def __init__(self, region: RegionSet) -> None:
        self._region = region
        self._block_size = region.config.geometry.block_size
        self._frames: dict[int, ReadFrame] = {}
        self._parked: list[tuple[list[Read], Trail]] = []
        self._repair = ReadRepair(region)
        region.reads = self

    @property
    def idle(self) -> bool:
        """No read is in flight or parked."""
        return not self._frames and not self._parked

    def parked_jobs(self) -> int:
        """Reads that wait for a member to come back."""
        return sum(len(reads) for reads, _trail in self._parked)

    # ---- sending

    def split(
        self, key: object, token: object, offset: int, length: int, *, owned: bool = False
    ) -> list[Read]:
        """A guest read as reads that fit a frame each."""
        size = self._block_size
        piece = PAYLOAD_BYTES_MAX // size
        if length <= piece:
            if not owned:
                return [Read(key, token, offset, length)]
            return [Read(key, token, offset, length, None, 0, True)]
        starts = range(0, length, piece)
        mask = np.zeros(length, dtype=np.bool_) if owned else None
        gather = Gather(length * size, len(starts), mask)
        return [
            Read(key, token, offset + at, min(piece, length - at), gather, at * size, owned)
            for at in starts
        ]

    def send(self, reads: list[Read], trail: Trail = _FRESH) -> None:
        """Sends the reads, all with or all without ownership, to the least busy members, in frames
        of a bounded size."""
        limit = max(1, limits.READ_FRAME_BYTES_MAX // self._block_size)
        start, blocks = 0, 0
        for index, read in enumerate(reads):
            if index > start and blocks + read.length > limit:
                self._send_frame(reads[start:index], trail)
                start, blocks = index, 0
            blocks += read.length
        self._send_frame(reads[start:] if start else reads, trail)

    def send_run(self, key: object, run: Run) -> None:
        """Sends all reads of a run, which fit a frame."""
        member = self.least_busy()
        if member is None:
            self._no_member(list(RunReads(key, run)), _FRESH)
        else:
            request = self.request(key, run, member)
            self._region.effects.append(request)

    def request(self, key: object, run: Run, member: Member) -> SendFrame:
        """Asks the member for all of a run: in flight from now on. To be sent behind the effects
        that there are."""
        self._region.catch_up(member)
        first = self._region.take_jobs(run.requests)
        self._frames[first] = ReadFrame(first, RunReads(key, run), member, _FRESH)
        member.jobs += run.requests
        member.bytes += run.data_bytes
        return SendFrame((member.link,), (run.request(first),))

    def answered(self, frame: ReadFrame) -> None:
        """All of the frame's reads have ended well."""
        del self._frames[frame.first_job]
        self._release(frame, frame.left)

    def least_busy(self, failed: int = 0) -> Member | None:
        """Of the active members but those of `failed`."""
        member: Member | None = None
        for candidate in self._region.active:
            if candidate.bit & failed:
                continue
            if member is None or (candidate.bytes, candidate.jobs) < (member.bytes, member.jobs):
                member = candidate
        return member

    def _send_frame(self, reads: list[Read], trail: Trail) -> None:
        region = self._region
        member = self.least_busy(trail.failed)
        if member is None:
            self._no_member(reads, trail)
            return
        region.catch_up(member)
        first = region.take_jobs(len(reads))
        frame = ReadFrame(first, reads, member, trail)
        self._frames[first] = frame
        member.jobs += len(reads)
        member.bytes += frame.blocks * self._block_size
        ops = [
            pack_op(first + index, OpKind.READ, offset=read.offset, length=read.length)
            for index, read in enumerate(reads)
        ]
        buffers = encode(FrameKind.REQUEST, ops, sequence=first)
        region.effects.append(SendFrame((member.link,), buffers))

    def _no_member(self, reads: list[Read], trail: Trail) -> None:
        if any(m.held and not m.bit & trail.failed for m in self._region.members):
            self._parked.append((reads, trail))
            return
        self._fail(reads, BlockStatus.FAILED)

    def _fail(self, reads: Sequence[Read], status: BlockStatus) -> None:
        waiters = []
        for read in reads:
            if read.gather is not None:
                read.gather.left -= 1
                if read.gather.failed:
                    continue
                read.gather.failed = True
            waiters.append((read.key, read.token))
        self._region.complete(waiters, status)

    def pump(self) -> None:
        """Membership has changed: parked reads may find a member now, or none ever."""
        if self._parked:
            parked, self._parked = self._parked, []
            for reads, trail in parked:
                self.send(reads, trail)

    # ---- ending

    def lose(self, member: Member) -> None:
        """Sends what the member has not answered to others, or to itself once it is back: nothing
        it said speaks against it. A read under which connection after connection breaks is not sent
        for ever."""
        for frame in [f for f in self._frames.values() if f.member is member]:
            del self._frames[frame.first_job]
            self._release(frame, frame.left)
            failed, losses, bad = frame.trail
            if losses >= limits.READ_LOSSES_MAX:
                failed |= member.bit
            self.send(self._unanswered(frame), Trail(failed, losses + 1, bad))

    def abort(self) -> None:
        """Ends all reads; the upstairs is stopping."""
        frames, self._frames = self._frames, {}
        parked, self._parked = self._parked, []
        for frame in frames.values():
            self._release(frame, frame.left)
            self._fail(self._unanswered(frame), BlockStatus.ABORTED)
        for reads, _trail in parked:
            self._fail(reads, BlockStatus.ABORTED)

    def _unanswered(self, frame: ReadFrame) -> list[Read]:
        if not frame.answered:
            return list(frame.reads)
        return [r for index, r in enumerate(frame.reads) if index not in frame.answered]

    def _release(self, frame: ReadFrame, count: int) -> None:
        member = frame.member
        member.jobs = max(0, member.jobs - count)
        frame.left -= count
        if not frame.left:
            member.bytes = max(0, member.bytes - frame.blocks * self._block_size)

    # ---- replies

    def whole(self, member: Member, first_job: int, count: int) -> ReadFrame | None:
        """The frame that a reply starting at `first_job` with `count` ops answers exactly; else
        None."""
        frame = self._frames.get(first_job)
        if frame is None or frame.member is not member or frame.answered:
            return None
        return frame if len(frame.reads) == count else None

    def finish(self, frame: ReadFrame, reply: Frame) -> bool:
        """Takes a whole reply whose statuses are all OK. False when its sizes are not what was
        asked."""
        size = self._block_size
        payload, contexts, reads = reply.payload, reply.contexts, frame.reads
        if reply.context_count != frame.blocks or len(payload) != frame.blocks * size:
            return False
        run = reads.run if type(reads) is RunReads else None
        spans = map(_span, reads) if run is None else run.spans()
        opened = self._region.codec.open(payload, contexts, spans)
        if opened is None:
            at = 0
            for index, read in enumerate(frame.reads):
                if not frame.member.active:
                    # It was given up over its bad blocks: what it has not answered went to others.
                    return True
                end = at + read.length
                self._one(frame, index, payload[at * size : end * size], contexts[at:end])
                at = end
            return True
        if frame.trail.bad:
            self._heal(frame, payload, contexts)
        payload = opened
        self.answered(frame)
        if type(reads) is RunReads:
            whole = Whole(reads.run, payload)
            self._region.effects.append(CompleteGuest(reads.key, whole))
        elif reads[0].owned:
            self._finish_owned(reads, payload, written(contexts))
        else:
            self._finish_plain(reads, payload)
        return True

    def _finish_plain(self, reads: Sequence[Read], payload: memoryview) -> None:
        """Completes the reads of a whole reply."""
        size = self._block_size
        run: list[Completion] = []
        last_key: object = None
        at = 0
        for read in reads:
            end = at + read.length * size
            if read.gather is not None:
                self._piece(read, payload[at:end])
            else:
                if not run or read.key is not last_key:
                    run = []
                    last_key = read.key
                    self._region.effects.append(CompleteGuest(last_key, run))
                run.append(Completion(read.token, BlockStatus.OK, payload[at:end]))
            at = end

    def _finish_owned(
        self, reads: Sequence[Read], payload: memoryview, owned: npt.NDArray[np.bool_]
    ) -> None:
        """Completes the reads of a whole reply; `owned` covers all its blocks."""
        size = self._block_size
        at = 0
        for read in reads:
            end = at + read.length
            self._done(read, payload[at * size : end * size], owned[at:end])
            at = end

    def find(self, member: Member, job: int) -> ReadFrame | None:
        """The frame that holds `job`; for replies that came in parts."""
        for frame in self._frames.values():
            if frame.member is member and 0 <= job - frame.first_job < len(frame.reads):
                return frame
        return None

    def answer(
        self, frame: ReadFrame, job: int, data: memoryview | None, contexts: ContextArray | None
    ) -> bool:
        """Takes one op of a reply; no data means that it failed. False when the op was answered
        before, or its size is not what was asked."""
        index = job - frame.first_job
        if index in frame.answered:
            return False
        if data is None or contexts is None:
            # Nothing was given that could be looked at: all of it may be bad.
            read = frame.reads[index]
            self._retry(frame, index, frozenset(range(read.offset, read.offset + read.length)))
            return True
        if len(data) != frame.reads[index].length * self._block_size:
            return False
        self._one(frame, index, data, contexts)
        return True

    def _one(self, frame: ReadFrame, index: int, data: memoryview, contexts: ContextArray) -> None:
        read = frame.reads[index]
        codec = self._region.codec
        opened = codec.open(data, contexts, (_span(read),))
        if opened is None:
            self._region.read_mismatches += 1
            member = frame.member
            member.last_error = f"a read at block {read.offset} {codec.complaint}"
            bad = self._repair.bad_blocks(member, read.offset, data, contexts)
            self._retry(frame, index, bad)
            if self._repair.tired_of(member):
                self._region.fault(member, f"{member.bad_blocks} of its blocks were bad")
            return
        if frame.trail.bad:
            self._repair.heal(frame.trail.bad, frame.first_job + index, read.offset, data, contexts)
        self._answered(frame, index)
        self._done(read, opened, written(contexts) if read.owned else None)

    def _done(self, read: Read, data: memoryview, owned: npt.NDArray[np.bool_] | None) -> None:
        if read.gather is not None:
            self._piece(read, data, owned)
            return
        done = Completion(read.token, BlockStatus.OK, data, owned)
        self._region.effects.append(CompleteGuest(read.key, [done]))

    def _heal(self, frame: ReadFrame, payload: memoryview, contexts: ContextArray) -> None:
        size = self._block_size
        at = 0
        for index, read in enumerate(frame.reads):
            end = at + read.length
            data = payload[at * size : end * size]
            job = frame.first_job + index
            self._repair.heal(frame.trail.bad, job, read.offset, data, contexts[at:end])
            at = end

    def _retry(self, frame: ReadFrame, index: int, bad: Blocks) -> None:
        self._answered(frame, index)
        failed, losses, before = frame.trail
        trail = Trail(failed | frame.member.bit, losses, before | bad)
        self.send([frame.reads[index]], trail)

    def _answered(self, frame: ReadFrame, index: int) -> None:
        frame.answered.add(index)
        self._release(frame, 1)
        if not frame.left:
            del self._frames[frame.first_job]

    def _piece(
        self, read: Read, data: memoryview, owned: npt.NDArray[np.bool_] | None = None
    ) -> None:
        gather = read.gather
        assert gather is not None
        gather.left -= 1
        if gather.failed:
            return
        gather.buffer[read.gather_at : read.gather_at + len(data)] = data
        if gather.owned is not None and owned is not None:
            first = read.gather_at // self._block_size
            gather.owned[first : first + read.length] = owned
        if not gather.left:
            done = Completion(read.token, BlockStatus.OK, gather.buffer, gather.owned)
            self._region.effects.append(CompleteGuest(read.key, [done]))


# (first block, blocks) of a read.
_span = attrgetter("offset", "length")
