"""The figures that a region is held to, each beside what it is compared to, in the same minute.

    .venv/bin/python bench/region.py [--dir DIR] [--rounds N] [--only PART ...] [--output json]

Parts: daemon (create, open, memory of 100 GiB regions), engine (flushes and sequential I/O in this
process, beside plain files), repair (a copy between two daemons, beside cp of the same files).
Needs 6 GiB in DIR meanwhile, which must be on a medium: on tmpfs nothing is ever synced. Ratios are
made within a round. Exits with 1 when a bound was missed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

import region_daemon
import region_engine
import region_repair
from figures import Report

PARTS = {
    "daemon": region_daemon.measure,
    "engine": region_engine.measure,
    "repair": region_repair.measure,
}


def main():
    """One command; leaves nothing behind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, help="where to keep the data meanwhile")
    parser.add_argument("--rounds", type=int, default=7, help="of each measurement")
    parser.add_argument("--only", choices=PARTS, action="append", help="may be given repeatedly")
    parser.add_argument("--output", choices=("human", "json"), default="human")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    # What was begun is ended and removed, also when somebody has had enough.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="region-", dir=options.dir) as name:
        report = Report(name, as_json=options.output == "json")
        for part in options.only or PARTS:
            for figures in PARTS[part](Path(name), options.rounds):
                report.add(figures)
        return report.end()


if __name__ == "__main__":
    sys.exit(main())
