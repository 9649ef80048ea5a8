"""The `downstaird` command as users start it: its life, its errors, and what a kill leaves
behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from contextlib import asynccontextmanager

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stairlib.model.context import plain_contexts
from stairlib.rpc.channel import open_channel
from stairlib.wire import frame as wire
from stairlib.wire.frame import FrameKind, OpKind
from stairwell.downstairs.v1 import block_service_pb2 as block_pb
from stairwell.downstairs.v1 import block_service_pb2_grpc as block_grpc
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from stairwell.downstairs.v1 import region_service_pb2_grpc as region_grpc

pytestmark = pytest.mark.processes

BLOCK = 4096
GEOMETRY = ("--block-size", "4096", "--extent-size", "256", "--extent-count", "8")
SECONDS = 30
COMMAND = (sys.executable, "-m", "downstaird")


def downstaird(*arguments, timeout=SECONDS):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def create(directory, *more):
    done = downstaird("create", "-d", directory, "-u", uuid.uuid4(), *GEOMETRY, *more)
    assert done.returncode == 0, done.stderr
    return directory


class Daemon:
    """A daemon of its own process."""

    def __init__(self, process, line):
        self.process = process
        words = line.split()
        assert words[0] == "ready"
        self.port = int(words[1].rpartition(":")[2])
        self.address = f"127.0.0.1:{self.port}"
        self.facts = dict(word.split("=", 1) for word in words[2:])

    async def stop(self, number=signal.SIGTERM):
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), SECONDS)


@asynccontextmanager
async def running(directory, *more, runtime):
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        "run",
        "-d",
        str(directory),
        "-p",
        "0",
        "-a",
        "127.0.0.1",
        *more,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
    )
    try:
        line = await asyncio.wait_for(process.stdout.readline(), SECONDS)
        yield Daemon(process, line.decode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def session(daemon, upstairs, generation=1, *, unix=False):
    """A session and `do(ops, contexts, payload)`, which returns the reply frame of one request."""
    async with open_channel(daemon.address) as channel:
        answer = await block_grpc.BlockServiceStub(channel).OpenSession(
            block_pb.OpenSessionRequest(
                upstairs_id=str(upstairs),
                session_id=str(uuid.uuid4()),
                generation=generation,
                data_versions=[wire.DATA_VERSION],
            ),
            timeout=SECONDS,
        )
    if unix:
        reader, writer = await asyncio.open_unix_connection(answer.data_unix_path)
    else:
        host, _, port = answer.data_address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))

    async def receive():
        head = await asyncio.wait_for(reader.readexactly(wire.HEADER_BYTES), SECONDS)
        return wire.decode(head + await reader.readexactly(wire.frame_length(head) - len(head)))

    async def do(*ops, **more):
        writer.writelines(wire.encode(FrameKind.REQUEST, list(ops), **more))
        frame = await receive()
        assert frame.kind is FrameKind.REPLY
        assert not frame.ops["status"].any(), frame.blob(0)
        return frame

    hello = wire.pack_op(0, OpKind.NOOP, blob_bytes=len(answer.token))
    writer.writelines(wire.encode(FrameKind.HELLO, [hello], blobs=[answer.token]))
    assert (await receive()).kind is FrameKind.WELCOME
    try:
        yield do
    finally:
        writer.close()


def pattern(seed, count=1):
    return np.random.default_rng(seed).bytes(count * BLOCK)


async def write(do, job, offset, data):
    await do(
        wire.pack_op(job, OpKind.WRITE, offset=offset, length=len(data) // BLOCK),
        contexts=plain_contexts(data, BLOCK),
        payload=[data],
    )


@pytest.mark.parametrize("unix", [False, True])
async def test_what_was_flushed_survives_a_kill(tmp_path, unix):
    region, upstairs = create(tmp_path / "r"), uuid.uuid4()
    async with (
        running(region, runtime=tmp_path) as daemon,
        session(daemon, upstairs, unix=unix) as do,
    ):
        for n in range(40):
            await write(do, n, n * 50, pattern(n, 1 + n % 3))
        await write(do, 50, 1024, pattern(777, 256))
        await do(wire.pack_op(51, OpKind.FLUSH, number=5, generation=1))
        await write(do, 52, 0, pattern(999))
        assert await daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    async with (
        running(region, runtime=tmp_path) as daemon,
        session(daemon, upstairs, 2) as do,
    ):
        for n in range(1, 20):
            count = 1 + n % 3
            frame = await do(wire.pack_op(n, OpKind.READ, offset=n * 50, length=count))
            assert frame.payload == pattern(n, count)
        frame = await do(wire.pack_op(60, OpKind.READ, offset=1024, length=256))
        assert frame.payload == pattern(777, 256)
        first = await do(wire.pack_op(61, OpKind.READ, offset=0, length=1))
        assert bytes(first.payload) in {pattern(0), pattern(999)}
        assert await daemon.stop() == 0
    verified = downstaird("verify", "-d", region)
    assert verified.returncode == 0, verified.stderr
    assert ", 0 bad" in verified.stdout


async def test_it_is_healthy_until_it_is_told_to_stop(tmp_path):
    region = create(tmp_path / "r")
    async with running(region, runtime=tmp_path) as daemon:
        async with open_channel(daemon.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "stairwell.downstairs.v1.BlockService"):
                answer = await health.Check(
                    health_pb2.HealthCheckRequest(service=service), timeout=SECONDS
                )
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            stub = region_grpc.RegionServiceStub(channel)
            answer = await stub.GetRegion(region_pb.GetRegionRequest(), timeout=SECONDS)
            assert answer.region.id == daemon.facts["region"]
            assert answer.region.geometry.extent_count == 8
        assert await daemon.stop() == 0
    assert not list(tmp_path.glob("stairwell-*/*.sock"))


async def test_a_region_is_served_once(tmp_path):
    region = create(tmp_path / "r")
    async with running(region, runtime=tmp_path):
        second = downstaird("run", "-d", region, "-p", "0")
        assert second.returncode == 1
        assert "in use" in second.stderr
        assert "Traceback" not in second.stderr
        assert downstaird("verify", "-d", region).returncode == 1


def test_a_port_in_use_is_said_in_a_sentence(tmp_path):
    region = create(tmp_path / "r")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for flags in (("-p", port), ("-p", 0, "--data-port", port)):
            done = downstaird("run", "-d", region, "-a", "127.0.0.1", *flags)
            assert done.returncode == 1
            assert str(port) in done.stderr
            assert "Traceback" not in done.stderr
            assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("create", "-d", "DIR", "-u", "nonsense"), "--uuid 'nonsense' is not a UUID"),
        (("create", "-d", "DIR"), "--uuid is needed"),
        (("create", "-d", "DIR", "-u", "ID", "--block-size", "1536"), "--block-size: 1536"),
        (("create", "-d", "DIR", "-u", "ID", "--block-size", "65536"), "--block-size: 65536"),
        (("create", "-d", "DIR", "-u", "ID", "--extent-size", "0"), "--extent-size:"),
        (("create", "-d", "DIR", "-u", "ID", "--extent-count", "0"), "--extent-count:"),
        (("create", "-d", "FILE", "-u", "ID"), "not a directory"),
        (("run", "-d", "DIR"), "not a region directory"),
        (("run", "-d", "MISSING"), "not a region directory"),
        (("run", "-d", "DIR", "-p", "70000"), "--port"),
        (("verify", "-d", "DIR"), "not a region directory"),
        (("info", "-d", "DIR"), "not a region directory"),
        (("dump", "-d", "DIR"), "not a region directory"),
    ],
)
def test_bad_input_is_a_sentence_and_changes_nothing(tmp_path, arguments, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    names = {
        "DIR": tmp_path / "empty",
        "FILE": tmp_path / "file",
        "MISSING": tmp_path / "missing",
        "ID": uuid.uuid4(),
    }
    done = downstaird(*(names.get(word, word) for word in arguments))
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "missing").exists()


def test_a_region_is_created_once(tmp_path):
    region = create(tmp_path / "r")
    before = downstaird("info", "-d", region, "--output", "json").stdout
    again = downstaird("create", "-d", region, "-u", uuid.uuid4(), *GEOMETRY)
    assert again.returncode == 1
    assert "already" in again.stderr
    assert downstaird("info", "-d", region, "--output", "json").stdout == before
    facts = json.loads(before)
    assert (facts["block_size"], facts["owner"]) == (4096, None)
    assert facts["stored_bytes"] < 1 << 20


async def test_run_creates_the_region_once_and_then_insists_on_it(tmp_path):
    region, flags = tmp_path / "r", ("--create", "-u", str(uuid.uuid4()), *GEOMETRY)
    for _ in range(2):
        async with running(region, *flags, runtime=tmp_path) as daemon:
            assert daemon.facts["region"] == flags[2]
            assert await daemon.stop() == 0
    other = downstaird("run", "-d", region, "-p", 0, "--create", "-u", uuid.uuid4(), *GEOMETRY)
    assert other.returncode == 1
    assert flags[2] in other.stderr


async def test_dump_tells_equal_regions_from_different_ones(tmp_path):
    regions, upstairs = [create(tmp_path / name) for name in "ab"], uuid.uuid4()
    for number, region in enumerate(regions):
        async with (
            running(region, runtime=tmp_path) as daemon,
            session(daemon, upstairs) as do,
        ):
            await write(do, 1, 0, pattern(1))
            await do(wire.pack_op(2, OpKind.FLUSH, number=1, generation=1))
            if number:
                await write(do, 3, 600, pattern(2))
                await do(wire.pack_op(4, OpKind.FLUSH, number=2, generation=1))
            assert await daemon.stop() == 0
    same = downstaird("dump", "-d", regions[0], "-d", regions[0])
    assert same.returncode == 0
    different = downstaird("dump", "-d", regions[0], "-d", regions[1], "-o")
    assert different.returncode == 1
    assert "1 of 8 extents differ" in different.stdout
    assert different.stdout.count("<---") == 1


def test_help_and_version_answer():
    assert "downstaird run -d" in downstaird("--help").stdout
    assert "--advertise" in downstaird("run", "--help").stdout
    version = downstaird("version")
    assert version.returncode == 0
    assert f"data protocol {wire.DATA_VERSION}" in version.stdout
