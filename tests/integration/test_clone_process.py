"""`downstaird clone` as users run it: from a process to a directory, and killed in the middle."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import uuid
from contextlib import asynccontextmanager

import numpy as np
import pytest

from downstaird.config import CreateOptions
from downstaird.regions import create_region, open_region
from stairlib.model.context import plain_contexts
from stairlib.model.geometry import Geometry
from stairlib.rpc.server import RpcServer
from stairlib.telemetry.tracing import Tracing

pytestmark = pytest.mark.processes

GEOMETRY = Geometry(4096, 2048, 16)  # 128 MiB
SECONDS = 60
COMMAND = (sys.executable, "-m", "downstaird")


def downstaird(*arguments):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.fixture
def region(tmp_path):
    """A directory with a region of which seven eighths are written."""
    place = tmp_path / "source"
    create_region(CreateOptions(place, uuid.uuid4(), GEOMETRY, cipher=""))
    engine = open_region(place)
    for extent in range(14):
        data = np.random.default_rng(extent).bytes(GEOMETRY.extent_bytes)
        engine.write(extent * 2048, plain_contexts(data, 4096), data)
        work = engine.begin_flush(extent + 1, 1)
        work.run()
        engine.finish_flush(work, None)
    engine.close()
    return place


@asynccontextmanager
async def serving(place):
    """The address of a daemon that serves the region read-only."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "run", "-d", str(place), "-p", "0", "-a", "127.0.0.1", "--mode", "ro",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), SECONDS)
        yield line.decode().split()[1]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def clone(place, region_id, address):
    """The running command."""
    return await asyncio.create_subprocess_exec(
        *COMMAND, "clone", "-d", str(place), "-u", str(region_id), "--source", address,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def ended(process):
    out, err = await asyncio.wait_for(process.communicate(), SECONDS)
    return process.returncode, out.decode(), err.decode()


async def some_is_copied(place, process):
    """Waits until the clone has written some MiB."""
    data = place / "data"
    async with asyncio.timeout(SECONDS):
        while not data.exists() or data.stat().st_blocks * 512 < 8 << 20:
            assert process.returncode is None, "it ended before it could be stopped"
            await asyncio.sleep(0.005)


async def test_a_clone_is_made_and_is_equal(region, tmp_path):
    place = tmp_path / "clone"
    async with serving(region) as address:
        status, out, err = await ended(await clone(place, uuid.uuid4(), address))
        assert (status, err) == (0, "")
        assert "112.0 MiB copied, equal and durable" in out
        async with serving(place):
            pass
    compared = downstaird("dump", "-d", region, "-d", place, "-o")
    assert compared.returncode == 0, compared.stdout
    assert downstaird("verify", "-d", place).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_one_that_was_stopped_is_no_region_and_goes_on(region, tmp_path, number):
    place, region_id = tmp_path / "clone", uuid.uuid4()
    async with serving(region) as address:
        process = await clone(place, region_id, address)
        await some_is_copied(place, process)
        process.send_signal(number)
        status, _, err = await ended(process)
        assert status == (-number if number == signal.SIGKILL else 1)
        if number == signal.SIGTERM:
            assert "run the same command again" in err
        for command in ("run", "info", "verify"):
            refused = downstaird(command, "-d", place)
            assert refused.returncode == 1
            assert "unfinished clone" in refused.stderr
        status, _, err = await ended(await clone(place, region_id, address))
        assert (status, err) == (0, "")
    compared = downstaird("dump", "-d", region, "-d", place, "-o")
    assert compared.returncode == 0, compared.stdout
    assert downstaird("verify", "-d", place).returncode == 0


async def test_a_source_that_is_no_downstairs(tmp_path):
    other = RpcServer("127.0.0.1:0", [], Tracing("other", "here"))
    await other.start()
    try:
        status, _, err = await ended(
            await clone(tmp_path / "clone", uuid.UUID(int=9), other.address)
        )
    finally:
        await other.stop(0)
    assert status == 1
    assert f"what answers at {other.address} is not a downstairs" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "clone").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--source", "127.0.0.1:1"), "--uuid is needed"),
        (("-u", "no", "--source", "127.0.0.1:1"), "'no' is not a UUID"),
        (("-u", str(uuid.UUID(int=9)), "--source", "nowhere"), "nowhere"),
        (("-u", str(uuid.UUID(int=9)), "--source", "127.0.0.1:1"), "127.0.0.1:1"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, arguments, text):
    done = downstaird("clone", "-d", tmp_path / "clone", *arguments)
    assert done.returncode == 1
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "clone").exists()
