"""What one downstairs' data connection costs, beside plain file I/O in the same minute.

    .venv/bin/python bench/data_path.py [--dir DIR] [--seconds S] [--tls]

Starts one downstaird in a temporary directory and drives its data connection as the upstairs does,
over the unix socket and over TCP, interleaved with the same I/O done by pwrite, pread and fdatasync
on a file beside it; with --tls, a second daemon that speaks TLS as well. Prints the median over the
rounds of (connection / plain file in the same round). Absolute figures of a shared machine mean
nothing, which is why none is printed.
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
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from stairlib.model.context import plain_contexts
from stairlib.rpc.channel import open_channel
from stairlib.rpc.tls import FLAGS, TlsFiles, reach
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


async def open_client(address, files, *, unix):
    """A session; the one before ends."""
    peer = await reach(address, files) if files is not None else None
    channel = open_channel(address, tls=peer)
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
    client.connection = await connect(opened, channel, client, tls=peer)
    await client.welcome
    return client, channel


async def measure(daemons, directory, seconds):
    """Prints a line per job. `daemons`: (address, TLS files or None) of each."""
    descriptor = os.open(directory / "plain", os.O_RDWR | os.O_CREAT)
    for start in range(0, SPAN_BLOCKS * BLOCK, len(DATA)):
        os.pwrite(descriptor, DATA, start)
    for address, files in daemons:
        client, channel = await open_client(address, files, unix=True)
        for start in range(0, SPAN_BLOCKS, 256):
            await client.batch(OpKind.WRITE, 256, [start], flush=start % 4096 == 0)
        client.connection.close("done")
        await channel.close()
    ways = [(address, files, unix) for address, files in daemons for unix in (True, False)]
    names = [("unix" if unix else "TCP") + (" TLS" if files else "") for _, files, unix in ways]
    print(f"{'ops per second, plain file = 1':34}" + "".join(f"{name:>10}" for name in names))
    for job in JOBS:
        ratios = {way: [] for way in ways}
        for _ in range(ROUNDS):
            base = plain(descriptor, job, seconds)
            for way in ways:
                address, files, unix = way
                client, channel = await open_client(address, files, unix=unix)
                ratios[way].append(await over(client, job, seconds) / base)
                client.connection.close("done")
                await channel.close()
        medians = "".join(f"{statistics.median(found):10.3f}" for found in ratios.values())
        print(f"{job[0]:34}{medians}", flush=True)
    os.close(descriptor)


def made_certificate(directory):
    """One certificate for all: it signs itself, and both sides show it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("downstairs0")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = directory / "cert.pem", directory / "key.pem"
    cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return TlsFiles(str(cert_path), str(key_path), str(cert_path))


@contextmanager
def running(directory, files):
    """A daemon with a new region; its address."""
    command = [Path(sys.executable).parent / "downstaird", "run", "--create"]
    command += ["-d", directory, "-p", "0", "--address", "127.0.0.1"]
    command += ["-u", str(uuid.uuid4()), "--block-size", str(BLOCK)]
    command += ["--extent-size", str(EXTENT_BLOCKS), "--extent-count", str(EXTENTS)]
    command += ["--log-level", "warning"]
    if files is not None:
        paths = (files.cert, files.key, files.root)
        command += [word for pair in zip(FLAGS, paths, strict=True) for word in pair]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        try:
            yield daemon.stdout.readline().split()[1]
        finally:
            daemon.terminate()


def main():
    """One command; leaves nothing behind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, help="where to keep the data meanwhile")
    parser.add_argument("--seconds", type=float, default=0.3, help="per measurement")
    parser.add_argument("--tls", action="store_true", help="measure a daemon with TLS as well")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="data-path-", dir=options.dir) as name,
        ExitStack() as stack,
    ):
        directory = Path(name)
        daemons = []
        for files in [None, made_certificate(directory)] if options.tls else [None]:
            region = directory / f"region-{len(daemons)}"
            daemons.append((stack.enter_context(running(region, files)), files))
        uvloop.run(measure(daemons, directory, options.seconds))


if __name__ == "__main__":
    main()
