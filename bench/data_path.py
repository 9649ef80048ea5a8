"""What one downstairs' data connection costs, beside plain file I/O in the same minute.

    .venv/bin/python bench/data_path.py [--dir DIR] [--seconds S]

Starts one downstaird in a temporary directory and drives its data connection as the upstairs does,
over the unix socket and over TCP, interleaved with the same I/O done by pwrite, pread and fdatasync
on a file beside it. Prints the median over the rounds of (connection / plain file in the same
round). Absolute figures of a shared machine mean nothing, which is why none is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import uvloop

from stairlib.model.context import plain_contexts
from stairlib.rpc.channel import open_channel
from stairlib.wire.frame import DATA_VERSION, FrameKind, OpKind, encode, pack_op
from stairwell.downstairs.v1 import block_service_pb2 as block_pb
from stairwell.downstairs.v1 import block_service_pb2_grpc as block_grpc
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from vmmd.upstairs.shell.transport import connect

BLOCK = 4096
EXTENT_BLOCKS, EXTENTS = 16384, 8
SPAN_BLOCKS = 64 << 8  # 64 MiB in use: page cache on both sides
ROUNDS = 7
# name, op, blocks, in flight, ops to a flush (0: never)
JOBS = (
    ("4K write", OpKind.WRITE, 1, 32, 0),
    ("4K write, flush each 32", OpKind.WRITE, 1, 32, 32),
    ("4K read", OpKind.READ, 1, 32, 0),
    ("1M write", OpKind.WRITE, 256, 4, 0),
    ("1M write, flush each 4", OpKind.WRITE, 256, 4, 4),
    ("1M read", OpKind.READ, 256, 4, 0),
)


class Client:
    """One session; counts replies."""

    def __init__(self):
        self.welcome = asyncio.get_running_loop().create_future()
        self.connection = None
        self.replied = None
        self.left = 0
        self.job = 0

    def welcomed(self):
        self.welcome.set_result(None)

    def noticed(self, text):
        raise SystemExit(f"the daemon ended the session: {text}")

    def lost(self, reason):
        if self.left:
            self.replied.set_exception(RuntimeError(reason))

    def received(self, frame):
        assert not frame.ops["status"].any(), "an op failed"
        self.left -= len(frame.ops)
        if not self.left:
            self.replied.set_result(None)

    async def batch(self, kind, blocks, places, *, flush):
        """A frame for each MiB of I/O at `places`, as the upstairs would send them at once."""
        ops = [(kind, place, blocks) for place in places]
        self.left = len(ops) + flush
        self.replied = asyncio.get_running_loop().create_future()
        step = max(1, 256 // blocks)
        for at in range(0, len(ops), step):
            part = ops[at : at + step]
            table = [pack_op(self._next(), k, offset=o, length=n) for k, o, n in part]
            if kind is OpKind.READ:
                self.connection.send(encode(FrameKind.REQUEST, table))
            else:
                data = DATA[: len(part) * blocks * BLOCK]
                contexts = plain_contexts(data, BLOCK)
                frame = encode(FrameKind.REQUEST, table, contexts=contexts, payload=[data])
                self.connection.send(frame)
        if flush:
            number = self._next()
            op = pack_op(number, OpKind.FLUSH, generation=1, number=number)
            self.connection.send(encode(FrameKind.REQUEST, [op]))
        await self.replied

    def _next(self):
        self.job += 1
        return self.job


DATA = os.urandom(1 << 20)


def places(count, blocks, turn):
    """Spread, the same for every candidate."""
    return [(turn * count + i) * blocks * 7919 % (SPAN_BLOCKS - blocks) for i in range(count)]


async def over(client, job, seconds):
    """Ops per second through the connection."""
    _, kind, blocks, depth, per_flush = job
    began, done, turn = time.perf_counter(), 0, 0
    while time.perf_counter() - began < seconds:
        await client.batch(kind, blocks, places(depth, blocks, turn), flush=bool(per_flush))
        done, turn = done + depth, turn + 1
    return done / (time.perf_counter() - began)


def plain(descriptor, job, seconds):
    """Ops per second straight to the file."""
    _, kind, blocks, depth, per_flush = job
    began, done, turn = time.perf_counter(), 0, 0
    while time.perf_counter() - began < seconds:
        for place in places(depth, blocks, turn):
            if kind is OpKind.READ:
                os.pread(descriptor, blocks * BLOCK, place * BLOCK)
            else:
                os.pwrite(descriptor, memoryview(DATA)[: blocks * BLOCK], place * BLOCK)
        if per_flush:
            os.fdatasync(descriptor)
        done, turn = done + depth, turn + 1
    return done / (time.perf_counter() - began)


async def open_client(address, *, unix):
    """A session; the one before ends."""
    channel = open_channel(address)
    opened = await block_grpc.BlockServiceStub(channel).OpenSession(
        block_pb.OpenSessionRequest(
            upstairs_id=str(uuid.UUID(int=1)),
            session_id=str(uuid.UUID(int=1)),
            generation=1,
            geometry=region_pb.Geometry(
                block_size=BLOCK, extent_size=EXTENT_BLOCKS, extent_count=EXTENTS
            ),
            data_versions=[DATA_VERSION],
        ),
        timeout=10,
        wait_for_ready=True,
    )
    if not unix:
        opened.data_unix_path = ""
    client = Client()
    client.connection = await connect(opened, channel, client)
    await client.welcome
    return client, channel


async def measure(address, directory, seconds):
    """Prints a line per job."""
    descriptor = os.open(directory / "plain", os.O_RDWR | os.O_CREAT)
    for start in range(0, SPAN_BLOCKS * BLOCK, len(DATA)):
        os.pwrite(descriptor, DATA, start)
    client, channel = await open_client(address, unix=True)
    for start in range(0, SPAN_BLOCKS, 256):
        await client.batch(OpKind.WRITE, 256, [start], flush=start % 4096 == 0)
    print(f"{'ops per second, plain file = 1':34}{'unix':>8}{'TCP':>8}")
    for job in JOBS:
        ratios = {True: [], False: []}
        for _ in range(ROUNDS):
            base = plain(descriptor, job, seconds)
            for unix in (True, False):
                client.connection.close("done")
                await channel.close()
                client, channel = await open_client(address, unix=unix)
                ratios[unix].append(await over(client, job, seconds) / base)
        medians = [statistics.median(ratios[unix]) for unix in (True, False)]
        print(f"{job[0]:34}{medians[0]:8.3f}{medians[1]:8.3f}", flush=True)
    client.connection.close("done")
    await channel.close()
    os.close(descriptor)


def main():
    """One command; leaves nothing behind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, help="where to keep the data meanwhile")
    parser.add_argument("--seconds", type=float, default=0.3, help="per measurement")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="data-path-", dir=options.dir) as name:
        directory = Path(name)
        command = [Path(sys.executable).parent / "downstaird", "run", "--create"]
        command += ["-d", directory / "region", "-p", "0", "--address", "127.0.0.1"]
        command += ["-u", str(uuid.uuid4()), "--block-size", str(BLOCK)]
        command += ["--extent-size", str(EXTENT_BLOCKS), "--extent-count", str(EXTENTS)]
        command += ["--log-level", "warning"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
            try:
                ready = daemon.stdout.readline().split()
                uvloop.run(measure(ready[1], directory, options.seconds))
            finally:
                daemon.terminate()


if __name__ == "__main__":
    main()
