"""Figures of a benchmark: what was measured in each round, what it is held against, how it is told.

A figure is a list of values, one per round, and a bound that its median has to keep. Ratios are
made within a round, so that what else the machine does weighs on both sides.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

WIDTH = 58


@dataclass
class Figure:
    """`name` is what was measured, `versus` what it is compared to. at_most, at_least: the bound
    of the median, None where there is none and the figure is told for comparison."""

    name: str
    versus: str
    values: list[float] = field(default_factory=list)
    at_most: float | None = None
    at_least: float | None = None

    @property
    def median(self):
        return statistics.median(self.values)

    @property
    def met(self):
        """Whether the median keeps the bound; None where there is none."""
        if self.at_most is not None:
            return self.median <= self.at_most
        if self.at_least is not None:
            return self.median >= self.at_least
        return None

    @property
    def bound(self):
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return "" if self.at_least is None else f"at least {self.at_least:g}"

    def line(self):
        """As people read it: median, spread, bound, verdict."""
        low, high = min(self.values), max(self.values)
        spread = f"{self.median:9.3f}  {low:8.3f} to {high:<8.3f} {len(self.values):3}"
        verdict = {None: "", True: "met", False: "MISSED"}[self.met]
        return f"{self.name:{WIDTH}}{spread}  {self.bound:14}{verdict:7} {self.versus}"

    def fields(self):
        """As programs read it."""
        return {
            "name": self.name,
            "versus": self.versus,
            "median": self.median,
            "low": min(self.values),
            "high": max(self.values),
            "values": self.values,
            "at_most": self.at_most,
            "at_least": self.at_least,
            "met": self.met,
        }


class Report:
    """Takes figures as they are done; tells them at once, or all at the end as JSON."""

    def __init__(self, directory, *, as_json):
        self._as_json = as_json
        self._figures = []
        self._machine = machine(directory)
        self._began = time.monotonic()
        if not as_json:
            for name, value in self._machine.items():
                print(f"{name:20} {value}")
            head = f"{'median':>9}  {'lowest to highest':20} {'n':>3}"
            print(f"\n{'':{WIDTH}}{head}  {'wanted':21} compared to", flush=True)

    def add(self, figures):
        """Figures that have all their values; those of an absent row are left out."""
        for figure in figures:
            if not figure.values:
                continue
            self._figures.append(figure)
            if not self._as_json:
                print(figure.line(), flush=True)

    def note(self, text):
        """Progress, for people alone."""
        print(text, file=sys.stderr, flush=True)

    def end(self):
        """The exit status: 0 when no bound was missed."""
        load = os.getloadavg()
        seconds = time.monotonic() - self._began
        missed = [figure.name for figure in self._figures if figure.met is False]
        if self._as_json:
            found = [figure.fields() for figure in self._figures]
            facts = {**self._machine, "load_at_end": load, "seconds": seconds}
            print(json.dumps({"machine": facts, "figures": found}, indent=2))
        else:
            text = "all bounds kept" if not missed else f"missed: {'; '.join(missed)}"
            print(f"\n{text}; {seconds:.0f} s, load at the end {load[0]:.1f}")
        return 1 if missed else 0


def machine(directory):
    """Facts that a figure depends on."""
    return {
        "processors": f"{os.cpu_count()} x {_processor()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30):.1f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file_system": _file_system(directory),
        "load_at_start": f"{os.getloadavg()[0]:.1f}",
    }


def resident_mib(pid):
    """The resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    if found is None:
        raise ProcessLookupError(f"no memory is told of process {pid}")
    return int(found[1]) / 1024


def _processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(directory):
    """Type and device of what holds `directory`, as findmnt tells it."""
    command = ["findmnt", "--noheadings", "--output", "FSTYPE,SOURCE", "--target", str(directory)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    # Where something is mounted over something, the last is what is seen.
    return " on ".join(found.strip().rpartition("\n")[2].split()) or "unknown"
