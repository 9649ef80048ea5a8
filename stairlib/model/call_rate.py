"""How often one caller may call: a token bucket for each, and an end to how many are remembered.

Pure: time comes in as an argument, in seconds of any monotonic clock. A bucket is one number, the
moment at which it will be full again (the "generic cell rate algorithm"). Invariant: no more than
`callers_max` callers are remembered; who has not called for longest is forgotten first, and one
who is forgotten begins with a full bucket.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

CALLERS_MAX: Final = 4096
# Refusals of one caller are told together this often: who floods must not fill the log as well.
TELL_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class CallRate:
    """So many calls a second in the long run, and `burst` at once after a pause."""

    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """`wait` is in how many seconds the call may be made, 0 for now; `tell` how many refusals are
    to be told of now, 0 for none."""

    wait: float = 0.0
    tell: int = 0


@dataclass(slots=True)
class _Bucket:
    full_at: float
    refused: int = 0
    told_at: float | None = None


_ADMITTED: Final = Verdict()


class CallRates:
    """The buckets of all callers, each of the same rate."""

    def __init__(self, rate: CallRate, callers_max: int = CALLERS_MAX) -> None:
        self.rate = rate
        self._spacing = 1 / rate.per_second
        self._callers_max = callers_max
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        """How many callers are remembered."""
        return len(self._buckets)

    def take(self, caller: Hashable, now: float) -> Verdict:
        """Counts one call of `caller`, unless it has to wait; a call that has to is not counted."""
        bucket = self._buckets.get(caller)
        if bucket is None:
            bucket = self._buckets[caller] = _Bucket(now)
            if len(self._buckets) > self._callers_max:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(caller)
        full_at = max(bucket.full_at, now) + self._spacing
        # The spacing of the last one is not waited for: `burst` calls fit into one moment.
        wait = full_at - self.rate.burst * self._spacing - now
        # What rounding leaves of nothing is no wait.
        if wait <= self._spacing * 1e-6:
            bucket.full_at = full_at
            return _ADMITTED
        bucket.refused += 1
        if bucket.told_at is not None and now - bucket.told_at < TELL_SECONDS:
            return Verdict(wait)
        tell, bucket.refused, bucket.told_at = bucket.refused, 0, now
        return Verdict(wait, tell)
