"""The order of a session's ops: what may start now, what waits, what a finished job sets free.

Ops start in arrival order. An op waits while a job it names as a dependency is pending, while it
must not pass an earlier op that waits itself (`_Waiting.blocks` is the table), or while it needs
the lane, the one worker that flushes, and the lane is taken. Immediate ops are done once started;
asynchronous ones stay pending until `finish`. A dependency that is not pending here counts as done:
a peer can only name jobs it sent earlier on the same connection, or ones that were answered before
a reconnect.

Invariants: two ops of which one must not pass the other start in arrival order; nothing that could
start is left waiting after `release`; with nothing waiting, `idle` holds and a caller may start
immediate ops that name no dependency without asking. Waiting is bounded: once `full`, the caller
offers nothing more until something started."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Generic, TypeVar

# A full frame's worth of ops may wait with another one behind it; the bytes are what a flush of a
# slow disk lets pile up. Beyond either the connection is not read until something has started.
WAITING_OPS_MAX = 8192
WAITING_BYTES_MAX = 64 << 20
# Copies handed out at a time. The copier itself runs fewer; the rest queue in order behind them.
COPIES_MAX = 64

T = TypeVar("T")


class Order(enum.IntEnum):
    """How an op takes part in the order."""

    FREE = 0  # passes and is passed by anything
    LOOK = 1  # sees a range of blocks
    CHANGE = 2  # changes a range of blocks
    BARRIER = (
        3  # takes everything changed so far, and nothing changed later: flush, begin of a repair
    )
    SURVEY = 4  # sees stamps and marks of the whole region
    FOLLOW = 5  # must come after barriers, holds nothing up: extent copies, end of a repair


# What may go on though a barrier waits; all else waits with it.
_PASS_BARRIERS = frozenset((Order.FREE, Order.LOOK))


@dataclass(slots=True)
class Claim(Generic[T]):
    """One op as the order sees it. `first` to `end` (exclusive) are blocks; `held_bytes` what
    keeping it costs."""

    job: int
    order: Order
    item: T
    first: int = 0
    end: int = 0
    dependencies: Collection[int] = ()
    held_bytes: int = 0
    asynchronous: bool = False
    needs_lane: bool = False
    # Whether another one right after this may share its work (flushes may).
    may_join: bool = False
    # Jobs of later claims that share this one's work: nothing changed between them.
    joined: list[int] = field(default_factory=list)


class WorkQueue(Generic[T]):
    """A session's pending ops. Pure: the caller runs what is handed out, in the order handed
    out."""

    def __init__(self) -> None:
        self.lane_free = True
        self._waiting: list[Claim[T]] = []
        self._summary = _Waiting()
        self._pending: set[int] = set()
        self._copies: set[int] = set()
        self._held_bytes = 0

    @property
    def idle(self) -> bool:
        """Nothing waits: an immediate op without dependencies may start unasked."""
        return not self._waiting

    @property
    def waiting(self) -> int:
        """How many ops wait."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """No more may be offered for now."""
        return len(self._waiting) >= WAITING_OPS_MAX or self._held_bytes >= WAITING_BYTES_MAX

    def is_pending(self, job: int) -> bool:
        """Whether the job waits, or has started and not finished."""
        return job in self._pending

    def offer(self, claim: Claim[T]) -> bool:
        """True: start it now (asynchronous: it is pending until `finish`). False: it waits."""
        if self._summary.blocks(claim) or not self._may_start(claim):
            self._waiting.append(claim)
            self._summary.add(claim)
            self._pending.add(claim.job)
            self._held_bytes += claim.held_bytes
            return False
        self._started(claim)
        return True

    def took_lane(self, job: int) -> None:
        """As `offer` of an op that needs the lane, while it is free and nothing waits."""
        self._pending.add(job)
        self.lane_free = False

    def put_off(self, job: int) -> None:
        """Another job does its work: it is pending until `finish`."""
        self._pending.add(job)

    def finish(self, job: int) -> None:
        """An asynchronous job has ended, well or badly. Call `release` next."""
        self._pending.discard(job)
        self._copies.discard(job)

    def release(self) -> list[Claim[T]]:
        """Takes out everything that may start now, in arrival order."""
        if not self._waiting:
            return []
        left: list[Claim[T]] = []
        ready: list[Claim[T]] = []
        before = _Waiting()
        leader: Claim[T] | None = None  # a flush just let go that a following one may share
        seen = passing = 0
        for claim in self._waiting:
            # Where a member is behind by many writes and flushes, all but the first are not
            # looked at.
            if before.barriers and passing == self._summary.passing:
                break
            seen += 1
            passing += claim.order in _PASS_BARRIERS
            blocked = before.blocks(claim)
            if leader is not None and claim.may_join and not blocked and self._satisfied(claim):
                leader.joined.append(claim.job)
                self._taken_out(claim)
                continue
            if blocked or not self._may_start(claim):
                left.append(claim)
                before.add(claim)
                if claim.order is Order.BARRIER:
                    leader = None
                continue
            ready.append(claim)
            self._taken_out(claim)
            self._started(claim)
            if claim.order in _PASS_BARRIERS:
                passing -= 1
            if claim.may_join:
                leader = claim
            elif claim.order in (Order.CHANGE, Order.BARRIER):
                leader = None
        self._waiting[:seen] = left
        return ready

    def _taken_out(self, claim: Claim[T]) -> None:
        self._summary.remove(claim)
        self._held_bytes -= claim.held_bytes

    def drop_all(self) -> None:
        """The session has ended: nothing that waits will start."""
        self._waiting.clear()
        self._summary = _Waiting()
        self._pending.clear()
        self._copies.clear()
        self._held_bytes = 0

    def _satisfied(self, claim: Claim[T]) -> bool:
        return not claim.dependencies or self._pending.isdisjoint(claim.dependencies)

    def _may_start(self, claim: Claim[T]) -> bool:
        if claim.needs_lane and not self.lane_free:
            return False
        if claim.order is Order.FOLLOW and claim.asynchronous and len(self._copies) >= COPIES_MAX:
            return False
        return self._satisfied(claim)

    def _started(self, claim: Claim[T]) -> None:
        if not claim.asynchronous:
            self._pending.discard(claim.job)
            return
        self._pending.add(claim.job)
        if claim.needs_lane:
            self.lane_free = False
        else:
            self._copies.add(claim.job)


class _Waiting:
    """What waits, summarised so that one more op is checked without a walk over all of it."""

    __slots__ = ("barriers", "changes", "follows", "free", "looks", "surveys")

    def __init__(self) -> None:
        self.looks = _Ranges()
        self.changes = _Ranges()
        self.barriers = 0
        self.surveys = 0
        self.follows = 0
        self.free = 0

    @property
    def passing(self) -> int:
        """How many may go on though a barrier waits."""
        return self.free + self.looks.count

    def add(self, claim: Claim[T]) -> None:
        if claim.order is Order.LOOK:
            self.looks.add(claim.first, claim.end)
        elif claim.order is Order.CHANGE:
            self.changes.add(claim.first, claim.end)
        else:
            self._count(claim.order, 1)

    def remove(self, claim: Claim[T]) -> None:
        """Undoes an `add`."""
        if claim.order is Order.LOOK:
            self.looks.remove(claim.first, claim.end)
        elif claim.order is Order.CHANGE:
            self.changes.remove(claim.first, claim.end)
        else:
            self._count(claim.order, -1)

    def _count(self, order: Order, by: int) -> None:
        if order is Order.BARRIER:
            self.barriers += by
        elif order is Order.SURVEY:
            self.surveys += by
        elif order is Order.FOLLOW:
            self.follows += by
        else:
            self.free += by

    def blocks(self, claim: Claim[T]) -> bool:
        """Whether `claim` must not pass one of those that wait."""
        order = claim.order
        if order is Order.LOOK:
            return self.changes.overlap(claim.first, claim.end)
        if order is Order.CHANGE:
            return (
                bool(self.barriers or self.surveys)
                or self.changes.overlap(claim.first, claim.end)
                or self.looks.overlap(claim.first, claim.end)
            )
        if order is Order.BARRIER:
            return bool(self.barriers or self.surveys or self.changes.count)
        if order is Order.SURVEY:
            return bool(self.barriers or self.changes.count)
        if order is Order.FOLLOW:
            return bool(self.barriers or self.follows)
        return False


class _Ranges:
    """Block ranges, found by overlap through cells of 256 blocks (1 MiB of 4 KiB blocks)."""

    __slots__ = ("_cells", "_wide", "count")

    _SHIFT = 8
    _CELLS_MAX = 64

    def __init__(self) -> None:
        self.count = 0
        self._cells: dict[int, list[tuple[int, int]]] = {}
        self._wide: list[tuple[int, int]] = []

    def add(self, first: int, end: int) -> None:
        """Adds blocks `first` to `end`, exclusive; an empty range overlaps nothing."""
        self.count += 1
        if first >= end:
            return
        low, high = first >> self._SHIFT, (end - 1) >> self._SHIFT
        if high - low >= self._CELLS_MAX:
            self._wide.append((first, end))
            return
        for cell in range(low, high + 1):
            self._cells.setdefault(cell, []).append((first, end))

    def remove(self, first: int, end: int) -> None:
        """Takes out a range that was added."""
        self.count -= 1
        if first >= end:
            return
        low, high = first >> self._SHIFT, (end - 1) >> self._SHIFT
        if high - low >= self._CELLS_MAX:
            self._wide.remove((first, end))
            return
        for cell in range(low, high + 1):
            there = self._cells[cell]
            there.remove((first, end))
            if not there:
                del self._cells[cell]

    def overlap(self, first: int, end: int) -> bool:
        """Whether a range that was added shares a block with this one."""
        if not self.count or first >= end:
            return False
        if any(first < other_end and other < end for other, other_end in self._wide):
            return True
        low, high = first >> self._SHIFT, (end - 1) >> self._SHIFT
        if high - low >= len(self._cells):
            cells: Collection[int] = [cell for cell in self._cells if low <= cell <= high]
        else:
            cells = [cell for cell in range(low, high + 1) if cell in self._cells]
        return any(
            first < other_end and other < end
            for cell in cells
            for other, other_end in self._cells[cell]
        )
