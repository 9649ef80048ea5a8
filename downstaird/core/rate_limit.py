"""How fast repair may go: a limit that somebody sets, and rests while the guest is at work. Pure:
time comes in as an argument."""

from __future__ import annotations

import math
from collections.abc import Iterable

# What may pass at once after a pause: long enough that the timer's grain does not lower the rate.
BURST_SECONDS = 0.1
# Under a limit. A step of what comes beside the messages costs the loop about a millisecond, nearly
# whatever its size, and its bytes are moved by a thread: fewer, larger ones spare the guest.
STEPS_PER_SECOND = 8
# While the guest is at work, a step of repair is followed by a rest of this many times what it
# took. Where processor or disk are scarce, steps take longer, and so do the rests: repair gives way
# by itself. Of 2 and 4, the latter was the better one on a busy two-core machine, by little.
REST_TIMES = 4
# A step that was stopped for long, say by a full disk queue, is not answered by a long standstill.
REST_SECONDS_MAX = 0.05


# The grain of the loop's timers.
_TIMER_SECONDS = 1e-3


def timer_seconds(seconds: float) -> float:
    """What a timer is to be set to, for it not to come early: what it rounds down is waited for
    again and again, up to a millisecond of the processor for each wait."""
    return math.ceil(seconds / _TIMER_SECONDS) * _TIMER_SECONDS


class TokenBucket:
    """Bytes per second; 0 is no limit. `now` is in seconds of any monotonic clock."""

    def __init__(self, bytes_per_second: int = 0) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0

    @property
    def bytes_per_second(self) -> int:
        """The limit; 0 is none."""
        return self._rate

    def set_rate(self, bytes_per_second: int, now: float) -> None:
        """Counts from now on. What was taken beyond the old limit is forgiven."""
        self._rate = bytes_per_second
        self._free_at = min(self._free_at, now)

    def take(self, count: int, now: float) -> None:
        """Counts `count` bytes that have been moved. More may move once `wait` is 0."""
        if self._rate:
            self._free_at = max(self._free_at, now - BURST_SECONDS) + count / self._rate

    def wait(self, now: float) -> float:
        """Seconds until more may be moved, at the present rate."""
        return max(0.0, self._free_at - now) if self._rate else 0.0


def allowed(running: Iterable[int], limit: int) -> set[int]:
    """Which of the copies that have begun may go on: the `limit` ones that began first, by number;
    all when it is 0. A copy beyond a lowered limit stands still where it is."""
    order = sorted(running)
    return set(order[:limit] if limit else order)


def step_bytes(bytes_per_second: int, least: int, most: int) -> int:
    """How many bytes a step takes under a limit: so many that there are STEPS_PER_SECOND of them, a
    multiple of `least`, and at most `most`."""
    return max(least, min(most, bytes_per_second // STEPS_PER_SECOND // least * least))


class Stride:
    """How many bytes the next step takes: `most` while the guest is idle, since each step and each
    message has its price; `least` while it is at work and would wait for the step."""

    def __init__(self, least: int, most: int, requests: int) -> None:
        self._least = least
        self._most = max(least, most)
        self._seen = requests

    def bytes(self, requests: int) -> int:
        """`requests` is how many of the guest's came so far."""
        busy = requests != self._seen
        self._seen = requests
        return self._least if busy else self._most


class Rests:
    """Rests between steps of all copies together; none while the guest is idle."""

    def __init__(self) -> None:
        self._seen = 0
        self._until = 0.0

    def worked(self, seconds: float, requests: int, now: float) -> None:
        """A step took that long; `requests` is how many of the guest's came so far."""
        if requests == self._seen:
            return
        self._seen = requests
        self._until = max(self._until, now) + min(REST_TIMES * seconds, REST_SECONDS_MAX)

    def wait(self, now: float) -> float:
        """Seconds until the next step may begin; 0 or less when it may."""
        return self._until - now
