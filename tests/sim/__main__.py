"""Runs seeds of the simulator: the real cores of upstairs, downstairs and control plane, in one
process, on a clock, a network and disks that are simulated and go wrong. See docs/simulator.md.

  scripts/stairwell-sim --seed 7                what seed 7 contained, and whether all promises held
  scripts/stairwell-sim --seed 7 --trace        the same, one line per event
  scripts/stairwell-sim --seeds 200             seeds 0 to 199, on all processors
  scripts/stairwell-sim --coverage              the fixed seeds, and how often each was reached
  make sim SEEDS=100000 FIRST=1500              a soak
"""

from __future__ import annotations

import argparse
import sys

from tests.sim.run import FIXED_SEEDS, LINES_SHOWN, command, run_seed, soak

READING = """\
reading a trace:
  a line is the simulated time in seconds, who, and what. d0, d1, ... are storage hosts, p0 to p2
  those of a read-only parent, vm1, vm2, ... the machine and its successors, cp1 and cp2 the control
  plane. Frames: "REQUEST: 4 write 23+3" at a storage host is job 4, three blocks from block 23;
  a REPLY names the same jobs. CHECK is a broken promise, and the last line.
  Begin at the CHECK, search backwards for the block or host that it names, then for "killed",
  "loses power", "slot" and "replacement".

The same seed is the same run as long as the code is the same."""


def main() -> int:
    """1 when a promise was broken."""
    parser = argparse.ArgumentParser(
        prog="stairwell-sim",
        description=__doc__,
        epilog=READING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, metavar="N", help="run this one seed")
    parser.add_argument("--trace", action="store_true", help="with --seed: show every event")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="first of many (0)")
    parser.add_argument(
        "--seeds", type=int, default=FIXED_SEEDS, metavar="N", help=f"how many ({FIXED_SEEDS})"
    )
    parser.add_argument("--coverage", action="store_true", help="show what was reached, as a table")
    arguments = parser.parse_args()
    if arguments.trace and arguments.seed is None:
        parser.error("--trace shows one seed: give it with --seed N")
    if arguments.seed is None:
        good = soak(arguments.first, arguments.seeds, print, coverage=arguments.coverage)
        return 0 if good else 1
    outcome = run_seed(arguments.seed, print if arguments.trace else None)
    if outcome.error and not arguments.trace:
        print("\n".join(outcome.lines[-LINES_SHOWN:]))
    print(", ".join(f"{value} {name}" for name, value in outcome.counts.items()))
    print(f"seed {outcome.seed}: {outcome.error or 'all promises kept'}")
    if outcome.error and not arguments.trace:
        print(f"every event of it: {command(outcome.seed)}")
    return 1 if outcome.error else 0


if __name__ == "__main__":
    sys.exit(main())
