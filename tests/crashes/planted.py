"""The tester can fail: each bug in `mutants/` is planted alone and has to be found."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest

from tests.crashes import mutants
from tests.crashes.run import Bounds, Found, go_through

MUTANTS = sorted(module.name for module in pkgutil.iter_modules(mutants.__path__))
# Within which each is found.
SEEDS = 120
BOUNDS = Bounds(most=32, samples=18, nested=0.0, steps=40)


def look_for(name: str, patch: Any) -> tuple[Found | None, int, int]:
    """Plants it. What was found, in which of the seeds, and after how many states."""
    importlib.import_module(f"tests.crashes.mutants.{name}").plant(patch)
    states = 0
    for seed in range(SEEDS):
        found = go_through(seed, BOUNDS)
        states += found.states
        if found.error:
            return found, seed, states
    return None, SEEDS, states


def look_for_all() -> int:
    """Prints how soon each is found. 1 when one is not."""
    missed = 0
    for name in MUTANTS:
        with pytest.MonkeyPatch.context() as patch:
            found, seed, states = look_for(name, patch)
        verdict = "MISSED" if found is None else "found "
        missed += found is None
        text = "" if found is None else found.error[:90]
        print(f"{verdict} {name:36} seed {seed:3}, {states:6} states  {text}", flush=True)
    return 1 if missed else 0
