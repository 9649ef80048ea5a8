"""How the guest fares: the time its requests take, and how much of the time it has any. Pure.

Told of batches, not of requests. A batch counts as the slowest kind of request in it: flushes,
reads and writes take times of different orders, and a change of their mix must not pass for a
change of the disk. In samples a discard is a write; in the latencies that are told it is itself.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vmmd.block.backend import BlockOp, Request
from vmmd.block.request_run import Run
from vmmd.core.guest_history import BUCKETS, buckets_below, buckets_of
from vmmd.core.request_figures import DISCARD, FLUSH, KIND_NAMES, READ, WRITE

# Of samples.
KINDS = 3
# Upper bounds of the latencies that are told in total, in seconds: 64 µs to 17 s, by doublings.
# Each is a bound of buckets, too, so that it is exact.
_BOUND_DOUBLINGS = range(6, 25)
LATENCY_BOUNDS = tuple(2.0**doublings / 1e6 for doublings in _BOUND_DOUBLINGS)
# Batches whose times wait to be counted: half a second of a quick guest.
TIMES_MAX = 8192
_SAMPLED = {WRITE: 0, READ: 1, FLUSH: 2, DISCARD: 0}


@dataclass(frozen=True, slots=True)
class GuestSample:
    """One interval. `counts` and `waited` (seconds, summed) by kind of batch; `busy` is the part of
    `seconds` in which a request was in flight. `latencies`: requests by KIND_NAMES and bucket; not
    given, none are known."""

    seconds: float
    busy: float
    counts: tuple[int, ...]
    waited: tuple[float, ...]
    latencies: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((len(KIND_NAMES), BUCKETS), np.int64), compare=False
    )


def kind_of(batch: Sequence[Request]) -> int:
    """The kind a batch counts as."""
    if type(batch) is Run:
        return READ if batch.reads else WRITE
    found = WRITE
    for request in batch:
        if request.op is BlockOp.FLUSH:
            return FLUSH
        if request.op is BlockOp.READ or request.op is BlockOp.ALLOCATION:
            found = READ
        elif request.op is BlockOp.DISCARD and found is WRITE:
            found = DISCARD
    return found


@dataclass(frozen=True, slots=True)
class LatencyTotals:
    """Of all requests of a kind that were ever completed: how many took less than each of
    LATENCY_BOUNDS, how many there were, and their seconds, summed."""

    kind: str
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
        # Of each batch that ended since they were last counted: how long, how many requests, and
        # of which kind.
        self._times = array("d")
        self._requests = array("q")
        self._kinds = array("b")
        self._latencies = np.zeros((len(KIND_NAMES), BUCKETS), np.int64)
        self._longest = 0.0
        # What was taken already.
        self._taken = np.zeros_like(self._latencies)
        # What was in samples.
        self._sampled = np.zeros_like(self._latencies)
        self._seconds = np.zeros(len(KIND_NAMES))

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
        sampled = _SAMPLED[kind]
        self._counts[sampled] += count
        self._waited[sampled] += count * seconds
        self._times.append(seconds)
        self._requests.append(count)
        self._kinds.append(kind)
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
        self._count_times()
        totals = self._taken + self._latencies
        sample = GuestSample(
            seconds,
            self._busy,
            tuple(self._counts),
            tuple(self._waited),
            totals - self._sampled,
        )
        self._sampled = totals
        self._busy = 0.0
        self._counts = [0] * KINDS
        self._waited = [0.0] * KINDS
        return sample

    def take_latencies(self) -> tuple[list[int], float]:
        """(requests by bucket of their latency, the longest one's seconds) since the last call."""
        self._count_times()
        taken = self._latencies.sum(axis=0).tolist(), self._longest
        self._taken += self._latencies
        self._latencies, self._longest = np.zeros_like(self._latencies), 0.0
        return taken

    def latency_totals(self) -> list[LatencyTotals]:
        """Of each kind since the meter was made, whatever was taken."""
        self._count_times()
        below = np.cumsum(self._taken + self._latencies, axis=1)
        last = [buckets_below(doublings) - 1 for doublings in _BOUND_DOUBLINGS]
        return [
            LatencyTotals(name, tuple(row[last].tolist()), int(row[-1]), float(seconds))
            for name, row, seconds in zip(KIND_NAMES, below, self._seconds, strict=True)
        ]

    def _count_times(self) -> None:
        """Puts the times of batches into their buckets, all at once."""
        if not self._times:
            return
        times = np.frombuffer(self._times)
        requests = np.frombuffer(self._requests, np.int64)
        kinds = np.frombuffer(self._kinds, np.int8)
        np.add.at(self._latencies, (kinds, buckets_of(times)), requests)
        self._longest = max(self._longest, float(times.max()))
        np.add.at(self._seconds, kinds, times * requests)
        self._times, self._requests, self._kinds = array("d"), array("q"), array("b")
