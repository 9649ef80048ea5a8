"""Where a simulation's luck comes from: an interface, filled by a seeded generator of the caller's.

The modules here draw from what they are handed and know no generator of their own, so that one seed
decides a whole run and nothing else does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Chance(Protocol):
    """The part of `random.Random` that is used."""

    def random(self) -> float:
        """From 0 to below 1."""
        ...

    def uniform(self, a: float, b: float) -> float:
        """Between the two."""
        ...

    def randrange(self, start: int, stop: int, /) -> int:
        """From `start` to below `stop`."""
        ...

    def choice(self, seq: Sequence[T], /) -> T:
        """One of them."""
        ...


def pick(chance: Chance, weights: Mapping[T, float]) -> T:
    """One of the keys, as often as its weight says. At least one weight is above zero."""
    left = chance.random() * sum(weights.values())
    chosen: T | None = None
    for key, weight in weights.items():
        if weight <= 0:
            continue
        chosen = key
        left -= weight
        if left < 0:
            break
    assert chosen is not None
    return chosen
