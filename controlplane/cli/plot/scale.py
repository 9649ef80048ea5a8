"""Axes: from values to places on paper, and the round numbers beside them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_ROUND = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps `low`..`high` to `start`..`stop`, by logarithm if so wished; outside is at the edge.
    Numbers are round in multiples of `unit`."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False
    unit: float = 1.0

    def __call__(self, value: float) -> float:
        """The place of a value."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round numbers between low and high."""
        if self.logarithmic:
            return logarithmic_ticks(self.low, self.high)
        unit = self.unit
        return [tick * unit for tick in linear_ticks(self.low / unit, self.high / unit, count)]


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    step = round_up((high - low) / max(count, 1))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def logarithmic_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times each power of ten; of wide ranges the powers alone."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = _ROUND if last - first <= 2 else (1,)
    found = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    return [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def round_up(value: float) -> float:
    """The next of 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (*_ROUND, 10) if factor * power >= value * (1 - 1e-9))


def round_down(value: float) -> float:
    """The last of 1, 2 or 5 times a power of ten that is not above a value above zero."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(factor * power for factor in _ROUND if factor * power <= value * (1 + 1e-9))


def from_zero(values: Iterable[float], start: float, stop: float, unit: float = 1.0) -> Scale:
    """A scale from nothing to a round number of units above all values, one unit at least."""
    high = unit * round_up(max([*values, unit]) / unit)
    return Scale(0.0, high, start, stop, unit=unit)


def logarithmic(values: Iterable[float], start: float, stop: float) -> Scale:
    """A scale around all values, which are above zero, a decade wide at least."""
    known = [value for value in values if value > 0] or [1.0]
    low = round_down(min(known))
    high = max(round_up(max(known)), low * 10)
    return Scale(low, high, start, stop, logarithmic=True)
