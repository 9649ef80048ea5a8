"""The simulated world gets everywhere: the common things in a few seeds, everything in the fixed
ones, which `make sim` sees to; and the table says what is missing."""

from __future__ import annotations

from collections import Counter

from tests.sim import run
from tests.sim.faults import FAULTS
from tests.sim.mistakes import MISTAKES
from tests.sim.reached import EXPECTED, never, table
from tests.sim.run import Outcome, run_seeds, soak

SEEDS = 40
# Of what is expected, what so few seeds may miss.
MISSED_MAX = 40


def test_a_few_seeds_reach_most_of_it() -> None:
    reached: Counter[str] = Counter()
    for outcome in run_seeds(0, SEEDS, processes=1):
        assert not outcome.error
        reached += outcome.reached
    missing = never(reached, (*FAULTS, *MISTAKES))
    assert len(missing) <= MISSED_MAX, missing


def test_what_was_never_reached_is_told() -> None:
    reached = Counter(dict.fromkeys(EXPECTED[1:], 1))
    missing = never(reached, ["flood"])
    assert missing == ["fault flood", EXPECTED[0]]
    lines = table(reached, reached, missing)
    assert [line.split("NEVER")[0].split()[:2] for line in lines if "NEVER" in line] == sorted(
        name.split()[:2] for name in missing
    )


def test_fixed_seeds_that_miss_something_are_a_failure(monkeypatch) -> None:
    def outcomes(first: int, count: int):
        for seed in range(first, first + count):
            yield Outcome(seed, Counter(ios=1), 0.0, Counter(EXPECTED[1:]))

    monkeypatch.setattr(run, "run_seeds", outcomes)
    said: list[str] = []
    assert not soak(0, run.FIXED_SEEDS, said.append)
    assert any(line.startswith("never reached:") and EXPECTED[0] in line for line in said)
    assert soak(1, run.FIXED_SEEDS, said.append), "other seeds than the fixed ones may miss it"


def test_a_failure_shows_its_last_events_and_the_command(monkeypatch) -> None:
    lines = tuple(f"event {number}" for number in range(100))

    def outcomes(first: int, _count: int):
        yield Outcome(first, Counter(), 0.0, Counter(), "a promise", lines)

    monkeypatch.setattr(run, "run_seeds", outcomes)
    said: list[str] = []
    assert not soak(12, 1, said.append)
    text = "\n".join(said)
    assert "event 60\n" in text
    assert "event 59\n" not in text
    assert "scripts/stairwell-sim --seed 12 --trace" in text
