"""Bad bytes at every stage of a connection, silence, and too many of both: whoever sends them is
cut off, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import ssl
import struct
import time
import uuid

import pytest

from stairlib.model.geometry import Geometry
from stairlib.rpc import health_check
from stairlib.rpc import server as server_module
from stairlib.rpc.access import Role
from stairlib.rpc.authority import Authority, Wish
from stairlib.rpc.channel import open_channel
from stairlib.rpc.server import RpcServer, Service
from stairlib.rpc.tls import PeerTls, TlsFiles
from stairlib.telemetry.tracing import Tracing
from stairlib.wire.frame import FrameKind, encode, pack_op
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import disk_service_pb2_grpc as disk_grpc
from tests.contract.downstairs_set import DownstairsSet, until
from tests.contract.guest_calls import ok
from vmmd.block.backend import BlockOp
from vmmd.upstairs.core.slot_states import SlotState
from vmmd.upstairs.shell.runner import RegionUpstairs

HOST = "127.0.0.1"
NAME = "stairwell.controlplane.v1.DiskService"
SECONDS = 20.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


class Disks(disk_grpc.DiskServiceServicer):
    """One watch that goes on, and one question."""

    async def ListDisks(self, request, context):
        return disk_pb.ListDisksResponse()

    async def WatchDisk(self, request, context):
        while True:
            yield disk_pb.WatchDiskResponse()
            await asyncio.sleep(0.01)


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """One frame of HTTP/2."""
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def stages(chance: random.Random) -> list[bytes]:
    """What is sent: nothing of the protocol, then more and more of it, and then noise."""
    noise = chance.randbytes(chance.choice((1, 9, 100, 5000)))
    headers = frame(1, 4, 1, b"\x83\x86" + chance.randbytes(20))
    return [
        noise,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + noise,
        PREFACE[: chance.randrange(1, len(PREFACE))] + noise,
        PREFACE + noise,
        PREFACE + SETTINGS + noise,
        PREFACE + SETTINGS + headers + noise,
        # A frame longer than may be, and a length that never comes.
        PREFACE + SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1" + noise,
        PREFACE + SETTINGS + frame(0, 0, 1, noise),
        PREFACE + SETTINGS + frame(chance.randrange(256), chance.randrange(256), 3, noise),
        # A block of headers that goes on for ever.
        PREFACE + SETTINGS + frame(1, 0, 1, b"\x82") + 200 * frame(9, 0, 1, chance.randbytes(50)),
        # Streams that are opened and taken back at once.
        PREFACE + SETTINGS + b"".join(
            headers.replace(b"\0\0\0\1", struct.pack(">I", n), 1) + frame(3, 0, n, b"\0\0\0\x08")
            for n in range(1, 401, 2)
        ),
        PREFACE + SETTINGS + 500 * frame(6, 0, 0, bytes(8)) + noise,
    ]  # fmt: skip


async def send(port: int, content: bytes, context: ssl.SSLContext | None = None) -> None:
    """Sends it and waits a moment for what comes; however the connection ends is right."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        reader, writer = await asyncio.open_connection(HOST, port, ssl=context)
        try:
            writer.write(content)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    while await reader.read(1 << 16):
                        pass
        finally:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def serving(tls: TlsFiles | None = None):
    service = Service(NAME, lambda it: disk_grpc.add_DiskServiceServicer_to_server(Disks(), it))
    secure = tls.server() if tls is not None else None
    server = RpcServer(f"{HOST}:0", [service], Tracing("test", "here"), tls=secure)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


@pytest.fixture
def pki(tmp_path):
    return Authority.found(tmp_path / "pki", 30)


def issued(pki, name, role) -> TlsFiles:
    made = pki.issue(Wish(name, role), 30)
    return TlsFiles(str(made.certificate), str(made.key), str(pki.root))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("way", ["plain", "before TLS", "inside TLS"])
async def test_a_grpc_port_and_bad_bytes(pki, way, seed):
    chance = random.Random(f"{way} {seed}")
    secure = way != "plain"
    own = issued(pki, "controlplane", Role.DAEMON) if secure else None
    peer, inside = None, None
    if secure:
        client = issued(pki, "eve", Role.VIEWER).client()
        peer = PeerTls(client.credentials, client.context, HOST)
        inside = client.probe if way == "inside TLS" else None
    async with serving(own) as server, open_channel(server.address, tls=peer) as channel:
        stub = disk_grpc.DiskServiceStub(channel)
        watch = stub.WatchDisk(disk_pb.WatchDiskRequest())
        assert await watch.read() is not None
        for content in stages(chance):
            await asyncio.gather(*(send(server.port, content, inside) for _ in range(3)))
        async with asyncio.timeout(SECONDS):
            for _ in range(3):
                await watch.read()
            await stub.ListDisks(disk_pb.ListDisksRequest())
        assert not watch.done()
        watch.cancel()
        assert await health_check.check(server.address, tls=peer) == "SERVING"


@pytest.mark.parametrize("secure", [False, True])
async def test_who_says_nothing_is_cut_off(pki, monkeypatch, secure):
    """Half-open and slow: nothing at all, and a preface letter by letter."""
    options = dict(server_module.OPTIONS) | {"grpc.server_handshake_timeout_ms": 1000}
    monkeypatch.setattr(server_module, "OPTIONS", tuple(options.items()))
    own = issued(pki, "controlplane", Role.DAEMON) if secure else None
    async with serving(own) as server:
        began = time.monotonic()

        async def silent() -> None:
            reader, writer = await asyncio.open_connection(HOST, server.port)
            # A server that speaks first says its SETTINGS, and then hangs up.
            while await reader.read(1 << 16):
                pass
            writer.transport.abort()

        async def slow() -> None:
            reader, writer = await asyncio.open_connection(HOST, server.port)
            with contextlib.suppress(OSError):
                for letter in PREFACE:
                    writer.write(bytes([letter]))
                    await asyncio.sleep(0.2)
                while await reader.read(1 << 16):
                    pass
            writer.transport.abort()

        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*(silent() for _ in range(50)), *(slow() for _ in range(10)))
        assert time.monotonic() - began < SECONDS


async def test_a_session_and_bad_bytes_beside_it(tmp_path):
    """The data port: noise before, in and after a greeting, while a volume writes and reads."""
    daemons = DownstairsSet(tmp_path, Geometry(4096, 64, 8), 3)
    await daemons.start_all()
    tracing = Tracing("machine", "test")
    upstairs = RegionUpstairs(daemons.spec(uuid.uuid4(), 1), tracing=tracing)
    chance = random.Random(7)
    hello = b"".join(encode(FrameKind.HELLO, [pack_op(0, 0, blob_bytes=32)], blobs=[bytes(32)]))
    try:
        await upstairs.activate(timeout_seconds=SECONDS)
        connected = [set(daemon.host.conversations) for daemon in daemons.daemons]
        for number in range(40):
            noise = chance.randbytes(chance.choice((1, 16, 64, 900, 70_000)))
            spoilt = bytearray(hello)
            spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
            contents = (
                noise, hello[: chance.randrange(len(hello))], hello + noise, bytes(spoilt),
                hello[:4] + b"\xff\xff\xff\xff" + hello[8:], b"",
            )  # fmt: skip
            data = daemons.daemons[number % 3].data
            await asyncio.gather(*(send(data.port, content) for content in contents))
            block = os.urandom(4096)
            await ok(upstairs, BlockOp.WRITE, number, 1, block)
            assert (await ok(upstairs, BlockOp.READ, number, 1)).data == block
        # The very same sessions: none was cut and opened again.
        await until(lambda: connected == [each.host.conversations for each in daemons.daemons])
        await until(lambda: all(s.state is SlotState.ACTIVE for s in upstairs.status().slots))
    finally:
        await upstairs.close()
        await daemons.close()
        tracing.shutdown()
