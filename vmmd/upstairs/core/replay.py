"""The replay log: every mutation frame since the last flush that all members in service
acknowledged.

A frame is kept as it was encoded; a member that comes back after a short absence is sent the frames
after its own last acknowledged flush again, in order. One record per frame, never one per
operation.

Invariants: records are in job order and their jobs are contiguous within a record. `pending` has a
member's bit while a reply is owed by it (or held back for it); a member's `jobs` and `bytes` are
the sums over its pending records.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import repeat

import numpy as np
import numpy.typing as npt

from stairlib.wire.frame import HEADER_BYTES, OP, Bytes, OpArray
from vmmd.upstairs.core.limits import MEMBER_COUNT_MAX
from vmmd.upstairs.core.slot import Member


class Mutation:
    """One frame of writes and discards, or of one flush. `waiters` are the (key, token) of guest
    flushes."""

    __slots__ = (
        "acked",
        "buffers",
        "count",
        "dirties",
        "done",
        "first_job",
        "flush_number",
        "is_flush",
        "judged",
        "last_job",
        "payload_bytes",
        "pending",
        "refused",
        "stamps",
        "succeeded",
        "waiters",
    )

    def __init__(
        self,
        first_job: int,
        count: int,
        buffers: Sequence[Bytes],
        payload_bytes: int,
        *,
        is_flush: bool = False,
        flush_number: int = 0,
        dirties: bool = True,
    ) -> None:
        """`dirties`: among its ops is one that makes an extent dirty in any case."""
        self.first_job = first_job
        self.count = count
        self.last_job = first_job + count - 1
        self.buffers = buffers
        self.payload_bytes = payload_bytes
        self.is_flush = is_flush
        self.dirties = dirties
        self.flush_number = flush_number
        self.pending = 0
        self.acked = 0
        self.done = [0] * MEMBER_COUNT_MAX
        self.waiters: list[tuple[object, object]] = []
        # Why members, by index, did not take the snapshot of this flush.
        self.refused: dict[int, str] = {}
        self.judged = False
        self.succeeded = False
        # A flush: whoever acknowledges it has a stamp with its number.
        self.stamps = False

    def ops(self) -> OpArray:
        """The table of the frame's ops."""
        return np.frombuffer(self.buffers[0], dtype=OP, count=self.count, offset=HEADER_BYTES)


class ReplayLog:
    """The records, oldest first."""

    def __init__(self) -> None:
        self._records: list[Mutation] = []
        self._first_jobs: list[int] = []
        self.jobs = 0
        self.payload_bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def append(self, record: Mutation, receivers: Iterable[Member]) -> None:
        """Takes a new record that is sent to, or held for, the receivers."""
        assert not self._records or record.first_job > self._records[-1].last_job
        pending = 0
        for member in receivers:
            pending |= member.bit
            member.jobs += record.count
            member.bytes += record.payload_bytes
        record.pending = pending
        self._records.append(record)
        self._first_jobs.append(record.first_job)
        self.jobs += record.count
        self.payload_bytes += record.payload_bytes

    def find(self, job: int) -> Mutation | None:
        """The record that holds `job`; None when it was dropped, or never was one."""
        at = bisect_right(self._first_jobs, job) - 1
        if at < 0 or self._records[at].last_job < job:
            return None
        return self._records[at]

    def settle_all(self, member: Member, first_job: int, last_job: int) -> list[Mutation] | None:
        """All of these jobs were answered: the records that hold them. None, and nothing done,
        where one of them is no job of a record, or was not to be answered."""
        start = bisect_right(self._first_jobs, first_job) - 1
        end = bisect_right(self._first_jobs, last_job)
        records = self._records[max(0, start) : end]
        counts = [
            min(last_job, record.last_job) - max(first_job, record.first_job) + 1
            for record in records
        ]
        if sum(counts) != last_job - first_job + 1:
            return None
        if not all(map(self.owes, repeat(member), records, counts)):
            return None
        for record, count in zip(records, counts, strict=True):
            self.settle(member, record, count)
        return records

    def owes(self, member: Member, record: Mutation, count: int) -> bool:
        """Whether so many more jobs of the record are to be answered."""
        return (
            bool(record.pending & member.bit) and record.done[member.index] + count <= record.count
        )

    def settle(self, member: Member, record: Mutation, count: int) -> bool:
        """`count` more jobs of the record were answered. False when these are more than were
        asked."""
        if not record.pending & member.bit:
            return False
        done = record.done[member.index] + count
        if done > record.count:
            return False
        record.done[member.index] = done
        member.jobs -= count
        if done == record.count:
            record.pending &= ~member.bit
            member.bytes -= record.payload_bytes
        return True

    def owed_extents(self, member: Member, blocks_per_extent: int) -> set[int]:
        """Extents in which the member has not answered for a write or discard."""
        extents: set[int] = set()
        for record in self._records:
            if record.pending & member.bit and not record.is_flush:
                table = record.ops()
                firsts = table["offset"].astype(np.int64)
                lasts = firsts + table["length"].astype(np.int64) - 1
                for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
                    extents.update(range(first // blocks_per_extent, last // blocks_per_extent + 1))
        return extents

    def table(self) -> OpArray:
        """The ops of all writes and discards, in the order of their jobs; a copy."""
        size = OP.itemsize
        tables = [
            memoryview(record.buffers[0])[HEADER_BYTES : HEADER_BYTES + record.count * size]
            for record in self._records
            if not record.is_flush
        ]
        return np.frombuffer(b"".join(tables), dtype=OP)

    def changed_after(self, job: int, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Which of `count` blocks from `first` on a write or discard with a higher job touches."""
        edges = np.zeros(count + 1, dtype=np.int64)
        for record in reversed(self._records):
            if record.last_job <= job:
                break
            if not record.is_flush:
                table = record.ops()
                table = table[table["job"] > job]
                starts = table["offset"].astype(np.int64) - first
                ends = starts + table["length"].astype(np.int64)
                np.add.at(edges, starts.clip(0, count), 1)
                np.add.at(edges, ends.clip(0, count), -1)
        return np.cumsum(edges[:count]) > 0

    def skip(self, member: Member) -> list[Mutation]:
        """The member owes nothing any more. Returns the flushes that it owed, for judgement."""
        flushes = []
        for record in self._records:
            if record.pending & member.bit:
                record.pending &= ~member.bit
                if record.is_flush:
                    flushes.append(record)
        member.jobs = 0
        member.bytes = 0
        return flushes

    def replay(self, member: Member) -> list[Mutation]:
        """What the member has to be sent again, in order; all of it is owed from now on."""
        start = bisect_right(self._first_jobs, member.synced_job)
        again = self._records[start:]
        member.jobs = 0
        member.bytes = 0
        for record in self._records[:start]:
            record.pending &= ~member.bit
        for record in again:
            record.pending |= member.bit
            record.done[member.index] = 0
            member.jobs += record.count
            member.bytes += record.payload_bytes
        return again

    def trim(self, floor_job: int) -> None:
        """Drops the records up to and including `floor_job`, which every member in service has
        flushed."""
        end = bisect_right(self._first_jobs, floor_job)
        if not end:
            return
        for record in self._records[:end]:
            self.jobs -= record.count
            self.payload_bytes -= record.payload_bytes
        del self._records[:end]
        del self._first_jobs[:end]

    def vacate(self, bit: int) -> None:
        """A member's place gets a new holder: what the old one acknowledged counts no more for the
        place."""
        for record in self._records:
            record.pending &= ~bit
            if record.acked & bit and not record.judged:
                # The old holder's copy is gone with it: its acknowledgement must not make a flush
                # durable.
                record.acked &= ~bit
            record.done[bit.bit_length() - 1] = 0

    def flushes_up_to(self, number: int) -> list[Mutation]:
        """The flushes with this number or a lower one."""
        return [r for r in self._records if r.is_flush and r.flush_number <= number]

    def changed_since_flush(self) -> bool:
        """Something was sent after the last flush that makes an extent dirty in any case: a write
        of unwritten blocks may find none. False where it is not known any more."""
        for record in reversed(self._records):
            if record.is_flush:
                return False
            if record.dirties:
                return True
        return False

    def pending_flushes(self) -> list[Mutation]:
        """Flushes not judged yet, oldest first."""
        return [record for record in self._records if record.is_flush and not record.judged]
