"""Torments volumes on real daemons, and checks that nothing was lost.

Each scenario makes a volume of three regions served by real `downstaird` processes (and a spare),
drives it with the machine's own upstairs under a load that knows what every block may hold, does
what its name says, and in the end compares the members over the network and their files on disk.

  python -m tests.torture --list                        the scenarios
  python -m tests.torture                               each of them once
  python -m tests.torture --seconds 600                 ten minutes, shared by all
  python -m tests.torture --scenario reconnect --loops 20 --seed 7
"""

from __future__ import annotations

import argparse
import json
import sys

from tests.torture.run import Result, run_all
from tests.torture.scenarios import SCENARIOS


def show(result: Result) -> None:
    """A line a scenario, and what to look at when it failed."""
    counts = ", ".join(f"{value} {name}" for name, value in sorted(result.counts.items()) if value)
    verdict = "FAILED" if result.error else "good"
    print(
        f"{verdict:6} {result.scenario:22} {result.loops} loops, {result.seconds:.1f} s, longest "
        f"wait {result.longest_wait:.2f} s, {counts}",
        flush=True,
    )
    if result.error:
        print(f"       {result.error}")
        print(f"       logs and regions: {result.folder}")
        print(f"       again: {result.command}", flush=True)


def main() -> int:
    """1 when something was lost, or did not come to an end."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="show the scenarios")
    parser.add_argument(
        "--scenario", default="all", metavar="NAME", choices=["all", *SCENARIOS], help="one of them"
    )
    parser.add_argument("--seconds", type=float, default=0, help="for about so long, all together")
    parser.add_argument("--loops", type=int, default=0, help="at most so many of each")
    parser.add_argument("--seed", type=int, default=1, help="what is drawn at random (1)")
    parser.add_argument(
        "--scale", type=float, default=0, help="size of a loop: 1 short, 4 long (by --seconds)"
    )
    parser.add_argument("--output", choices=("human", "json"), default="human")
    arguments = parser.parse_args()
    if arguments.list:
        for name, scenario in SCENARIOS.items():
            print(f"{name:22} {' '.join((scenario.__doc__ or '').split())}")
        return 0
    human = arguments.output == "human"
    results = run_all(
        [*SCENARIOS] if arguments.scenario == "all" else [arguments.scenario],
        arguments.seed,
        seconds=arguments.seconds,
        loops=arguments.loops,
        scale=arguments.scale or (4 if arguments.seconds > 60 else 1),
        tell=show if human else lambda _: None,
    )
    if not human:
        json.dump([result.plain() for result in results], sys.stdout, indent=2)
        print()
    bad = [result for result in results if result.error]
    if human:
        print(f"{len(results) - len(bad)} good, {len(bad)} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
