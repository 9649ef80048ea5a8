"""What lies between a device and its backend: counts what is in flight, and tells when nothing is.

A backend may be shared (a disk's device and its NBD export); an attachment belongs to one device.
Pure: runs on whatever thread the device runs on. Invariant: `in_flight` is the number of requests
submitted whose completion has not come back yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vmmd.block.backend import Backend, BackendInfo, BlockOp, BlockStatus, Completion, Done, Request
from vmmd.block.request_run import Run, Whole


@dataclass(slots=True)
class AttachmentCounters:
    """Since the attachment was made. Blocks, not bytes."""

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    discards: int = 0
    blocks_read: int = 0
    blocks_written: int = 0
    failures: int = 0


class Attachment:
    """One device's use of a backend."""

    def __init__(self, backend: Backend) -> None:
        self.counters = AttachmentCounters()
        self._backend = backend
        self._in_flight = 0
        self._on_idle: list[Callable[[], None]] = []

    @property
    def info(self) -> BackendInfo:
        """What the backend is like."""
        return self._backend.info

    @property
    def in_flight(self) -> int:
        """Requests submitted and not completed."""
        return self._in_flight

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        """As `Backend.submit`. A completion has stopped counting when `done` sees it."""
        self._in_flight += len(batch)
        self._count(batch)

        def finished(completions: Sequence[Completion]) -> None:
            if type(completions) is not Whole:
                self.counters.failures += sum(c.status is not BlockStatus.OK for c in completions)
            self._in_flight -= len(completions)
            assert self._in_flight >= 0
            # `done` first: what it submits (the flush after a FUA write) is in flight again.
            done(completions)
            if self._in_flight == 0:
                waiting, self._on_idle = self._on_idle, []
                for callback in waiting:
                    callback()

        self._backend.submit(batch, finished)

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once nothing is in flight, at once when nothing is now."""
        if self._in_flight == 0:
            callback()
        else:
            self._on_idle.append(callback)

    def _count(self, batch: Sequence[Request]) -> None:
        counters = self.counters
        if type(batch) is Run:
            if batch.reads:
                counters.reads += batch.requests
                counters.blocks_read += batch.blocks
            else:
                counters.writes += batch.requests
                counters.blocks_written += batch.blocks
            return
        for request in batch:
            op = request.op
            if op is BlockOp.READ:
                counters.reads += 1
                counters.blocks_read += request.length
            elif op is BlockOp.WRITE:
                counters.writes += 1
                counters.blocks_written += request.length
            elif op is BlockOp.FLUSH:
                counters.flushes += 1
            elif op is BlockOp.DISCARD:
                counters.discards += 1
