"""A token bucket for repair traffic. Pure: time comes in as an argument."""

from __future__ import annotations

# What may pass at once after a pause: long enough that the timer's grain does not lower the rate.
BURST_SECONDS = 0.1


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
