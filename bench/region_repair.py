"""A repair between two daemons, beside `cp` of the same files.

The target is driven over its data connection as the upstairs does it: its extents that have not
the source's stamps are marked, copied a few at a time, and made whole by a flush. Timed from the
marks to the end of that flush, when everything is durable. `cp` copies the source's files, and
`sync` makes the copies durable; that is timed as well. Both read what is in the page cache. Told
without a bound: the same beside a plain copy through a socket (`plain_copy`), and the processor
time of both daemons beside that of `cp`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import uvloop
from figures import Figure
from plain_copy import plain_copy
from region_daemon import EXTENTS, OWNER, WRITTEN_BYTES, daemon, written_over
from region_engine import BLOCK, EXTENT_BLOCKS, definition_of

from downstaird.core.chunk_map import DATA_NAME
from downstaird.core.region import Region
from downstaird.store.files import FileDisk
from stairlib.rpc.channel import open_channel
from stairlib.wire.frame import (
    DATA_VERSION,
    FLUSH_KEEPS_MARKS,
    FrameKind,
    OpKind,
    encode,
    extent_marks,
    pack_op,
)
from stairwell.downstairs.v1 import block_service_pb2 as block_pb
from stairwell.downstairs.v1 import block_service_pb2_grpc as block_grpc
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from vmmd.upstairs.core.limits import COPIES_IN_FLIGHT
from vmmd.upstairs.shell.transport import connect

SECONDS_MAX = 120


class Client:
    """One session; ops by their job numbers."""

    def __init__(self):
        loop = asyncio.get_running_loop()
        self.welcome = loop.create_future()
        self.connection = None
        self.waiting = {}
        self.job = 0

    def welcomed(self):
        self.welcome.set_result(None)

    def noticed(self, text):
        self.lost(f"the daemon ended the session: {text}")

    def lost(self, reason):
        for future in self.waiting.values():
            if not future.done():
                future.set_exception(RuntimeError(reason))

    def received(self, frame):
        for index, op in enumerate(frame.ops):
            future = self.waiting.pop(int(op["job"]))
            if int(op["status"]):
                future.set_exception(RuntimeError(frame.text(index)))
            else:
                future.set_result(int(op["number"]))

    async def do(self, kind, *, blob=b"", **fields):
        """One op to its end; the number of its answer."""
        self.job += 1
        future = self.waiting[self.job] = asyncio.get_running_loop().create_future()
        op = pack_op(self.job, kind, blob_bytes=len(blob), **fields)
        self.connection.send(encode(FrameKind.REQUEST, [op], blobs=[blob]))
        return await asyncio.wait_for(future, SECONDS_MAX)


def proposal(extents):
    """A session of OWNER's, as the source has it recorded."""
    return block_pb.OpenSessionRequest(
        upstairs_id=str(OWNER),
        session_id=str(OWNER),
        generation=1,
        geometry=region_pb.Geometry(
            block_size=BLOCK, extent_size=EXTENT_BLOCKS, extent_count=extents
        ),
        data_versions=[DATA_VERSION],
    )


async def repaired(source, target, extents):
    """Seconds of a repair, and the bytes it copied."""
    async with open_channel(source) as there, open_channel(target) as here:
        ask = proposal(extents)
        facts = await block_grpc.BlockServiceStub(there).OpenSession(ask, timeout=10)
        opened = await block_grpc.BlockServiceStub(here).OpenSession(ask, timeout=10)
        client = Client()
        client.connection = await connect(opened, here, client, tls=None)
        await client.welcome
        stamps = [np.array([f.extent_generations, f.extent_flushes]) for f in (facts, opened)]
        wanted = np.flatnonzero((stamps[0] != stamps[1]).any(axis=0))
        began = time.perf_counter()
        copied = await repair(client, source, wanted)
        seconds = time.perf_counter() - began
        client.connection.close("done")
        return seconds, copied


async def repair(client, source, extents):
    """All of it: marks, copies, the flush that makes them whole."""
    marks = extent_marks(extents).tobytes()
    await client.do(OpKind.REPAIR_BEGIN, blob=marks)
    await client.do(OpKind.FLUSH, generation=1, number=1 << 20, flags=FLUSH_KEEPS_MARKS)
    where = {"address": source, "upstairs_id": str(OWNER), "generation": 1}
    blob = json.dumps(where).encode()
    left = deque(extents.tolist())
    copied = 0

    async def copy_some():
        nonlocal copied
        while left:
            extent = left.popleft()
            number = await client.do(OpKind.EXTENT_COPY, offset=extent, length=1, blob=blob)
            copied += number

    async with asyncio.TaskGroup() as group:
        for _ in range(COPIES_IN_FLIGHT):
            group.create_task(copy_some())
    await client.do(OpKind.FLUSH, generation=1, number=(1 << 20) + 1)
    await client.do(OpKind.REPAIR_END)
    return copied


def processor_seconds(pid):
    """What the process and its threads have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def copied_by_cp(source, copy):
    """Seconds of cp of the region's files, with the copies on the medium, and its processor
    time."""
    copy.mkdir()
    files = sorted(source.iterdir())
    used = os.times()
    began = time.perf_counter()
    # No reflinks: a copy on the same medium that shares its blocks is none.
    subprocess.run(["cp", "--reflink=never", "--sparse=auto", *files, copy], check=True)
    subprocess.run(["sync", *(copy / file.name for file in files), copy], check=True)
    seconds = time.perf_counter() - began
    now = os.times()
    shutil.rmtree(copy)
    spent = now.children_user - used.children_user + now.children_system - used.children_system
    return seconds, spent


def repair_seconds(source, source_pid, directory, extents):
    """Of a new region's repair, and the processor time of both daemons."""
    target = directory / "target"
    Region.create(FileDisk(target), definition_of(extents)).close()
    with daemon(target) as (address, process, _):
        pids = (source_pid, process.pid)
        used = sum(map(processor_seconds, pids))
        seconds, copied = uvloop.run(repaired(source, address, extents))
        used = sum(map(processor_seconds, pids)) - used
    if copied != WRITTEN_BYTES:
        raise SystemExit(f"the repair copied {copied} bytes, not {WRITTEN_BYTES}")
    shutil.rmtree(target)
    return seconds, used


# 1 GiB of each is written: name, extents, and in how many of them.
FULL_EXTENTS = WRITTEN_BYTES // (EXTENT_BLOCKS * BLOCK)
SOURCES = (
    ("1 GiB, all written", FULL_EXTENTS, FULL_EXTENTS),
    ("100 GiB, its first GiB written", EXTENTS, FULL_EXTENTS),
    ("100 GiB, 1 MiB written in each of 1024 extents", EXTENTS, EXTENTS),
)


def measure(directory, rounds):
    """A region that is full, and two large ones with as much in them."""
    versus = "cp of the same files, then sync of the copies"
    bounds = (0.6, 0.6, None)
    rates = [
        Figure(f"repair of {name}, rate", versus, at_least=bound)
        for (name, _, _), bound in zip(SOURCES, bounds, strict=True)
    ]
    times = [
        Figure(f"  its time, {name}", f"repair of {SOURCES[0][0]}", at_most=bound)
        for (name, _, _), bound in zip(SOURCES[1:], (1.1, None), strict=True)
    ]
    name = SOURCES[0][0]
    speed = Figure(f"  MiB a second, {name}", "")
    floor = Figure(f"  its rate, {name}", "a plain copy of its data through a socket, in Python")
    work = Figure(f"  processor time of both daemons, {name}", "that of cp")
    with ExitStack() as stack:
        sources = []
        for number, (_, extents, within) in enumerate(SOURCES):
            path = directory / f"source-{number}"
            written_over(path, extents, WRITTEN_BYTES, within=within)
            address, process, _ = stack.enter_context(daemon(path))
            sources.append((path, address, process.pid, extents))
        for number in range(-1, rounds):
            copies, repairs, used = [], [], []
            for path, address, pid, extents in sources:
                copies.append(copied_by_cp(path, directory / "copy"))
                seconds, spent = repair_seconds(address, pid, directory, extents)
                repairs.append(seconds)
                used.append(spent)
            plain = plain_copy(sources[0][0] / DATA_NAME, directory / "plain")
            if number < 0:
                continue  # the first round pays for memory that is used for the first time
            for figure, (seconds, _), ours in zip(rates, copies, repairs, strict=True):
                figure.values.append(seconds / ours)
            for figure, seconds in zip(times, repairs[1:], strict=True):
                figure.values.append(seconds / repairs[0])
            speed.values.append(WRITTEN_BYTES / (1 << 20) / repairs[0])
            floor.values.append(plain / repairs[0])
            work.values.append(used[0] / copies[0][1])
    yield [*rates, *times, speed, floor, work]
    for path, *_ in sources:
        shutil.rmtree(path)
