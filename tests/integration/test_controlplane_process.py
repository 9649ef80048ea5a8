"""The `controlplane` command as a process: its ready line, its stop, and its refusals to start."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stairlib.rpc.channel import open_channel
from stairwell.controlplane.v1 import instance_service_pb2 as pb
from stairwell.controlplane.v1 import instance_service_pb2_grpc as pb_grpc

pytestmark = pytest.mark.processes
SECONDS = 30.0


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "controlplane", "run", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ready(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(SECONDS):
        line = (await process.stdout.readline()).decode()
    found = re.match(r"controlplane ready on (\S+) ", line)
    assert found, line
    return found.group(1)


async def test_it_serves_without_a_vmmd_and_stops_on_sigterm(tmp_path: Path) -> None:
    async with started("127.0.0.1:0", "--vmmd", "127.0.0.1:1", "--data", str(tmp_path)) as process:
        address = await ready(process)
        async with open_channel(address) as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=SECONDS
            )
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            instances = pb_grpc.InstanceServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await instances.CreateInstance(
                    pb.CreateInstanceRequest(name="crub"), timeout=SECONDS
                )
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "vmmd at 127.0.0.1:1" in (caught.value.details() or "")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SECONDS):
            assert await process.wait() == 0


async def test_a_second_one_on_the_same_state_is_told_why_not(tmp_path: Path) -> None:
    async with started("127.0.0.1:0", "--data", str(tmp_path)) as first:
        await ready(first)
        async with started("127.0.0.1:0", "--data", str(tmp_path)) as second:
            _, errors = await asyncio.wait_for(second.communicate(), SECONDS)
            assert second.returncode == 1
            assert b"another control plane uses" in errors
            assert b"Traceback" not in errors


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with started(address, "--data", str(tmp_path)) as process:
            _, errors = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 1
    assert f"{address} is in use".encode() in errors
    assert b"Traceback" not in errors
