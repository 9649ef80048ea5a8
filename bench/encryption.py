"""What encryption costs: each suite beside plain blocks, in the same minute.

    .venv/bin/python bench/encryption.py [--dir DIR] [--seconds S]

First the work on blocks alone, in one process: sealing and opening of frames as the upstairs does
it, and the check that a downstairs makes of every write. Then the whole path: for each suite a set
of three downstaird processes in a temporary directory, driven by an upstairs in this process, all
sets interleaved. Prints the median over the rounds of (suite / plain blocks in the same round), for
each block size. Absolute figures of a shared machine mean nothing, which is why none is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import uvloop

from stairlib.model.cipher import CIPHERS
from stairlib.model.construction import RegionOptions, RegionSpec, Secret
from stairlib.model.context import mismatches
from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.upstairs.core.codec import Encryption, Keyring, PlainCodec
from vmmd.upstairs.shell.runner import RegionUpstairs

BLOCK_SIZES = (512, 4096, 32768)
MIB = 1 << 20
SPAN_BYTES = 64 * MIB  # in use: page cache on all sides
ROUNDS = 7
KEY = os.urandom(32)
SUITES = ("", *CIPHERS)
# name, op, bytes of a request (None: one block), in flight
JOBS = (
    ("write, one block", BlockOp.WRITE, None, 32),
    ("read, one block", BlockOp.READ, None, 32),
    ("write, 1 MiB", BlockOp.WRITE, MIB, 4),
    ("read, 1 MiB", BlockOp.READ, MIB, 4),
)
WIDTH = 44


def show(text, ratios):
    """A line: the medians, suite by suite."""
    print(f"{text:{WIDTH}}" + "".join(f"{ratios[suite]:18.3f}" for suite in CIPHERS), flush=True)


def head(text):
    """What the columns are."""
    print(f"\n{text:{WIDTH}}" + "".join(f"{suite:>18}" for suite in CIPHERS))


def medians(rates):
    """Per suite, the median over the rounds of its rate to that of plain blocks."""
    return {
        suite: statistics.median(r / p for r, p in zip(rates[suite], rates[""], strict=True))
        for suite in CIPHERS
    }


# ---- blocks alone


def rate(call, seconds):
    """Calls per second."""
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        call()
        done += 1
    return done / (time.perf_counter() - began)


def codec_of(suite, block_size):
    """As the upstairs has it."""
    if not suite:
        return PlainCodec(block_size)
    return Keyring(Encryption(KEY, os.urandom), block_size).codec(suite, str(uuid.UUID(int=1)))


def calls_of(suite, block_size, size):
    """Name and call of each piece of work on a frame of `size` bytes."""
    codec = codec_of(suite, block_size)
    data = os.urandom(size)
    spans = [(7, size // block_size)]
    contexts, sealed = codec.seal(data, spans, 1)
    sealed = memoryview(bytes(sealed))
    assert codec.open(sealed, contexts, spans) == data
    return {
        "seal": lambda: codec.seal(data, spans, 1),
        "open": lambda: codec.open(sealed, contexts, spans),
        "check without the key": lambda: mismatches(
            sealed, contexts, block_size, encrypted=bool(suite)
        ),
    }


def measure_blocks(seconds):
    """Prints a line for each piece of work and size."""
    head("frames per second, plain blocks = 1")
    for block_size in BLOCK_SIZES:
        for size in (block_size, MIB):
            calls = {suite: calls_of(suite, block_size, size) for suite in SUITES}
            for name in calls[""]:
                rates = {suite: [] for suite in SUITES}
                for _ in range(ROUNDS):
                    for suite in SUITES:
                        rates[suite].append(rate(calls[suite][name], seconds / 10))
                blocks = "one block" if size == block_size else "1 MiB"
                show(f"{name}, {blocks} of {block_size}", medians(rates))


# ---- the whole path


class Members:
    """Three downstairs of one set."""

    def __init__(self, folder, suite, geometry):
        self.addresses = []
        self.processes = []
        for number in range(3):
            command = [Path(sys.executable).parent / "downstaird", "run", "--create"]
            command += ["-d", folder / str(number), "-p", "0", "--address", "127.0.0.1"]
            command += ["-u", str(uuid.uuid4()), "--block-size", str(geometry.block_size)]
            command += ["--extent-size", str(geometry.blocks_per_extent)]
            command += ["--extent-count", str(geometry.extent_count), "--log-level", "warning"]
            command += ["--encrypted", "--cipher", suite] if suite else []
            self.processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for process in self.processes:
            self.addresses.append(process.stdout.readline().split()[1])

    def end(self):
        """Stops them."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()
            process.stdout.close()


class Guest:
    """One set's upstairs with a guest that keeps it busy."""

    def __init__(self, members, suite, geometry, tracing):
        key = Secret(base64.b64encode(KEY).decode()) if suite else None
        options = RegionOptions(id=uuid.uuid4(), targets=tuple(members.addresses), key=key)
        self.upstairs = RegionUpstairs(RegionSpec(geometry, options, 1), tracing=tracing)
        self.block_size = geometry.block_size
        self.blocks = SPAN_BYTES // geometry.block_size
        self.turn = 0

    async def batch(self, op, places, length):
        """A batch of requests, to its end."""
        ended = asyncio.get_running_loop().create_future()
        left = len(places)

        def done(completions):
            nonlocal left
            for completion in completions:
                assert completion.status is BlockStatus.OK, completion.status
            left -= len(completions)
            if not left:
                ended.set_result(None)

        data = DATA[: length * self.block_size] if op is BlockOp.WRITE else None
        self.upstairs.submit(
            [Request(op, n, at, length, data) for n, at in enumerate(places)], done
        )
        await ended

    async def flush(self):
        """To its end."""
        await self.batch(BlockOp.FLUSH, [0], 0)

    async def fill(self):
        """Writes everything that is used."""
        length = MIB // self.block_size
        for at in range(0, self.blocks, 4 * length):
            await self.batch(BlockOp.WRITE, range(at, at + 4 * length, length), length)
        await self.flush()

    async def rate(self, job, seconds):
        """Requests per second; of writes, until they are durable on two members."""
        _, op, size, depth = job
        length = 1 if size is None else size // self.block_size
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            self.turn += 1
            places = [
                (self.turn * depth + n) * length * 7919 % (self.blocks - length)
                for n in range(depth)
            ]
            await self.batch(op, places, length)
            done += depth
        if op is BlockOp.WRITE:
            await self.flush()
        return done / (time.perf_counter() - began)


DATA = os.urandom(MIB)


async def measure_path(folder, block_size, seconds):
    """Prints a line for each job."""
    geometry = Geometry(block_size, 16 * MIB // block_size, SPAN_BYTES // (16 * MIB))
    tracing = Tracing("bench", "encryption")
    members = {suite: Members(folder / (suite or "plain"), suite, geometry) for suite in SUITES}
    try:
        guests = {suite: Guest(members[suite], suite, geometry, tracing) for suite in SUITES}
        for guest in guests.values():
            await guest.upstairs.activate(timeout_seconds=20)
            await guest.fill()
        for job in JOBS:
            rates = {suite: [] for suite in SUITES}
            for _ in range(ROUNDS):
                for suite in SUITES:
                    rates[suite].append(await guests[suite].rate(job, seconds))
            show(f"{job[0]}, blocks of {block_size}", medians(rates))
        for guest in guests.values():
            await guest.upstairs.deactivate()
            await guest.upstairs.close()
    finally:
        for each in members.values():
            each.end()
        tracing.shutdown()


def main():
    """One command; leaves nothing behind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, help="where to keep the data meanwhile")
    parser.add_argument("--seconds", type=float, default=0.3, help="per measurement")
    options = parser.parse_args()
    measure_blocks(options.seconds)
    head("requests per second, plain set = 1")
    for block_size in BLOCK_SIZES:
        with tempfile.TemporaryDirectory(prefix="encryption-", dir=options.dir) as name:
            uvloop.run(measure_path(Path(name), block_size, options.seconds))


if __name__ == "__main__":
    main()
