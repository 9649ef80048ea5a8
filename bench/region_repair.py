"""A repair between two daemons, beside `cp` of the same files.

The target is driven over its data connection as the upstairs does it: its extents that have not
the source's stamps are marked, copied a few at a time, and made whole by a flush. Timed from the
marks to the end of that flush, when everything is durable. `cp` copies the source's files, and
`sync` makes the copies durable; that is timed as well. Both read what is in the page cache.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections import deque
from contextlib import ExitStack

import numpy as np
import uvloop
from figures import Figure
from region_daemon import (
    EXTENTS,
    OWNER,
    WRITTEN_BYTES,
    daemon,
    processor_seconds,
    written_over,
)
from region_engine import BLOCK, EXTENT_BLOCKS, definition_of

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


def copied_by_cp(source, copy):
    """Seconds of cp of the region's files: with the copies on the medium, and until cp ended."""
    copy.mkdir()
    files = sorted(source.iterdir())
    began = time.perf_counter()
    # No reflinks: a copy on the same medium that shares its blocks is none.
    subprocess.run(["cp", "--reflink=never", "--sparse=auto", *files, copy], check=True)
    unsynced = time.perf_counter() - began
    subprocess.run(["sync", *(copy / file.name for file in files), copy], check=True)
    seconds = time.perf_counter() - began
    shutil.rmtree(copy)
    return seconds, unsynced


def repair_seconds(source, directory, extents):
    """Of a new region's repair, by the clock, and of the target's processor time."""
    target = directory / "target"
    Region.create(FileDisk(target), definition_of(extents)).close()
    with daemon(target) as (address, process, _):
        before = processor_seconds(process.pid)
        seconds, copied = uvloop.run(repaired(source, address, extents))
        busy = processor_seconds(process.pid) - before
    if copied != WRITTEN_BYTES:
        raise SystemExit(f"the repair copied {copied} bytes, not {WRITTEN_BYTES}")
    shutil.rmtree(target)
    return seconds, busy


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
    bare = [
        Figure(f"  {name}, rate", "cp alone: its copies are not durable, the repair's are")
        for name, _, _ in SOURCES
    ]
    busy = [
        Figure(f"  processor seconds of {end}, {SOURCES[0][0]}", "")
        for end in ("the source", "the target")
    ]
    speed = Figure(f"  MiB a second, {SOURCES[0][0]}", "")
    with ExitStack() as stack:
        sources = []
        for number, (_, extents, within) in enumerate(SOURCES):
            path = directory / f"source-{number}"
            written_over(path, extents, WRITTEN_BYTES, within=within)
            address, process, _ = stack.enter_context(daemon(path))
            sources.append((path, address, process.pid, extents))
        for number in range(-1, rounds):
            repairs, used = [], []
            for rate, beside, (path, address, pid, extents) in zip(
                rates, bare, sources, strict=True
            ):
                plain, unsynced = copied_by_cp(path, directory / "copy")
                before = processor_seconds(pid)
                seconds, target = repair_seconds(address, directory, extents)
                repairs.append(seconds)
                used.append((processor_seconds(pid) - before, target))
                if number >= 0:
                    rate.values.append(plain / seconds)
                    beside.values.append(unsynced / seconds)
            if number < 0:
                continue  # the first round pays for memory that is used for the first time
            for figure, seconds in zip(times, repairs[1:], strict=True):
                figure.values.append(seconds / repairs[0])
            for figure, seconds in zip(busy, used[0], strict=True):
                figure.values.append(seconds)
            speed.values.append(WRITTEN_BYTES / (1 << 20) / repairs[0])
    yield [*rates, *bare, *times, *busy, speed]
    for path, _, _, _ in sources:
        shutil.rmtree(path)
