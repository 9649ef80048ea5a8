"""How the guest fares: the time its requests take, and how much of the time it has any. Pure.

Told of batches, not of requests. A batch counts as the slowest kind of request in it: flushes,
reads and writes take times of different orders, and a change of their mix must not pass for a
change of the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmmd.block.backend import BlockOp, Request
from vmmd.core.guest_history import BUCKETS, bucket_of

KINDS = 3
_WRITE, _READ, _FLUSH = range(KINDS)


@dataclass(frozen=True, slots=True)
class GuestSample:
    """One interval. `counts` and `waited` (seconds, summed) by kind of batch; `busy` is the part of
    `seconds` in which a request was in flight."""

    seconds: float
    busy: float
    counts: tuple[int, ...]
    waited: tuple[float, ...]


def kind_of(batch: Sequence[Request]) -> int:
    """The kind a batch counts as."""
    found = _WRITE
    for request in batch:
        if request.op is BlockOp.FLUSH:
            return _FLUSH
        if request.op is BlockOp.READ:
            found = _READ
    return found


class GuestMeter:
    """Times are seconds of any clock that does not go back."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._pending = 0
        self._busy_since = now
        self._busy = 0.0
        self._counts = [0] * KINDS
        self._waited = [0.0] * KINDS
        self._latencies = [0] * BUCKETS
        self._longest = 0.0

    def begun(self, count: int, now: float) -> None:
        """So many requests were submitted."""
        if not self._pending:
            self._busy_since = now
        self._pending += count

    def ended(self, kind: int, count: int, seconds: float, now: float) -> None:
        """So many of a batch of that kind were completed, that long after they were submitted."""
        self._counts[kind] += count
        self._waited[kind] += count * seconds
        self._latencies[bucket_of(seconds)] += count
        if seconds > self._longest:
            self._longest = seconds
        self._pending -= count
        if not self._pending:
            self._busy += now - self._busy_since

    def take(self, now: float) -> GuestSample:
        """What was seen since the last call."""
        if self._pending:
            self._busy += now - self._busy_since
            self._busy_since = now
        seconds, self._began = now - self._began, now
        sample = GuestSample(seconds, self._busy, tuple(self._counts), tuple(self._waited))
        self._busy = 0.0
        self._counts = [0] * KINDS
        self._waited = [0.0] * KINDS
        return sample

    def take_latencies(self) -> tuple[list[int], float]:
        """(requests by `bucket_of`, the longest one's seconds) since the last call."""
        taken = self._latencies, self._longest
        self._latencies, self._longest = [0] * BUCKETS, 0.0
        return taken
