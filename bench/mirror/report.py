"""Ratios out of runs: the table that people read, and the document that programs do.

A ratio is of two runs of one round, some seconds apart; told is the median over the rounds beside
the lowest and highest. Absolute figures stand in the table to make the ratios plausible, and are no
results: they are of one machine and one hour.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.mirror.jobs import JOBS, Job, Run

PEER = "quorum"
OURS = "stairwell"
CONTROL = "quorum again"
FIFO = "quorum fifo"
TCP = "stairwell TCP"
GCM = "stairwell gcm"
SIV = "stairwell gcm-siv"
ENCRYPTED = (GCM, SIV)
# Geometric means of OURS over all eight workloads.
MEAN_MUST, MEAN_AIM = 2.2, 4.4

# (job, stack): its runs by round.
Runs = Mapping[tuple[str, str], Sequence[Run]]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A stack beside another one. The bounds are of the median; None where there are none."""

    job: str
    stack: str
    versus: str
    values: tuple[float, ...]
    must: float | None = None
    aim: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        """In a word; nothing where nothing is wanted."""
        if self.must is None:
            return ""
        if self.median < self.must:
            return "MISSED"
        return "aim" if self.aim is not None and self.median >= self.aim else "must"

    def fields(self) -> dict[str, Any]:
        """As programs read it."""
        found = dataclasses.asdict(self)
        return found | {
            "median": self.median,
            "low": min(self.values),
            "high": max(self.values),
            "verdict": self.verdict,
        }


def ratio(job: Job, runs: Runs, stack: str, versus: str, must: float | None = None) -> Ratio:
    """Of the rates, round by round."""
    pairs = zip(runs[job.name, stack], runs[job.name, versus], strict=True)
    values = tuple(one.rate / other.rate for one, other in pairs)
    aim = job.aim if (stack, versus) == (OURS, PEER) else None
    return Ratio(job.name, stack, versus, values, must, aim)


def ratios(runs: Runs, jobs: Sequence[Job]) -> list[Ratio]:
    """Every comparison that the runs allow."""
    found = []
    for job in jobs:
        wanted: list[tuple[str, str, float | None]] = [
            (OURS, PEER, job.must),
            (CONTROL, PEER, None),
            (TCP, PEER, 1.0),
            *((name, OURS, 0.7) for name in ENCRYPTED),
        ]
        if job.reads:
            wanted.append((OURS, FIFO, 2.0 if job.depth >= 32 else None))
        for stack, versus, must in wanted:
            if (job.name, stack) in runs and (job.name, versus) in runs:
                found.append(ratio(job, runs, stack, versus, must))
    return found


def processor_ratio(job: Job, runs: Runs, stack: str) -> list[float]:
    """By round: the processor time of the peer's client and servers for a request, over that of the
    stack's. Above 1 the stack works less. Steadier than rates on a machine that others use too."""
    pairs = zip(runs[job.name, PEER], runs[job.name, stack], strict=True)
    # A run too short to be counted by the kernel's ticks says nothing.
    return [peer.mirror_us / own.mirror_us for peer, own in pairs if own.mirror_us]


def geometric_mean(found: Sequence[Ratio]) -> float | None:
    """Of OURS beside PEER; None unless all workloads were run."""
    medians = [one.median for one in found if (one.stack, one.versus) == (OURS, PEER)]
    if len(medians) < len(JOBS):
        return None
    return math.exp(statistics.fmean(map(math.log, medians)))


def median_of(runs: Sequence[Run], field: str) -> float:
    """Of one field over the rounds."""
    return statistics.median(getattr(run, field) for run in runs)


def table(job: Job, runs: Runs, stacks: Sequence[str]) -> list[str]:
    """The lines of one workload: absolute figures, then ratios."""
    lines = [
        f"\n{job.name}",
        (
            f"  {'':20}{job.unit:>9}{'p50 us':>9}{'p99 us':>9}"
            f"{'fio':>8}{'client':>9}{'servers':>9}   CPU us a request"
        ),
    ]
    for name in stacks:
        own = runs.get((job.name, name))
        if not own:
            continue
        figures = {f.name: median_of(own, f.name) for f in dataclasses.fields(Run)}
        lines.append(
            f"  {name:20}{figures['rate']:9.0f}{figures['p50']:9.0f}{figures['p99']:9.0f}"
            f"{figures['fio_us']:8.1f}{figures['client_us']:9.1f}{figures['servers_us']:9.1f}"
        )
    for name in (OURS, CONTROL):
        if (job.name, name) in runs and (values := processor_ratio(job, runs, name)):
            told, spread = f"CPU: {PEER} / {name}", f"{min(values):.2f} to {max(values):.2f}"
            lines.append(f"  {told:34}{statistics.median(values):6.2f}   {spread}")
    for one in ratios(runs, [job]):
        wanted = "" if one.must is None else f"must {one.must:g}"
        wanted += "" if one.aim is None else f", aim {one.aim:g}"
        spread = f"{min(one.values):.2f} to {max(one.values):.2f}"
        names = f"{one.stack} / {one.versus}"
        lines.append(f"  {names:34}{one.median:6.2f}   {spread:15} {wanted:18} {one.verdict}")
    return lines


def document(
    facts: Mapping[str, Any], runs: Runs, jobs: Sequence[Job], notes: Mapping[str, str]
) -> dict[str, Any]:
    """All of it, for `bench/results/`."""
    found = ratios(runs, jobs)
    return {
        "machine": dict(facts),
        "acknowledgement": dict(notes),
        "geometric_mean": geometric_mean(found),
        "ratios": [one.fields() for one in found],
        "processor_ratios": {
            job.name: processor_ratio(job, runs, OURS) for job in jobs if (job.name, OURS) in runs
        },
        "runs": [
            {"job": job, "stack": stack, "round": number, **dataclasses.asdict(run)}
            for (job, stack), own in runs.items()
            for number, run in enumerate(own)
        ],
    }
