"""What the judge of construction requests does in a second, and how long a large tree takes.

    .venv/bin/python bench/construction.py [--rounds N]

Pure Python in one process, no daemon: comparisons of a pair of requests with three targets, and
reading and checking a tree of 10,000 nodes in both of its forms. Prints the median over the rounds
with the lowest and the highest beside it: on a shared machine the spread says how much to believe.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from functools import partial
from pathlib import Path

from controlplane.core.construction_check import check
from stairlib.model.construction_diff import Outcome, compare
from stairlib.wire.construction import from_object, parse_json, parse_message, to_message

EXAMPLES = Path(__file__).parents[1] / "examples"
NODES = 10_000
COMPARISONS = 5_000
# Promised: this many comparisons in a second, and a tree of NODES read and checked in a second.
COMPARISONS_PROMISED = 20_000
TREE_SECONDS_PROMISED = 1.0


def documented():
    """The disk of the walk-through and its replacement, as JSON values."""
    disks = json.loads((EXAMPLES / "crucible-disks.json").read_text())
    replacement = json.loads((EXAMPLES / "replace.json").read_text())
    return disks[0]["volume_construction_request"], replacement["vcr"]


def large_tree(volume):
    """A volume of NODES nodes, itself and regions with targets of their own."""
    (region,) = volume["sub_volumes"]
    subs = []
    for number in range(NODES - 1):
        hosts = [f"10.{number >> 8}.{number & 255}.{slot}" for slot in (1, 2, 3)]
        options = region["opts"] | {"target": [f"{host}:8810" for host in hosts]}
        subs.append(region | {"opts": options})
    return volume | {"sub_volumes": subs}


def deep_tree(volume):
    """The same number of nodes as volumes in volumes, 30 levels of parents in each sub-volume."""
    levels = 30
    (region,) = volume["sub_volumes"]
    subs = []
    for number in range(NODES // levels):
        hosts = [f"[fd00::{number:x}:{slot}]" for slot in (1, 2, 3)]
        options = region["opts"] | {"target": [f"{host}:8810" for host in hosts]}
        node = region | {"opts": options}
        for _ in range(levels - 1):
            node = volume | {"sub_volumes": [], "read_only_parent": node}
        subs.append(node)
    return volume | {"sub_volumes": subs}


def timed(action, rounds):
    """Seconds of each round, after one that warms up."""
    action()
    found = []
    for _ in range(rounds):
        gc.collect()
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return found


def line(name, values, unit, digits):
    """One row: the median, and how far the rounds lie apart."""
    low, high = min(values), max(values)
    middle = statistics.median(values)
    print(f"{name:44}{middle:>12,.{digits}f} {unit:4} ({low:,.{digits}f} to {high:,.{digits}f})")
    return middle


def compared(rounds):
    """Comparisons a second: of a pair that differs in a target, and of one that does not."""
    original, replacement = map(from_object, documented())
    assert compare(original, replacement).outcome is Outcome.REPLACE
    pairs = {
        "comparisons, one target changed": (original, replacement),
        "comparisons, nothing changed": (original, original),
        "comparisons, two targets changed": (
            original,
            from_object(_with_two_targets(documented()[1])),
        ),
    }
    slowest = None
    for name, pair in pairs.items():
        times = timed(partial(many_comparisons, *pair), rounds)
        rate = line(name, [COMPARISONS / seconds for seconds in times], "/s", 0)
        slowest = rate if slowest is None else min(slowest, rate)
    return slowest


def many_comparisons(old, new):
    for _ in range(COMPARISONS):
        compare(old, new)


def _with_two_targets(volume):
    (region,) = volume["sub_volumes"]
    targets = ["10.9.9.1:1", *region["opts"]["target"][1:]]
    return volume | {"sub_volumes": [region | {"opts": region["opts"] | {"target": targets}}]}


def judged(rounds):
    """Seconds to read and check a tree of NODES nodes; the slowest form's median."""
    volume, _ = documented()
    slowest = 0.0
    for shape, tree in (("wide", large_tree(volume)), ("deep", deep_tree(volume))):
        text, value = json.dumps(tree), from_object(tree)
        message = to_message(value)
        print(f"{shape}: {len(text):,} bytes of JSON, {message.ByteSize():,} as a message")
        assert check(value).valid
        forms = {"JSON": partial(parse_json, text), "message": partial(parse_message, message)}
        for name, read in forms.items():
            times = timed(partial(read_and_checked, read), rounds)
            median = line(f"  {NODES:,} nodes, {name}, read and checked", times, "s", 3)
            slowest = max(slowest, median)
        again = from_object(tree)
        line(f"  {NODES:,} nodes, compared", timed(partial(compare, value, again), rounds), "s", 3)
    return slowest


def read_and_checked(read):
    return check(read().require())


def main():
    """One command; says whether the figures keep what is promised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="of each measurement")
    options = parser.parse_args()
    rate = compared(options.rounds)
    seconds = judged(options.rounds)
    kept = rate >= COMPARISONS_PROMISED and seconds <= TREE_SECONDS_PROMISED
    print(
        f"promised: {COMPARISONS_PROMISED:,} comparisons a second, a tree within "
        f"{TREE_SECONDS_PROMISED} s: {'kept' if kept else 'NOT KEPT'}"
    )


if __name__ == "__main__":
    main()
