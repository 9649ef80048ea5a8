"""A control plane of which only the judge is there, the real one, served from a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from controlplane.services.vcr import VcrServicer
from stairlib.rpc.server import RpcServer, Service
from stairlib.telemetry.tracing import Tracing
from stairwell.controlplane.v1 import vcr_service_pb2_grpc as pb_grpc

SECONDS = 20


def judge_service() -> Service:
    """VcrService as the daemon serves it."""
    return Service(
        "stairwell.controlplane.v1.VcrService",
        lambda server: pb_grpc.add_VcrServiceServicer_to_server(VcrServicer(), server),
    )


@contextmanager
def judge_plane() -> Iterator[int]:
    """The port at which the judge answers, on the loopback address."""
    ended: asyncio.Event
    loop = asyncio.new_event_loop()
    started = threading.Event()
    ports: list[int] = []

    async def serve() -> None:
        nonlocal ended
        ended = asyncio.Event()
        tracing = Tracing.configure("controlplane", "test")
        server = RpcServer("127.0.0.1:0", [judge_service()], tracing)
        await server.start()
        ports.append(int(server.address.rpartition(":")[2]))
        started.set()
        await ended.wait()
        await server.stop(0)
        tracing.shutdown()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(SECONDS), "the judge did not start"
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(SECONDS)
        loop.close()
