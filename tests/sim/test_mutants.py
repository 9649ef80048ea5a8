"""The checkers can fail: each bug in `mutants/` is planted alone and has to be found."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from tests.sim import mutants
from tests.sim.run import run_seed

MUTANTS = sorted(module.name for module in pkgutil.iter_modules(mutants.__path__))
MUTANTS_MIN = 25
# Seeds within which each planted bug must be found; the slowest needs about half of them.
SEEDS = 400
# So long they may take on a machine that has much else to do.
SEEDS_SECONDS = 1800


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= MUTANTS_MIN


@pytest.mark.timeout(SEEDS_SECONDS)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module(f"tests.sim.mutants.{name}").plant(monkeypatch)
    for seed in range(SEEDS):
        if run_seed(seed).error:
            return
    pytest.fail(f"{SEEDS} seeds did not find it")
