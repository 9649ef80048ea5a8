"""Random runs of an upstairs' core in a world, each told by its seed alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from tests.unit.vmmd.upstairs.world import World

FIRST, COUNT = map(int, os.environ.get("STAIRWELL_SEEDS", "0:300").split(":"))


class SeededRun(Protocol):
    """One run and the world it is in."""

    world: World

    def go(self) -> None:
        """To its end; raises when something is wrong."""
        ...


def first_seeds(per_test: int) -> range:
    """The first seed of each test."""
    return range(FIRST, FIRST + COUNT, per_test)


def run_seeds(make: Callable[[int], SeededRun], first: int, per_test: int) -> None:
    """The runs of one test; a failure names its seed and what happened last."""
    for seed in range(first, min(first + per_test, FIRST + COUNT)):
        one = make(seed)
        try:
            one.go()
        except Exception as error:
            tail = "\n".join(one.world.trace[-60:])
            raise AssertionError(f"seed {seed}: {error!r}\n{tail}") from error
