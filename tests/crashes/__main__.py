"""Cuts the power under regions at every place there is, and opens what is left.

  python -m tests.crashes                       the short form
  python -m tests.crashes --seconds 900         seeds for a quarter of an hour, with wider bounds
  python -m tests.crashes --seed 7 --crash 312  one state again, with its story
  python -m tests.crashes --mutants             which planted bugs are found, and how soon

docs/crash-testing.md says what states are legal.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.crashes.planted import look_for_all
from tests.crashes.run import LONG, SHORT, Found, go_through


def main() -> int:
    """1 when a promise was broken, or a planted bug not found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.crashes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="the first one (0)")
    parser.add_argument("--seeds", type=int, default=0, help="at most so many")
    parser.add_argument("--seconds", type=float, default=0, help="for so long")
    parser.add_argument("--crash", type=int, help="this state of the seed alone, with its story")
    parser.add_argument("--long", action="store_true", help="the wider bounds, as with --seconds")
    parser.add_argument("--mutants", action="store_true", help="look for the planted bugs")
    arguments = parser.parse_args()
    if arguments.mutants:
        return look_for_all()
    bounds = LONG if arguments.long or arguments.seconds else SHORT
    if arguments.crash is not None:
        found = go_through(arguments.seed, bounds, only=arguments.crash)
        print("\n".join(found.log))
        print(found.error or f"good; the seed has {found.states} states")
        return 1 if found.error else 0
    return _many(arguments.seed, arguments.seeds, arguments.seconds, bounds)


def _many(first: int, seeds: int, seconds: float, bounds) -> int:
    began = time.monotonic()
    total = Found(first)
    seed = first
    limit = seeds or (1 << 60 if seconds else 4)
    while seed - first < limit and (not seconds or time.monotonic() - began < seconds):
        found = go_through(seed, bounds)
        for name in ("states", "nested", "places", "places_whole", "operations"):
            setattr(total, name, getattr(total, name) + getattr(found, name))
        if found.error:
            print("\n".join(found.log))
            print(f"FAILED, seed {seed}: {found.error}")
            wide = " --long" if bounds is LONG else ""
            print(f"again: python -m tests.crashes --seed {seed} --crash {found.crash}{wide}")
            return 1
        seed += 1
    took = time.monotonic() - began
    print(
        f"good: {seed - first} seeds, {total.operations} operations, {total.places} places "
        f"({total.places_whole} enumerated whole, the others sampled), {total.states} states and "
        f"{total.nested} of a second power cut, {(total.states + total.nested) / took:.0f} a second"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
