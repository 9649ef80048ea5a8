"""The commands on 100 GiB regions: how long create and open take, and what an idle daemon holds.

Three regions: one just created; one with 1 GiB written in places all over it; and one with every
block written. For the last, what is written is zeros, and the data file's writes are left out, so
that the file is one large hole, which reads as what was written; all else is as it always is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

from figures import Figure
from region_engine import BLOCK, CONTEXTS, DATA, EXTENT_BLOCKS, MIB, Opened, definition_of

from downstaird.core.chunk_map import DATA_NAME
from downstaird.core.engine import Ownership
from downstaird.core.region import Region
from downstaird.store.files import FileDisk
from stairlib.model.context import plain_contexts

EXTENTS = 1600  # of 64 MiB: 100 GiB
WRITTEN_BYTES = 1 << 30
PROGRAM = Path(sys.executable).parent / "downstaird"
OWNER = uuid.UUID(int=1)
RSS_MB_MAX = 90
SECONDS_MAX = 1.0


class HoleFile:
    """A file whose writes are left out; all else is the file's."""

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def pwritev(self, buffers, offset):
        end = offset + sum(map(len, buffers))
        assert end <= self._file.size(), "the engine grows the file before it writes"


class HoleDisk(FileDisk):
    """A directory whose data file stays a hole."""

    def open(self, name, **how):
        file = super().open(name, **how)
        return HoleFile(file) if name == DATA_NAME else file


def written_over(directory, extents, size, *, within):
    """A region that belongs to OWNER, with `size` bytes written, 1 MiB at a time and evenly over
    its first `within` extents."""
    opened = Opened(Region.create(FileDisk(directory), definition_of(extents)))
    opened.region.promote(Ownership(OWNER, OWNER, 1))
    pieces = size // MIB
    step = within * EXTENT_BLOCKS // pieces
    for index in range(pieces):
        opened.region.write(index * step, CONTEXTS, DATA)
        if index % 64 == 63:
            opened.flush()
        opened.checkpoint()
    opened.flush()
    opened.region.close()


def written_full(directory):
    """A region with every block written, with zeros."""
    opened = Opened(Region.create(HoleDisk(directory), definition_of(EXTENTS)))
    size = 4 * MIB
    zeros = bytes(size)
    contexts = plain_contexts(zeros, BLOCK)
    blocks = size // BLOCK
    for index, at in enumerate(range(0, EXTENTS * EXTENT_BLOCKS, blocks)):
        opened.region.write(at, contexts, zeros)
        if index % 16 == 15:
            opened.flush()
            opened.checkpoint()
    opened.flush()
    opened.region.close()


@contextmanager
def daemon(directory, *more):
    """A daemon that serves the directory, ready; its address, its process and how long it took. It
    is stopped as an operator would."""
    command = [PROGRAM, "run", "-d", directory, "-p", "0", "--address", "127.0.0.1"]
    command += ["--log-level", "warning", *more]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            words = process.stdout.readline().split()
            if words[:1] != ["ready"]:
                raise SystemExit(f"the daemon on {directory} did not start: see above")
            yield words[1], process, time.perf_counter() - began
        finally:
            process.terminate()
            process.wait()


def creation(directory):
    """Seconds of `downstaird create` for 100 GiB."""
    command = [PROGRAM, "create", "-d", directory, "-u", str(uuid.uuid4())]
    command += ["--block-size", str(BLOCK), "--extent-size", str(EXTENT_BLOCKS)]
    command += ["--extent-count", str(EXTENTS)]
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def bare_start():
    """Seconds in which Python and gRPC alone are there: what no engine can do anything about."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import grpc.aio, numpy, uvloop"], check=True)
    return time.perf_counter() - began


def memory(pid):
    """RSS and PSS in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kib = {name: int(value) for name, value in re.findall(r"(\w+): +(\d+) kB", text)}
    return kib["Rss"] * 1024 / 1e6, kib["Pss"] * 1024 / 1e6


def processor_seconds(pid):
    """What the process has used so far, its own and the kernel's for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def engine_open(directory):
    """Seconds in which the engine alone opens it."""
    began = time.perf_counter()
    region = Region.open(FileDisk(directory))
    seconds = time.perf_counter() - began
    region.close()
    return seconds


def measure(directory, rounds):
    """All figures of the daemon on 100 GiB regions."""
    yield create_figures(directory, rounds)
    one = directory / "one"
    written_over(one, EXTENTS, WRITTEN_BYTES, within=EXTENTS)
    yield open_figures("1 GiB of it written", one, rounds)
    shutil.rmtree(one)
    full = directory / "full"
    written_full(full)
    yield open_figures("all of it written", full, rounds)
    shutil.rmtree(full)


def create_figures(directory, rounds):
    """And those of the region that was created."""
    bound = f"{SECONDS_MAX:g} s; the whole command"
    created = Figure("create 100 GiB, seconds", bound, at_most=SECONDS_MAX)
    bare = Figure(
        "  Python with gRPC and numpy starts, seconds", "nothing: part of all that follow"
    )
    thin = directory / "thin"
    for _ in range(rounds):
        shutil.rmtree(thin, ignore_errors=True)
        bare.values.append(bare_start())
        created.values.append(creation(thin))
    figures = [bare, created, *open_figures("nothing written", thin, rounds)]
    shutil.rmtree(thin)
    return figures


def open_figures(what, directory, rounds):
    """Of a region that was stopped cleanly."""
    bound = f"{SECONDS_MAX:g} s; from the command to its ready line"
    ready = Figure(f"open 100 GiB, {what}, seconds", bound, at_most=SECONDS_MAX)
    used = Figure(
        f"  processor time of it, {what}, seconds", "the same, however loaded the machine is"
    )
    alone = Figure(f"  the engine's part, {what}, seconds", "", at_most=SECONDS_MAX)
    rss = Figure(
        f"RSS open and idle, {what}, MB", "118 MB of the Rust original", at_most=RSS_MB_MAX
    )
    pss = Figure(f"  PSS, {what}, MB", "RSS: pages shared with others count in part")
    for number in range(-1, rounds):
        with daemon(directory) as (_, process, seconds):
            busy = processor_seconds(process.pid)
            found = memory(process.pid)
        opened = engine_open(directory)
        if number < 0:
            continue  # the first start of a machine reads the programs from the medium
        ready.values.append(seconds)
        used.values.append(busy)
        alone.values.append(opened)
        rss.values.append(found[0])
        pss.values.append(found[1])
    return [ready, used, alone, rss, pss]
