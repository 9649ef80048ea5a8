"""`make bench-growth`: what grows with the size of a volume, the number of its extents, and the
machines of one vmmd.

    make bench-growth
    .venv/bin/python -m bench.growth --only extents --output json

- *volume*: the processor time of a 4 KiB request, scattered over 1, 10 and 100 GiB (sparse, extents
  of 64 MiB), of the machine and its three downstairs together. Reads find what was written.
- *extents*: the time from the wish that a machine runs until its volume is active, and the memory
  of the machine and of a downstairs, for 128 to 12,800 extents.
- *machines*: the same for the last of 1 to 16 machines in one vmmd, with the memory of vmmd.

Each figure is a ratio to the first, smallest case of its round; the cases themselves are told
beside it. Needs fio, and a real or memory file system with room in --dir. A picture (SVG) and the
values (JSON) go to bench/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from bench.figures import Figure, Report, machine, resident_mib
from bench.mirror import jobs
from bench.mirror.jobs import KIB, MIB, Job
from bench.mirror.stacks import BLOCK, House, missing_programs
from controlplane.cli.plot.scale import from_zero, logarithmic

GIB = 1 << 30
RESULTS = Path(__file__).parent / "results"
LARGE_EXTENT_BLOCKS = (64 * MIB) // BLOCK
# Small ones: many of them are no large volume.
SMALL_EXTENT_BLOCKS = (256 * KIB) // BLOCK
MACHINE_BYTES = 64 * MIB
VOLUMES_GIB = (1, 10, 100)
EXTENTS = (128, 1280, 12_800)
MACHINES = (1, 2, 4, 8, 16)
REQUESTS = 20_000
# Flat, as far as a median of a few rounds can tell.
FLAT = 1.25
WRITES = Job("4K randwrite QD32", "randwrite", 4 * KIB, 32, 0.0, 0.0)
READS = Job("4K randread QD32", "randread", 4 * KIB, 32, 0.0, 0.0)


class Line:
    """What one thing costs from case to case: a value for each round of each case."""

    def __init__(self, name: str, unit: str, cases: Sequence[int]) -> None:
        self.name = name
        self.unit = unit
        self.values: dict[int, list[float]] = {case: [] for case in cases}

    def add(self, case: int, value: float) -> None:
        """One more round of the case."""
        self.values[case].append(value)

    def medians(self) -> list[tuple[int, float]]:
        """(case, median)."""
        return [(case, statistics.median(found)) for case, found in self.values.items()]

    def figures(self, at_most: float | None) -> list[Figure]:
        """The cases, and the last one's ratio to the first, which has the bound."""
        told = [
            Figure(f"  {self.name}, {case:,}, {self.unit}", "", list(found))
            for case, found in self.values.items()
        ]
        first, *_between, last = self.values
        ratios = [
            after / before
            for before, after in zip(self.values[first], self.values[last], strict=True)
        ]
        whole = Figure(f"{self.name}: {last:,}", f"{first:,}", ratios, at_most=at_most)
        return [whole, *told]


def scattered(job: Job, uri: str, size: int, count: int) -> list[str]:
    """fio's command line for so many requests at places that are the same each time."""
    words = jobs.command(job, uri, size, 1.0)
    kept = [w for w in words if not w.startswith(("--runtime", "--time_based", "--randrepeat"))]
    return [*kept, "--randrepeat=1", "--randseed=7", f"--number_ios={count}"]


def volumes(place: Path, rounds: int, sizes: Sequence[int]) -> Iterator[tuple[Line, float | None]]:
    """The cost of a request by the size of its volume, GiB."""
    lines = {job: Line(f"processor time, {job.name}", "us", sizes) for job in (WRITES, READS)}
    for number in range(rounds):
        for size in sizes:
            with House(_fresh(place), size * GIB, LARGE_EXTENT_BLOCKS) as house:
                stack = house.stairwell(f"volume {number} {size}")
                for job, line in lines.items():
                    words = scattered(job, stack.uri, size * GIB, REQUESTS)
                    line.add(size, jobs.run(job, stack, size * GIB, 60.0, words).mirror_us)
    for line in lines.values():
        yield line, FLAT


def extents(place: Path, rounds: int, counts: Sequence[int]) -> Iterator[tuple[Line, float | None]]:
    """Activation and memory by the number of extents."""
    active = Line("activation by extents", "s", counts)
    ours = Line("memory of the machine by extents", "MiB", counts)
    theirs = Line("memory of a downstairs by extents", "MiB", counts)
    for number in range(rounds):
        for count in counts:
            size = count * SMALL_EXTENT_BLOCKS * BLOCK
            with House(_fresh(place), size, SMALL_EXTENT_BLOCKS) as house:
                stack = house.stairwell(f"extents {number} {count}")
                active.add(count, stack.activation)
                ours.add(count, resident_mib(stack.client[0]))
                theirs.add(count, statistics.median(map(resident_mib, stack.servers)))
    for line in (active, ours, theirs):
        yield line, None


def machines(
    place: Path, rounds: int, counts: Sequence[int]
) -> Iterator[tuple[Line, float | None]]:
    """The same by the number of machines in one vmmd; of each case the machine that came last."""
    active = Line("activation by machines", "s", counts)
    ours = Line("memory of a machine by machines", "MiB", counts)
    vmmd = Line("memory of vmmd by machines", "MiB", counts)
    for number in range(rounds):
        with House(_fresh(place), MACHINE_BYTES) as house:
            for count in range(1, max(counts) + 1):
                stack = house.stairwell(f"machine {number} {count}")
                if count in counts:
                    active.add(count, stack.activation)
                    ours.add(count, resident_mib(stack.client[0]))
                    vmmd.add(count, resident_mib(house.vmmd))
    for line in (active, ours, vmmd):
        yield line, None


def _fresh(place: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=place))


Part = Callable[[Path, int, Sequence[int]], Iterator[tuple[Line, float | None]]]
PARTS: dict[str, tuple[Part, Sequence[int], Sequence[int]]] = {
    "volume": (volumes, VOLUMES_GIB, (1, 2)),
    "extents": (extents, EXTENTS, (128, 256)),
    "machines": (machines, MACHINES, (1, 2)),
}


# ---- the picture

LEFT, WIDTH, HEIGHT, GAP = 70, 420, 110, 56


def svg(lines: Sequence[Line], facts: dict[str, str]) -> str:
    """One panel a line: the cases on a logarithmic axis, the medians from zero, the spread."""
    height = (HEIGHT + GAP) * len(lines) + 14 * len(facts) + 40
    size = f'width="{LEFT + WIDTH + 40}" height="{height}" font-family="sans-serif"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    top = 30
    for line in lines:
        parts += _panel(line, top)
        top += HEIGHT + GAP
    parts += [
        f'<text x="8" y="{top + 14 * n}" fill="#555">{escape(f"{name}: {value}")}</text>'
        for n, (name, value) in enumerate(facts.items())
    ]
    return "\n".join([*parts, "</svg>\n"])


def _panel(line: Line, top: int) -> list[str]:
    across = logarithmic(map(float, line.values), LEFT, LEFT + WIDTH)
    every = [value for found in line.values.values() for value in found]
    up = from_zero(every, top + HEIGHT, top, unit=0.01)
    parts = [f'<text x="8" y="{top - 10}" font-weight="bold">{escape(line.name)}</text>']
    parts += [
        f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{up(tick):.1f}" y2="{up(tick):.1f}" '
        f'stroke="#ddd"/><text x="{LEFT - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">'
        f"{tick:g}</text>"
        for tick in up.ticks(4)
    ]
    points = []
    for case, middle in line.medians():
        x, found = across(case), line.values[case]
        points.append(f"{x:.1f},{up(middle):.1f}")
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up(min(found)):.1f}" y2="{up(max(found)):.1f}" '
            'stroke="#1b6ca8" stroke-width="3" stroke-opacity="0.45"/>'
            f'<circle cx="{x:.1f}" cy="{up(middle):.1f}" r="4" fill="#1b6ca8"/>'
            f'<text x="{x:.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{case:,}</text>'
        )
    parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="#1b6ca8"/>')
    parts.append(f'<text x="{LEFT + WIDTH + 6}" y="{top + 4}">{escape(line.unit)}</text>')
    return parts


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="again for more than one")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--quick", action="store_true", help="whether it runs; no figures")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="of the regions")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where JSON and SVG go")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be above zero")
    if not options.dir.is_dir():
        parser.error(f"{options.dir} is no directory: name one with --dir")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """One command; leaves nothing behind but its results."""
    options = parse(arguments)
    if "fio" in missing_programs():
        print("fio is needed: apt-get install fio", file=sys.stderr)
        return 2
    facts = machine(options.dir)
    report = Report(options.dir, as_json=options.output == "json")
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="growth-", dir=options.dir) as place:
        for name in options.only or PARTS:
            part, cases, few = PARTS[name]
            rounds, taken = (1, few) if options.quick else (options.rounds, cases)
            report.note(f"{name}: {rounds} round(s)")
            for line, at_most in part(Path(place), rounds, taken):
                lines.append(line)
                report.add(line.figures(at_most))
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.results / f"growth-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    stem.with_suffix(".svg").write_text(svg(lines, facts))
    values = {line.name: {"unit": line.unit, "values": line.values} for line in lines}
    stem.with_suffix(".json").write_text(json.dumps({"machine": facts, "lines": values}, indent=1))
    report.note(f"written: {stem}.json and .svg")
    status = report.end()
    return 0 if options.quick else status


if __name__ == "__main__":
    sys.exit(main())
