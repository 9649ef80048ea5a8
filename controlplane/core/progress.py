"""How far a repair is, how fast it goes and when it will end.

Invariants: `bytes_done` never falls, whatever is observed (a repair that begins again reports small
numbers for a while); it stays below `bytes_total` until `complete` was called, which the workflow
does when the replacement is done; rate and ETA are zero when nothing is known or nothing moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# The last hundredth of the bar belongs to the verification.
UNVERIFIED_SHARE = 100
# Without a change for so many seconds, a repair stands still: longer than a member takes to come
# back after a restart, with its reconnection delays.
STALL_SECONDS = 120.0
# Extents of one member that a machine copies at once (`vmmd/upstairs/core/limits.py`).
COPIES_IN_FLIGHT = 4
# Seconds over which the rate is smoothed: long enough to be readable, short enough to follow a
# limit that was just changed.
RATE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes and extents of one replacement. `observed_*` is the last raw observation."""

    bytes_done: int = 0
    bytes_total: int = 0
    bytes_copied: int = 0
    extents_done: int = 0
    extents_total: int = 0
    bytes_per_second: float = 0.0
    observed_bytes: int = 0
    observed_at: float | None = None

    @property
    def eta_seconds(self) -> float:
        """Seconds to the end at the present rate; zero when unknown."""
        if self.bytes_per_second <= 0:
            return 0.0
        return max(0, self.bytes_total - self.bytes_done) / self.bytes_per_second

    @property
    def ceiling(self) -> int:
        """The most `bytes_done` may show before the replacement is done."""
        return max(0, self.bytes_total - max(1, self.bytes_total // UNVERIFIED_SHARE))


def stall_seconds(extent_bytes: int, bytes_per_second_max: int) -> float:
    """Seconds without a change after which a repair stands still.

    Progress is told by whole extents: under a limit, several that share it take their time.
    """
    if not bytes_per_second_max:
        return STALL_SECONDS
    return STALL_SECONDS + COPIES_IN_FLIGHT * extent_bytes / bytes_per_second_max


def observe(
    progress: Progress, *, at: float, bytes_done: int, bytes_copied: int, extents_done: int
) -> Progress:
    """The progress after a look at the repair; `at` in seconds of any clock that does not fall."""
    return replace(
        progress,
        bytes_done=max(progress.bytes_done, min(bytes_done, progress.ceiling)),
        bytes_copied=max(progress.bytes_copied, bytes_copied),
        extents_done=max(progress.extents_done, min(extents_done, progress.extents_total)),
        bytes_per_second=_rate(progress, at, bytes_done),
        observed_bytes=bytes_done,
        observed_at=at,
    )


def copied_in_the_end(progress: Progress, bytes_copied: int) -> Progress:
    """The progress when the repair has ended, often well after the last look at it."""
    return replace(progress, bytes_copied=max(progress.bytes_copied, bytes_copied))


def pause(progress: Progress) -> Progress:
    """The progress while nothing is copied: no rate, and the next look starts a new one."""
    return replace(progress, bytes_per_second=0.0, observed_bytes=0, observed_at=None)


def complete(progress: Progress) -> Progress:
    """The progress of a replacement that is done: all of it."""
    return replace(
        pause(progress), bytes_done=progress.bytes_total, extents_done=progress.extents_total
    )


def _rate(progress: Progress, at: float, bytes_done: int) -> float:
    """Exponentially smoothed bytes per second; a repair that began again starts from nothing."""
    if progress.observed_at is None or bytes_done < progress.observed_bytes:
        return 0.0
    elapsed = at - progress.observed_at
    if elapsed <= 0:
        return progress.bytes_per_second
    now = (bytes_done - progress.observed_bytes) / elapsed
    if progress.bytes_per_second == 0:
        return now
    weight = 1 - math.exp(-elapsed / RATE_SECONDS)
    return progress.bytes_per_second + (now - progress.bytes_per_second) * weight
