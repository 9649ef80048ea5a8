"""The slow end of a guest's latencies: how many requests take twice as long as 99 in 100 do
usually. Pure.

A mean hides it: a repair that holds up one request in fifty for ten times as long moves the mean by
a fifth, and the 99th percentile to ten times. What is promised is of the 99th percentile, and half
a second has too few requests to know theirs; but how many were slow, of all of the last seconds, is
known well. While it stays below one in a hundred, the 99th percentile has at most doubled.

Each kind of request is compared with itself. Usual is what was seen while nothing is repaired, and,
learnt more slowly, while a repair is at its floor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vmmd.core.guest_history import BUCKETS, PER_DOUBLING
from vmmd.core.request_figures import KIND_NAMES

# Requests of one interval, by kind (KIND_NAMES) and bucket of their latency.
Latencies = npt.NDArray[np.int64]

SHARE = 0.99
# What is kept of earlier intervals with each new one: at rest some five seconds, at the floor some
# twenty, and of what is judged two.
_KEPT_AT_REST = 0.9
_KEPT_AT_FLOOR = 0.975
_KEPT = 0.75
# Fewer of a kind do not tell its percentile, and fewer slow ones are chance.
KNOWN_REQUESTS_MIN = 100
SLOW_MIN = 3


class GuestTail:
    """One guest's. Feed it each interval's latencies, and read `slow`."""

    def __init__(self) -> None:
        self._usual = np.zeros((len(KIND_NAMES), BUCKETS))
        # By kind: the first bucket that is slow; none where it is not known.
        self._bounds = np.full(len(KIND_NAMES), BUCKETS)
        self._known = np.zeros(len(KIND_NAMES), np.bool_)
        self._slow = 0.0
        self._seen = 0.0

    @property
    def slow(self) -> float:
        """The part of the requests of the last seconds that were slow; 0 where that may be
        chance."""
        return self._slow / self._seen if self._slow >= SLOW_MIN else 0.0

    def learn(self, latencies: Latencies, *, repairing: bool) -> None:
        """These are as usual."""
        self._usual *= _KEPT_AT_FLOOR if repairing else _KEPT_AT_REST
        self._usual += latencies
        below = np.cumsum(self._usual, axis=1)
        total = below[:, -1]
        self._known = total >= KNOWN_REQUESTS_MIN
        at = np.argmax(below >= SHARE * total[:, np.newaxis], axis=1)
        # Nothing is slow in the last bucket, which has no end.
        self._bounds = np.minimum(at + PER_DOUBLING, BUCKETS)

    def judge(self, latencies: Latencies) -> None:
        """These were seen during a repair."""
        places = np.arange(BUCKETS)
        slow = (places >= self._bounds[:, np.newaxis]) & self._known[:, np.newaxis]
        self._slow = _KEPT * self._slow + float(latencies[slow].sum())
        self._seen = _KEPT * self._seen + float(latencies[self._known].sum())

    def forget(self) -> None:
        """What was judged so far says nothing of what comes."""
        self._slow = self._seen = 0.0
