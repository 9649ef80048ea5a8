"""What a guest asks of a volume, by kind and size, and what failed of it, by kind and reason. Pure.

The kinds are those of the reference (propolis.md §17). A size is counted by the power of two that
it does not pass; one list index a request, since this is on the way of every one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vmmd.block.backend import WRITES, BlockOp, BlockStatus, Request
from vmmd.block.request_run import Run

# In the order of the meter's kinds (guest_meter).
KIND_NAMES: Final = ("write", "read", "flush", "discard")
WRITE, READ, FLUSH, DISCARD = range(len(KIND_NAMES))
# Sizes that are told: 512 bytes to 1 GiB, by doublings.
_SHIFTS: Final = range(9, 31)
SIZE_BOUNDS: Final = tuple(1 << shift for shift in _SHIFTS)
# A flush has no size.
_SIZED: Final = (WRITE, READ, DISCARD)
_BITS: Final = 65

_KIND_OF: Final = {
    BlockOp.WRITE: WRITE,
    BlockOp.WRITE_UNWRITTEN: WRITE,
    BlockOp.READ: READ,
    BlockOp.READ_OWNED: READ,
    BlockOp.ALLOCATION: READ,
    BlockOp.FLUSH: FLUSH,
    BlockOp.DISCARD: DISCARD,
}
REASONS: Final = ("failed", "read_only", "unsupported", "out_of_range")
_REASON_OF: Final = {
    BlockStatus.READ_ONLY: "read_only",
    BlockStatus.UNSUPPORTED: "unsupported",
    BlockStatus.OUT_OF_RANGE: "out_of_range",
}


@dataclass(slots=True)
class VolumeCounters:
    """Since the volume was built. A request counts when it is submitted, a failure when it
    completes."""

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    discards: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class SizeTotals:
    """Of all requests of a kind: how many had at most each of SIZE_BOUNDS bytes, and how many there
    were."""

    kind: str
    at_most: tuple[int, ...]
    count: int


class RequestFigures:
    """Since the volume was built. A size counts when the request is submitted, a failure when it
    completes."""

    def __init__(self) -> None:
        self.counters = VolumeCounters()
        self.discarded_bytes = 0
        self._sizes = [[0] * _BITS for _kind in KIND_NAMES]
        self._failures: Counter[tuple[str, str]] = Counter()

    def asked(self, batch: Sequence[Request], block_size: int) -> None:
        """These were submitted."""
        counters, sizes = self.counters, self._sizes
        if type(batch) is Run:
            if batch.reads:
                counters.reads += batch.requests
                counters.read_bytes += batch.data_bytes
            else:
                counters.writes += batch.requests
                counters.write_bytes += batch.data_bytes
            batch.tally(sizes[READ if batch.reads else WRITE])
            return
        for request in batch:
            op = request.op
            size = request.length * block_size
            if op is BlockOp.READ:
                counters.reads += 1
                counters.read_bytes += size
                sizes[READ][(size - 1).bit_length()] += 1
            elif op in WRITES:
                counters.writes += 1
                counters.write_bytes += size
                sizes[WRITE][(size - 1).bit_length()] += 1
            elif op is BlockOp.FLUSH:
                counters.flushes += 1
            elif op is BlockOp.DISCARD:
                counters.discards += 1
                self.discarded_bytes += size
                sizes[DISCARD][(size - 1).bit_length()] += 1

    def failed(self, op: BlockOp, status: BlockStatus) -> None:
        """One was answered so."""
        self.counters.failed += 1
        self._failures[KIND_NAMES[_KIND_OF[op]], _REASON_OF.get(status, "failed")] += 1

    def failures(self) -> list[tuple[str, str, int]]:
        """(kind, reason, count) of every pair there can be, so that the first failure is seen as a
        rise."""
        return [
            (kind, reason, self._failures[kind, reason])
            for kind in KIND_NAMES
            for reason in REASONS
        ]

    def sizes(self) -> list[SizeTotals]:
        """Of each kind that has sizes."""
        found = []
        for kind in _SIZED:
            counts = self._sizes[kind]
            at_most = tuple(sum(counts[: shift + 1]) for shift in _SHIFTS)
            found.append(SizeTotals(KIND_NAMES[kind], at_most, sum(counts)))
        return found


def op_of(batch: Sequence[Request], token: object) -> BlockOp:
    """What was asked under a token; for the few that fail."""
    return next((request.op for request in batch if request.token is token), batch[0].op)
