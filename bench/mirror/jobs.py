"""What is asked of each mirror, and what is measured while it answers.

One fio with the `nbd` engine is the guest of every mirror alike. A run's rate counts until a flush
after its last request was answered: a mirror that answers a write before it has carried it out
cannot look quicker for that. Processor time is what the kernel counted for the mirror's processes
between the first request and the end of that flush.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.mirror.stacks import BrokenMirrorError, Stack
from tests.integration.nbd_client import NbdClient

KIB, MIB = 1 << 10, 1 << 20
# Beyond what a run is to take: fio's own start and end, on a machine that others use as well.
SPARE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """A workload. `must` and `aim`: ratios to the peer that are wanted. `durable`: it flushes, and
    so belongs on a real file system; the others are kept in memory on both sides."""

    name: str
    mode: str
    block: int
    depth: int
    must: float
    aim: float
    flush_every: int = 0

    @property
    def reads(self) -> bool:
        return self.mode.endswith("read")

    @property
    def durable(self) -> bool:
        return self.flush_every > 0

    @property
    def unit(self) -> str:
        return "MiB/s" if self.block >= MIB else "IOPS"


JOBS = (
    Job("4K randwrite QD1", "randwrite", 4 * KIB, 1, 2.0, 4.0),
    Job("4K randwrite QD32", "randwrite", 4 * KIB, 32, 2.5, 5.0),
    Job("4K randread QD1", "randread", 4 * KIB, 1, 2.5, 6.0),
    Job("4K randread QD32", "randread", 4 * KIB, 32, 6.0, 12.0),
    Job("1M write QD4", "write", MIB, 4, 1.3, 2.0),
    Job("1M read QD4", "read", MIB, 4, 3.0, 6.0),
    Job("4K randwrite QD1, fsync each", "randwrite", 4 * KIB, 1, 1.3, 2.0, 1),
    Job("4K randwrite QD32, fsync 32", "randwrite", 4 * KIB, 32, 1.3, 2.0, 32),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run. `rate` in the job's unit; latencies and processor time in microseconds, the latter
    for each request. `drain`: seconds of the flush at the end."""

    rate: float
    p50: float
    p99: float
    requests: int
    fio_us: float
    client_us: float
    servers_us: float
    drain: float

    @property
    def mirror_us(self) -> float:
        """Of client and servers together."""
        return self.client_us + self.servers_us


def processor_seconds(pids: tuple[int, ...]) -> float:
    """User and system time of the processes so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def fill(stack: Stack, size: int) -> None:
    """Writes the whole volume once, 1 MiB at a time, and flushes it. The contents differ from block
    to block and are alike for every stack."""
    pattern = os.urandom(MIB)
    with NbdClient(stack.uri) as client:
        if client.size < size:
            raise BrokenMirrorError(f"{stack.name} exports {client.size} bytes, not {size}")
        for at in range(0, size, MIB):
            shift = at // MIB % 4096
            client.write(at, pattern[shift:] + pattern[:shift])
        client.flush()


def command(job: Job, uri: str, size: int, seconds: float) -> list[str]:
    """fio's command line. Milliseconds, since fio takes a fraction of a second for no limit."""
    words = ["fio", "--name=guest", "--ioengine=nbd", f"--uri={uri}", f"--rw={job.mode}"]
    words += [f"--bs={job.block}", f"--iodepth={job.depth}", f"--size={size}", "--thread"]
    words += [
        f"--runtime={round(seconds * 1000)}ms",
        "--time_based",
        "--norandommap",
        "--randrepeat=0",
    ]
    words += ["--percentile_list=50:99", "--output-format=json", "--group_reporting"]
    words += ["--refill_buffers=0", "--scramble_buffers=1"]
    if job.flush_every:
        words.append(f"--fsync={job.flush_every}")
    return words


def run(
    job: Job, stack: Stack, size: int, seconds: float, words: Sequence[str] | None = None
) -> Run:
    """One run of the job against a stack that was filled; `words` are another command line than
    `command` gives."""
    with NbdClient(stack.uri) as client:
        client_before = processor_seconds(stack.client)
        servers_before = processor_seconds(stack.servers)
        try:
            found = subprocess.run(
                words or command(job, stack.uri, size, seconds),
                capture_output=True,
                text=True,
                timeout=seconds + SPARE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BrokenMirrorError(f"fio did not end against {stack.name}: {job.name}") from None
        began = time.perf_counter()
        client.flush()
        drain = time.perf_counter() - began
    client_used = processor_seconds(stack.client) - client_before
    servers_used = processor_seconds(stack.servers) - servers_before
    if found.returncode:
        text = (found.stderr or found.stdout).strip()[-1000:]
        raise BrokenMirrorError(f"fio failed against {stack.name}, {job.name}: {text}")
    return outcome(job, found.stdout, drain, client_used, servers_used)


def outcome(job: Job, text: str, drain: float, client_used: float, servers_used: float) -> Run:
    """What fio's report says, with what was measured beside it: `drain` and processor seconds."""
    # Warnings of fio may come before the document.
    report: Any = json.loads(text[text.index("{") :])["jobs"][0]
    side = report["read" if job.reads else "write"]
    requests = side["total_ios"]
    if report["error"] or not requests:
        raise BrokenMirrorError(f"fio did nothing in {job.name}: error {report['error']}")
    seconds = side["runtime"] / 1000 + drain
    rate = requests / seconds
    if job.unit == "MiB/s":
        rate *= job.block / MIB
    latency = side["clat_ns"]["percentile"]
    fio_seconds = (report["usr_cpu"] + report["sys_cpu"]) / 100 * report["job_runtime"] / 1000
    scale = 1e6 / requests
    return Run(
        rate=rate,
        p50=latency["50.000000"] / 1000,
        p99=latency["99.000000"] / 1000,
        requests=requests,
        fio_us=fio_seconds * scale,
        client_us=client_used * scale,
        servers_us=servers_used * scale,
        drain=drain,
    )
