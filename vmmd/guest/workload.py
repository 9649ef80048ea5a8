"""Workloads of the built-in guest: FILL, MIXED, READ_BACK, as async generators of reports.

`queue_depth` workers each keep one command in flight. A report comes about twice a second, and one
with `finished` at the end. When the consumer stops early, no new command is begun; those in flight
are given a moment to end, and the disk's model stays right whether they do or not.
"""

from __future__ import annotations

import abc
import asyncio
import enum
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, field

import numpy as np

from stairlib.model.errors import FieldViolation, InvalidRequestError, UnavailableError
from vmmd.guest.disk import GuestDisk, IoResult

REPORT_SECONDS = 0.5
# How long commands in flight may take to end when the consumer stops.
_STOP_SECONDS = 5.0
_FILL_BYTES = 512 << 20
_LARGE_IO_BYTES = 1 << 20
_MIXED_IO_BYTES = 64 << 10
_DEPTHS = {"FILL": 16, "MIXED": 8, "READ_BACK": 16}
# Of a hundred MIXED commands. The rest are reads.
_FLUSH_PERCENT = 3
_DISCARD_PERCENT = 1
_WRITE_PERCENT = 40
# Writes and discards that go where something is already, the others anywhere.
_REWRITE_PERCENT = 75
_BUSY_POLL_SECONDS = 0.001
_RECENT_RUNS = 1024


class WorkloadKind(enum.IntEnum):
    """As stairwell.vmmd.v1.WorkloadKind."""

    FILL = 1
    MIXED = 2
    READ_BACK = 3


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """As stairwell.vmmd.v1.Workload; zero means the kind's default."""

    kind: WorkloadKind
    disk: str = ""
    bytes: int = 0
    io_bytes: int = 0
    queue_depth: int = 0
    seconds: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class WorkloadReport:
    """As stairwell.vmmd.v1.WorkloadReport; counts since the workload's start."""

    finished: bool = False
    ios: int = 0
    errors: int = 0
    reads: int = 0
    writes: int = 0
    flushes: int = 0
    bytes_written: int = 0
    bytes_read: int = 0
    mismatches: int = 0
    elapsed_seconds: float = 0.0
    p50_milliseconds: float = 0.0
    p99_milliseconds: float = 0.0
    first_error: str = ""
    interval_ios: int = 0
    max_milliseconds: float = 0.0


@dataclass(slots=True)
class _Tally:
    """Counts of a running workload; latencies are those since the last report."""

    started: float
    ios: int = 0
    errors: int = 0
    reads: int = 0
    writes: int = 0
    flushes: int = 0
    bytes_written: int = 0
    bytes_read: int = 0
    mismatches: int = 0
    first_error: str = ""
    latencies: list[float] = field(default_factory=list)

    def report(self, *, finished: bool) -> WorkloadReport:
        latencies, self.latencies = self.latencies, []
        p50, p99, longest = 0.0, 0.0, 0.0
        if latencies:
            p50, p99, longest = (1000 * float(v) for v in np.percentile(latencies, (50, 99, 100)))
        return WorkloadReport(
            finished=finished,
            ios=self.ios,
            errors=self.errors,
            reads=self.reads,
            writes=self.writes,
            flushes=self.flushes,
            bytes_written=self.bytes_written,
            bytes_read=self.bytes_read,
            mismatches=self.mismatches,
            elapsed_seconds=time.monotonic() - self.started,
            p50_milliseconds=p50,
            p99_milliseconds=p99,
            first_error=self.first_error,
            interval_ios=len(latencies),
            max_milliseconds=longest,
        )


def check_workload(disk: GuestDisk, spec: WorkloadSpec) -> None:
    """InvalidRequestError with every field of `spec` that this disk cannot do."""
    found = []
    io_max = disk.blocks_max * disk.block_size
    if spec.io_bytes and (spec.io_bytes % disk.block_size or spec.io_bytes > io_max):
        text = f"{spec.io_bytes} is not a multiple of {disk.block_size} up to {io_max}"
        found.append(FieldViolation("workload.io_bytes", text))
    if spec.queue_depth > disk.driver.slots:
        text = f"{spec.queue_depth} is above the {disk.driver.slots} commands of this disk"
        found.append(FieldViolation("workload.queue_depth", text))
    if spec.seconds < 0:
        found.append(FieldViolation("workload.seconds", f"{spec.seconds} is negative"))
    if spec.bytes > disk.block_size * disk.block_count:
        text = f"{spec.bytes} is more than the disk's {disk.block_size * disk.block_count} bytes"
        found.append(FieldViolation("workload.bytes", text))
    if disk.read_only and spec.kind is not WorkloadKind.READ_BACK:
        text = f'disk "{disk.name}" is read-only: only READ_BACK can run on it'
        found.append(FieldViolation("workload.kind", text))
    if found:
        raise InvalidRequestError(found[0].description, tuple(found))


async def run_workload(disk: GuestDisk, spec: WorkloadSpec) -> AsyncGenerator[WorkloadReport, None]:
    """Runs `spec` on `disk`. I/O errors and mismatches are counted, not raised.

    UnavailableError when the machine stops or reboots under it, as programs in a guest end then.
    """
    check_workload(disk, spec)
    run = _RUNS[spec.kind](disk, spec)
    depth = min(spec.queue_depth or _DEPTHS[spec.kind.name], disk.driver.slots)
    workers = [asyncio.create_task(run.work()) for _ in range(depth)]
    pending = set(workers)
    try:
        while pending:
            done, pending = await asyncio.wait(
                pending, timeout=REPORT_SECONDS, return_when=asyncio.FIRST_EXCEPTION
            )
            for worker in done:
                worker.result()
            if pending:
                yield run.tally.report(finished=False)
        run.check_machine()
        if run.flush_at_end:
            await run.flush()
            run.check_machine()
        yield run.tally.report(finished=True)
    finally:
        run.stopping = True
        if pending:
            _, late = await asyncio.wait(pending, timeout=_STOP_SECONDS)
            for worker in late:
                worker.cancel()


class _Run(abc.ABC):
    """What the workers of one workload share."""

    flush_at_end = False

    def __init__(self, disk: GuestDisk, spec: WorkloadSpec) -> None:
        self.disk = disk
        self.spec = spec
        self.stopping = False
        self.tally = _Tally(time.monotonic())
        self._driver = disk.driver

    @property
    def over(self) -> bool:
        """Whether no new command is to begin."""
        return self.stopping or self._driver.stopped

    def check_machine(self) -> None:
        """UnavailableError when the machine has stopped since the run began."""
        if self._driver.stopped:
            raise UnavailableError(
                "the machine stopped or rebooted while the workload ran; run it again",
                reason="MACHINE_STOPPED",
            )

    @abc.abstractmethod
    async def work(self) -> None:
        """One worker, to its end."""

    async def read(self, first: int, count: int) -> None:
        """A verified read, counted."""
        await self._timed(self.disk.read(first, count))
        self.tally.reads += 1
        self.tally.bytes_read += count * self.disk.block_size

    async def write(self, first: int, count: int) -> None:
        """A write, counted."""
        await self._timed(self.disk.write(first, count))
        self.tally.writes += 1
        self.tally.bytes_written += count * self.disk.block_size

    async def flush(self) -> None:
        """A flush, counted."""
        await self._timed(self.disk.flush())
        self.tally.flushes += 1

    async def discard(self, first: int, count: int) -> None:
        """A discard, counted among all commands only."""
        await self._timed(self.disk.discard(first, count))

    async def _timed(self, command: Coroutine[object, object, IoResult]) -> None:
        tally = self.tally
        began = time.monotonic()
        result = await command
        tally.latencies.append(time.monotonic() - began)
        tally.ios += 1
        if result.error:
            tally.first_error = tally.first_error or result.error
            tally.mismatches += result.mismatches
            tally.errors += not result.mismatches


class _Fill(_Run):
    """Large writes at even distances over the whole disk, then a flush."""

    flush_at_end = True

    def __init__(self, disk: GuestDisk, spec: WorkloadSpec) -> None:
        super().__init__(disk, spec)
        blocks = min((spec.io_bytes or _LARGE_IO_BYTES) // disk.block_size, disk.blocks_max)
        blocks = min(blocks, disk.block_count)
        wanted = min(spec.bytes or _FILL_BYTES, disk.block_size * disk.block_count)
        count = max(1, wanted // (blocks * disk.block_size))
        rest = wanted // disk.block_size - count * blocks
        # Even distances, each run's start rounded down to whole blocks.
        self._todo = deque((i * disk.block_count // count, blocks) for i in range(count))
        if rest > 0 and disk.block_count // count >= blocks + rest:
            self._todo.append((blocks, rest))

    async def work(self) -> None:
        while self._todo and not self.over:
            first, count = self._todo.popleft()
            if self.disk.model.busy(first, count):
                # Another workload writes there just now: this run's turn comes at the end.
                self._todo.append((first, count))
                await asyncio.sleep(_BUSY_POLL_SECONDS)
            else:
                await self.write(first, count)


class _ReadBack(_Run):
    """Every block this guest ever wrote, in order."""

    def __init__(self, disk: GuestDisk, spec: WorkloadSpec) -> None:
        super().__init__(disk, spec)
        longest = min((spec.io_bytes or _LARGE_IO_BYTES) // disk.block_size, disk.blocks_max)
        self._todo = deque(disk.model.written_runs(longest))

    async def work(self) -> None:
        while self._todo and not self.over:
            first, count = self._todo.popleft()
            await self.read(first, count)


class _Mixed(_Run):
    """Random commands until the time is over."""

    def __init__(self, disk: GuestDisk, spec: WorkloadSpec) -> None:
        super().__init__(disk, spec)
        self._random = random.Random(spec.seed)
        largest = min((spec.io_bytes or _MIXED_IO_BYTES) // disk.block_size, disk.blocks_max)
        self._largest = max(1, min(largest, disk.block_count))
        self._written = disk.model.written_blocks()
        self._recent: deque[int] = deque(maxlen=_RECENT_RUNS)
        self._deadline = self.tally.started + spec.seconds if spec.seconds else None

    async def work(self) -> None:
        while not self.over:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                return
            await self._one()

    async def _one(self) -> None:
        choice = self._random.randrange(100)
        if choice < _FLUSH_PERCENT:
            await self.flush()
            return
        changing = choice < _FLUSH_PERCENT + _DISCARD_PERCENT + _WRITE_PERCENT
        discarding = choice < _FLUSH_PERCENT + _DISCARD_PERCENT and self.disk.can_discard
        first, count = self._place(anywhere=changing and self._percent(100 - _REWRITE_PERCENT))
        if not changing:
            await self.read(first, count)
        elif self.disk.model.busy(first, count):
            # Two writes to a block at a time have no defined outcome: come back later.
            await asyncio.sleep(0)
        elif discarding:
            await self.discard(first, count)
        else:
            self._recent.append(first)
            await self.write(first, count)

    def _percent(self, percent: int) -> bool:
        return self._random.randrange(100) < percent

    def _place(self, *, anywhere: bool) -> tuple[int, int]:
        """Half of the commands are one block, the others of any size up to the largest."""
        count = 1 if self._percent(50) else self._random.randint(1, self._largest)
        last = self.disk.block_count - count
        if not anywhere and self._recent and self._percent(30):
            return min(self._random.choice(self._recent), last), count
        if not anywhere and len(self._written):
            return min(int(self._written[self._random.randrange(len(self._written))]), last), count
        return self._random.randint(0, last), count


_RUNS: dict[WorkloadKind, type[_Run]] = {
    WorkloadKind.FILL: _Fill,
    WorkloadKind.MIXED: _Mixed,
    WorkloadKind.READ_BACK: _ReadBack,
}
