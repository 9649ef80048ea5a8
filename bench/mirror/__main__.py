"""`make bench`: Stairwell beside QEMU's quorum mirror, in one run on one machine.

    make bench
    .venv/bin/python -m bench.mirror --quick --only randread

Needs Debian's qemu-utils and fio, and no network. Starts a three-way quorum mirror over qemu-nbd, a
second one like it as a control, one that reads a single copy (fifo), and Stairwell over unix
sockets, over TCP and encrypted; fills all of them; and drives them in turn with the same fio,
--rounds times. Workloads that flush run on the file system of --dir, the others on that of
--memory-dir, so that neither side waits for a medium there. How to read what is printed, and why
absolute figures are no results, is in docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import grpc

from bench.figures import machine
from bench.mirror import jobs, plot, report
from bench.mirror.jobs import JOBS, MIB, Job, Run
from bench.mirror.stacks import BrokenMirrorError, House, Stack, missing_programs
from stairlib.model.cipher import AES_256_GCM, AES_256_GCM_SIV

RESULTS = Path(__file__).parent.parent / "results"
SIZE_STEP_MIB = 16
# A run that takes longer than this is told at once.
SLOW_RUNS, SLOW_SECONDS = 2, 3.0

MAKERS: dict[str, Callable[[House, str], Stack]] = {
    report.PEER: lambda house, name: house.quorum(name),
    report.OURS: lambda house, name: house.stairwell(name),
    report.CONTROL: lambda house, name: house.quorum(name),
    report.FIFO: lambda house, name: house.quorum(name, read_pattern="fifo"),
    report.TCP: lambda house, name: house.stairwell(name, tcp=True),
    report.GCM: lambda house, name: house.stairwell(name, cipher=AES_256_GCM),
    report.SIV: lambda house, name: house.stairwell(name, cipher=AES_256_GCM_SIV),
}
# What the other comparisons are made with.
BASES = {report.PEER, report.OURS}


class Bench:
    """The runs so far, and how they are made."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.size = options.size_mib * MIB
        self.runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
        self.notes: dict[str, str] = {}
        self.names = [name for name in MAKERS if name in BASES or name in options.stack]

    def measure(self, wanted: Sequence[Job], directory: Path) -> None:
        """All rounds of jobs that belong on one file system."""
        with (
            tempfile.TemporaryDirectory(prefix="mirror-", dir=directory) as place,
            House(Path(place), self.size) as house,
        ):
            names = [n for n in self.names if n != report.FIFO or any(j.reads for j in wanted)]
            say(f"starting {len(names)} mirrors in {place} and filling them")
            stacks = [MAKERS[name](house, name) for name in names]
            for stack in stacks:
                jobs.fill(stack, self.size)
                self.notes[stack.name] = stack.note
            for number in range(self.options.rounds):
                say(f"round {number + 1} of {self.options.rounds}")
                for job in wanted:
                    self._take_turns(job, stacks, number)

    def _take_turns(self, job: Job, stacks: Sequence[Stack], number: int) -> None:
        """Who is first changes from round to round."""
        taking = [s for s in stacks if job.reads or s.name != report.FIFO]
        shift = number % len(taking)
        for stack in taking[shift:] + taking[:shift]:
            began = time.monotonic()
            found = jobs.run(job, stack, self.size, self.options.seconds)
            taken = time.monotonic() - began
            if taken > SLOW_RUNS * self.options.seconds + SLOW_SECONDS:
                say(f"{job.name} against {stack.name} took {taken:.0f} s")
            self.runs[job.name, stack.name].append(found)


def say(text: str) -> None:
    """Progress, for people alone."""
    print(text, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.mirror",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="default 4, with --quick 1")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each run; default 1.5")
    parser.add_argument(
        "--quick", action="store_true", help="one short round: whether it runs, no figures"
    )
    parser.add_argument(
        "--only", metavar="TEXT", help="workloads whose name matches this regular expression"
    )
    parser.add_argument(
        "--stack",
        action="append",
        choices=[name for name in MAKERS if name not in BASES],
        metavar="NAME",
        help="beside quorum and stairwell; again for more (default: all): "
        + ", ".join(repr(name) for name in MAKERS if name not in BASES),
    )
    parser.add_argument("--size-mib", type=int, default=64, metavar="M", help="of each volume")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on a real medium")
    parser.add_argument(
        "--memory-dir", type=Path, default=Path("/dev/shm"), help="on a tmpfs, 3 times M a mirror"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where JSON and SVG go")
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 1 if options.quick else 4
    if options.seconds is None:
        options.seconds = 0.5 if options.quick else 1.5
    if options.stack is None:
        options.stack = list(MAKERS)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be above zero")
    if options.size_mib < SIZE_STEP_MIB or options.size_mib % SIZE_STEP_MIB:
        parser.error(f"--size-mib must be a multiple of {SIZE_STEP_MIB}")
    for place in (options.dir, options.memory_dir):
        if not place.is_dir():
            parser.error(f"{place} is no directory: name one with --dir and --memory-dir")
    try:
        chosen = re.compile(options.only or "")
    except re.error as error:
        parser.error(f"--only is no regular expression: {error}")
    options.jobs = [job for job in JOBS if chosen.search(job.name)]
    if not options.jobs:
        parser.error("--only matches none of: " + "; ".join(job.name for job in JOBS))
    return options


def facts_of(options: argparse.Namespace) -> dict[str, str]:
    """What the figures depend on."""
    facts = machine(options.dir)
    facts["file system, no flushes"] = machine(options.memory_dir)["file_system"]
    facts["runs"] = f"{options.rounds} rounds of {options.seconds:g} s, {options.size_mib} MiB"
    return facts


def tell(bench: Bench, facts: dict[str, str]) -> int:
    """Prints and stores everything. The exit status: 0 when no bound was missed."""
    wanted = bench.options.jobs
    for name, value in facts.items():
        print(f"{name:26} {value}")
    print()
    for name, note in bench.notes.items():
        print(f"{name:26} {note}")
    for job in wanted:
        print("\n".join(report.table(job, bench.runs, bench.names)))
    found = report.ratios(bench.runs, wanted)
    mean = report.geometric_mean(found)
    if mean is not None:
        verdict = "MISSED" if mean < report.MEAN_MUST else "kept"
        print(f"\ngeometric mean {mean:.2f}   must {report.MEAN_MUST}, aim {report.MEAN_AIM}")
        print(f"{'':15}{verdict}")
    bench.options.results.mkdir(parents=True, exist_ok=True)
    stem = bench.options.results / f"mirror-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    document = report.document(facts, bench.runs, wanted, bench.notes)
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1))
    stem.with_suffix(".svg").write_text(plot.svg(found, facts))
    print(f"\nwritten: {stem}.json and .svg")
    if bench.options.quick:
        print("one short round says that it runs, and nothing about who is quicker")
        return 0
    missed = any(one.verdict == "MISSED" for one in found)
    return 1 if missed or (mean is not None and mean < report.MEAN_MUST) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """One command; leaves nothing behind but its results."""
    options = parse(arguments)
    missing = missing_programs()
    if missing:
        print(
            f"the comparison needs {' and '.join(missing)}: apt-get install {' '.join(missing)}",
            file=sys.stderr,
        )
        return 2
    began = time.monotonic()
    facts = facts_of(options)
    bench = Bench(options)
    # The mirrors end with this process, however it is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    try:
        for durable, directory in ((False, options.memory_dir), (True, options.dir)):
            wanted = [job for job in options.jobs if job.durable is durable]
            if wanted:
                bench.measure(wanted, directory)
    except BrokenMirrorError as error:
        print(error, file=sys.stderr)
        return 2
    except grpc.RpcError as error:
        print(f"a daemon refused what it was asked: {error}", file=sys.stderr)
        return 2
    facts["load at the end"] = f"{os.getloadavg()[0]:.1f}"
    facts["seconds"] = f"{time.monotonic() - began:.0f}"
    return tell(bench, facts)


if __name__ == "__main__":
    sys.exit(main())
