"""How the guest fares: the time its requests take, and how much of the time it has any. Pure.

Told of batches, not of requests. A batch counts as the slowest kind of request in it: flushes,
reads and writes take times of different orders, and a change of their mix must not pass for a
change of the disk.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vmmd.block.backend import BlockOp, Request
from vmmd.core.guest_history import BUCKETS, buckets_below, buckets_of

KINDS = 3
# Upper bounds of the latencies that are told in total, in seconds: 64 µs to 17 s, by doublings.
# Each is a bound of buckets, too, so that it is exact.
_BOUND_DOUBLINGS = range(6, 25)
LATENCY_BOUNDS = tuple(2.0**doublings / 1e6 for doublings in _BOUND_DOUBLINGS)
# Batches whose times wait to be counted: half a second of a quick guest.
TIMES_MAX = 8192
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
        if request.op is BlockOp.READ or request.op is BlockOp.ALLOCATION:
            found = _READ
    return found


@dataclass(frozen=True, slots=True)
class LatencyTotals:
    """Of all requests that were ever completed: how many took less than each of LATENCY_BOUNDS, how
    many there were, and their seconds, summed."""

    below: tuple[int, ...]
    count: int
    seconds: float


class GuestMeter:
    """Times are seconds of any clock that does not go back."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._pending = 0
        self._busy_since = now
        self._busy = 0.0
        self._counts = [0] * KINDS
        self._waited = [0.0] * KINDS
        # Of each batch that ended since they were last counted: how long, and how many requests.
        self._times = array("d")
        self._requests = array("q")
        self._latencies = np.zeros(BUCKETS, np.int64)
        self._longest = 0.0
        # What was taken already.
        self._taken = np.zeros(BUCKETS, np.int64)
        self._seconds = 0.0

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and are not completed."""
        return self._pending

    def begun(self, count: int, now: float) -> None:
        """So many requests were submitted."""
        if not self._pending:
            self._busy_since = now
        self._pending += count

    def ended(self, kind: int, count: int, seconds: float, now: float) -> None:
        """So many of a batch of that kind were completed, that long after they were submitted."""
        self._counts[kind] += count
        self._waited[kind] += count * seconds
        self._times.append(seconds)
        self._requests.append(count)
        if len(self._times) == TIMES_MAX:
            self._count_times()
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
        """(requests by bucket of their latency, the longest one's seconds) since the last call."""
        self._count_times()
        taken = self._latencies.tolist(), self._longest
        self._taken += self._latencies
        self._latencies, self._longest = np.zeros(BUCKETS, np.int64), 0.0
        return taken

    def latency_totals(self) -> LatencyTotals:
        """Since the meter was made, whatever was taken."""
        self._count_times()
        below = np.cumsum(self._taken + self._latencies)
        last = [buckets_below(doublings) - 1 for doublings in _BOUND_DOUBLINGS]
        return LatencyTotals(tuple(below[last].tolist()), int(below[-1]), self._seconds)

    def _count_times(self) -> None:
        """Puts the times of batches into their buckets, all at once."""
        if not self._times:
            return
        times = np.frombuffer(self._times)
        requests = np.frombuffer(self._requests, np.int64)
        np.add.at(self._latencies, buckets_of(times), requests)
        self._longest = max(self._longest, float(times.max()))
        self._seconds += float(times @ requests)
        self._times, self._requests = array("d"), array("q")
