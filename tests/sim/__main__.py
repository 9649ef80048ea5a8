"""The simulator by hand: `python -m tests.sim --seed 7 --trace` shows a run, one line per event;
`--seeds 1000` runs that many and says what they contained."""

from __future__ import annotations

import argparse
import sys

from tests.sim.run import run_seed, soak


def main() -> int:
    """1 when a seed failed."""
    parser = argparse.ArgumentParser(prog="stairwell-sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one seed")
    parser.add_argument("--trace", action="store_true", help="show every event of it")
    parser.add_argument("--first", type=int, default=0, help="first seed of many")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--coverage", action="store_true", help="show what was reached")
    arguments = parser.parse_args()
    if arguments.seed is None:
        good = soak(arguments.first, arguments.seeds, print, coverage=arguments.coverage)
        return 0 if good else 1
    outcome = run_seed(arguments.seed, print if arguments.trace else None)
    if outcome.error and not arguments.trace:
        print("\n".join(outcome.lines[-60:]))
    print(", ".join(f"{value} {name}" for name, value in outcome.counts.items()))
    print(f"seed {outcome.seed}: {outcome.error or 'all promises kept'}")
    return 1 if outcome.error else 0


if __name__ == "__main__":
    sys.exit(main())
