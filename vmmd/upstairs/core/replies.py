"""Replies: which jobs a frame answers, and what follows.

A frame that answers exactly one frame of ours, all OK, is the usual case and is handled as one.
Anything else, parts, errors, several asynchronous jobs together, is looked at op by op.
"""

from __future__ import annotations

from stairlib.model.errors import StateError
from stairlib.wire.frame import Frame, OpKind, OpStatus
from vmmd.upstairs.core.control_jobs import ARRAY_ENTRY_BYTES
from vmmd.upstairs.core.reads import ReadBook
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.replay import Mutation
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.slot_states import SlotMode


class ReplyRouter:
    """Takes the members' replies to where their jobs are kept."""

    def __init__(self, region: RegionSet, reads: ReadBook) -> None:
        self._region = region
        self._reads = reads

    def take(self, link: int, frame: Frame) -> StateError | None:
        """Takes a REPLY frame; late ones are ignored. An error means that the set was taken
        over."""
        region = self._region
        member = region.member_of(link)
        if member is None or not member.streams:
            return None
        count = frame.op_count
        if not count:
            return None
        first, last, good = frame.answers
        if last - first + 1 == count and good:
            reads = self._reads.whole(member, first, count)
            if reads is not None:
                if not self._reads.finish(reads, frame):
                    self._break(member, "a read reply of the wrong size")
                return None
            record = region.log.find(first)
            if record is not None and record.last_job >= last:
                self._settled(member, record, count)
                return None
        return self._in_parts(member, frame)

    def _settled(self, member: Member, record: Mutation, count: int) -> None:
        if not self._region.log.settle(member, record, count):
            self._break(member, f"more answers to job {record.first_job} than were asked")
        elif record.is_flush:
            self._region.flushes_acked(member, (record,))

    def _in_parts(self, member: Member, frame: Frame) -> StateError | None:
        region = self._region
        size = region.config.geometry.block_size
        ops = frame.ops
        jobs = ops["job"].tolist()
        statuses = ops["status"].tolist()
        kinds = ops["kind"].tolist()
        lengths = ops["length"].tolist()
        # A daemon answers jobs that waited for the same flush together: each has its own part.
        blocks, sizes = _parts(kinds, statuses, lengths, size)
        if sum(sizes) != len(frame.payload) or sum(blocks) != len(frame.contexts):
            self._break(member, f"an answer to job {jobs[0]} and others of the wrong size")
            return None
        at = end = 0
        for index, job in enumerate(jobs):
            if not member.streams:
                return None
            good = statuses[index] == OpStatus.OK
            start, at = at, at + blocks[index]
            begin, end = end, end + sizes[index]
            data = frame.payload[begin:end]
            reads = self._reads.find(member, job)
            if reads is not None:
                if not good:
                    member.last_error = _describe(frame, index)
                    if self._is_damaged(member, statuses[index]):
                        region.fault(member, member.last_error)
                        return None
                if not self._reads.answer(
                    reads, job, data if good else None, frame.contexts[start:at]
                ):
                    self._break(member, f"a wrong answer to the read {job}")
            elif region.control.answer(member, frame, index, job, data):
                continue
            else:
                error = self._mutation_answered(member, frame, index, job, good=good)
                if error is not None:
                    return error
        return None

    def _is_damaged(self, member: Member, status: int) -> bool:
        """An extent of it can neither be read nor written until it is filled; others can do
        that."""
        region = self._region
        others = any(m is not member for m in region.active)
        return status == OpStatus.EXTENT_FAULTED and others and not region.config.read_only

    def _mutation_answered(
        self, member: Member, frame: Frame, index: int, job: int, *, good: bool
    ) -> StateError | None:
        region = self._region
        record = region.log.find(job)
        if record is None:
            if job > region.last_job:
                self._break(member, f"an answer to job {job}, which was never asked")
            return None
        if good:
            self._settled(member, record, 1)
            return None
        status = int(frame.ops["status"][index])
        if status == OpStatus.NOT_ACTIVE:
            return taken_over(member, _describe(frame, index))
        if status == OpStatus.SNAPSHOT_FAILED and record.is_flush:
            record.refused[member.index] = _describe(frame, index)
            self._settled(member, record, 1)
            return None
        region.fault(member, _describe(frame, index))
        return None

    def _break(self, member: Member, reason: str) -> None:
        """The member broke the protocol: the connection is ended; what it missed is sent again
        later."""
        mode = SlotMode.OFFLINE if member.active else SlotMode.FAULTED
        if mode is SlotMode.FAULTED:
            self._region.fault(member, f"protocol: {reason}")
        else:
            self._region.stop(member, mode, f"protocol: {reason}")


def _parts(
    kinds: list[int], statuses: list[int], lengths: list[int], block_size: int
) -> tuple[list[int], list[int]]:
    """The blocks, each with a context, and the bytes of data that each op of a reply has."""
    blocks, sizes = [], []
    for kind, status, length in zip(kinds, statuses, lengths, strict=True):
        good = status == OpStatus.OK
        blocks.append(length if good and kind == OpKind.READ else 0)
        entry = ARRAY_ENTRY_BYTES.get(kind, 0) if good else 0
        sizes.append(blocks[-1] * block_size + entry * length)
    return blocks, sizes


def taken_over(member: Member, text: str) -> StateError:
    """What ends an upstairs whose place a newer one has taken."""
    return StateError(
        f"another upstairs has taken over {member.address}: {text}", reason="NO_LONGER_ACTIVE"
    )


def _describe(frame: Frame, index: int) -> str:
    op = frame.ops[index]
    try:
        status = OpStatus(int(op["status"])).name
        kind = OpKind(int(op["kind"])).name
    except ValueError:
        status, kind = str(op["status"]), str(op["kind"])
    text = frame.text(index) if int(op["blob_bytes"]) else ""
    return f"{kind} ended {status}" + (f": {text}" if text else "")
