"""Random runs of an upstairs' core in a world, each told by its seed alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from tests.unit.vmmd.upstairs.world import World

# So many tests of seeds are run by `make test`; the others are for `make test-long`.
QUICK = 2

FIRST, COUNT = map(int, os.environ.get("STAIRWELL_SEEDS", "0:300").split(":"))


class SeededRun(Protocol):
    """One run and the world it is in."""

    world: World

    def go(self) -> None:
        """To its end; raises when something is wrong."""
        ...


def first_seeds(per_test: int) -> list[Any]:
    """The first seed of each test, as pytest's parameters."""
    firsts = range(FIRST, FIRST + COUNT, per_test)
    return [
        pytest.param(first, marks=[] if turn < QUICK else pytest.mark.long)
        for turn, first in enumerate(firsts)
    ]


def run_seeds(make: Callable[[int], SeededRun], first: int, per_test: int) -> None:
    """The runs of one test; a failure names its seed and what happened last."""
    for seed in range(first, min(first + per_test, FIRST + COUNT)):
        one = make(seed)
        try:
            one.go()
        except Exception as error:
            tail = "\n".join(one.world.trace[-60:])
            raise AssertionError(f"seed {seed}: {error!r}\n{tail}") from error
