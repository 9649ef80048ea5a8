"""What a volume's guest and repairs did in the last hours, in memory of a fixed size. Pure.

Two levels: each tick for FINE_SAMPLES ticks, and COARSE_TICKS ticks as one sample before that.
Latencies are counted in buckets whose bounds grow by at most an eighth, so that percentiles are
right to that, whatever is merged.

Invariants: samples of one answer are in order and do not overlap; a tick costs the same whether the
guest did nothing or a million requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FINE_SAMPLES = 3600
COARSE_TICKS = 20
COARSE_SAMPLES = 2160

# Eight buckets for each doubling, from a microsecond to over half an hour; all above in the last
# one, all below in the first. The doubling and the place in it are what frexp tells of a number.
PER_DOUBLING = 8
BUCKETS = PER_DOUBLING * 32


def buckets_of(seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The bucket of each latency."""
    parts, doublings = np.frexp(seconds * 1e6)
    # `parts` are from a half to below one.
    found = doublings.astype(np.int64) * PER_DOUBLING + (parts * 16).astype(np.int64) - 8
    return np.clip(np.where(doublings < 1, 0, found), 0, BUCKETS - 1)


def buckets_below(doublings: int) -> int:
    """How many buckets, from the first one, hold only latencies below 2**doublings microseconds."""
    return (doublings + 1) * PER_DOUBLING


def upper_bound(bucket: int) -> float:
    """Seconds that everything in the bucket is below; of the last one, what its width would say."""
    if bucket < PER_DOUBLING:
        return 1e-6
    doublings, place = divmod(bucket, PER_DOUBLING)
    return (9 + place) / 16 * 2.0**doublings / 1e6


def percentile(counts: Sequence[int], share: float, longest: float) -> float:
    """Seconds that `share` of the counted stayed below; never more than the longest was."""
    wanted, seen = share * sum(counts), 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= wanted:
            return min(upper_bound(bucket), longest)
    return 0.0


@dataclass(slots=True)
class Tick:
    """What happened since the tick before; `latencies` by bucket, `longest` in seconds."""

    seconds: float
    reads: int
    writes: int
    flushes: int
    discards: int
    read_bytes: int
    write_bytes: int
    latencies: list[int]
    longest: float
    repair_bytes: int
    members_filled: int
    rate_max: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One interval; `end` is seconds of the clock that `GuestHistory.tick` was told."""

    end: float
    seconds: float
    reads: int
    writes: int
    flushes: int
    discards: int
    read_bytes: int
    write_bytes: int
    completed: int
    p50: float
    p99: float
    longest: float
    repair_bytes: int
    members_filled: int
    rate_max: int


_COLUMNS = 15


class _Level:
    """A ring of samples of so many ticks each."""

    def __init__(self, ticks: int, capacity: int) -> None:
        self._ticks = ticks
        # Pages that were never written take no memory.
        self._rows = np.zeros((capacity, _COLUMNS))
        self._count = 0
        self._gathered: list[Tick] = []

    def tick(self, end: float, tick: Tick) -> None:
        self._gathered.append(tick)
        if len(self._gathered) == self._ticks:
            self._rows[self._count % len(self._rows)] = _row(end, self._gathered)
            self._count += 1
            self._gathered = []

    def samples(self) -> list[Sample]:
        """Oldest first."""
        size = len(self._rows)
        first = max(0, self._count - size)
        return [_sample(self._rows[number % size]) for number in range(first, self._count)]


def _row(end: float, ticks: Sequence[Tick]) -> tuple[float, ...]:
    latencies = [sum(counts) for counts in zip(*(tick.latencies for tick in ticks), strict=True)]
    longest, last = max(tick.longest for tick in ticks), ticks[-1]
    return (
        end,
        sum(tick.seconds for tick in ticks),
        sum(tick.reads for tick in ticks),
        sum(tick.writes for tick in ticks),
        sum(tick.flushes for tick in ticks),
        sum(tick.discards for tick in ticks),
        sum(tick.read_bytes for tick in ticks),
        sum(tick.write_bytes for tick in ticks),
        sum(latencies),
        percentile(latencies, 0.5, longest),
        percentile(latencies, 0.99, longest),
        longest,
        sum(tick.repair_bytes for tick in ticks),
        last.members_filled,
        last.rate_max,
    )


def _sample(row: np.ndarray) -> Sample:
    end, seconds, *counts = row.tolist()
    whole = [int(value) for value in counts]
    return Sample(end, seconds, *whole[:7], *counts[7:10], *whole[10:])


class GuestHistory:
    """Call `tick` at a steady pace; any pace will do."""

    def __init__(self) -> None:
        self._fine = _Level(1, FINE_SAMPLES)
        self._coarse = _Level(COARSE_TICKS, COARSE_SAMPLES)

    def tick(self, end: float, tick: Tick) -> None:
        """Notes what happened until `end`, in seconds of a clock of which samples are asked for."""
        self._fine.tick(end, tick)
        self._coarse.tick(end, tick)

    def after(self, moment: float) -> list[Sample]:
        """The samples that end after it, oldest first: coarse ones as far as fine ones are gone."""
        fine = self._fine.samples()
        if fine and fine[0].end - fine[0].seconds > moment:
            begin = fine[0].end - fine[0].seconds
            fine = [one for one in self._coarse.samples() if one.end <= begin] + fine
        return [one for one in fine if one.end > moment]
