"""Daemons in this process on free ports, and a client that speaks to them as an upstairs does."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import uvloop

from downstaird.config import RunOptions
from downstaird.core.engine import RegionDefinition
from downstaird.core.layout import DEFAULT_TUNING
from downstaird.core.region import Region
from downstaird.core.region_files import version_for
from downstaird.daemon import Daemon
from downstaird.faults import FaultPlan
from downstaird.store.files import FileDisk
from downstaird.store.memory import MemoryDisk
from stairlib.model.context import plain_contexts
from stairlib.model.geometry import Geometry
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.tls import reach
from stairlib.runtime.addresses import Address
from stairlib.telemetry.tracing import Tracing
from stairlib.wire import frame as wire
from stairlib.wire.frame import FrameKind, OpKind, OpStatus
from stairwell.downstairs.v1 import block_service_pb2 as block_pb
from stairwell.downstairs.v1 import block_service_pb2_grpc as block_grpc
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from stairwell.downstairs.v1 import region_service_pb2_grpc as region_grpc
from stairwell.downstairs.v1 import repair_service_pb2_grpc as repair_grpc

GEOMETRY = Geometry(block_size=4096, blocks_per_extent=256, extent_count=8)
SECONDS = 20


def pattern(seed, count, block_size=4096):
    """Blocks that differ from one another and from those of another seed."""
    return np.random.default_rng(seed).bytes(count * block_size)


@dataclass
class Answer:
    """One entry of a reply."""

    status: OpStatus
    number: int
    text: str
    contexts: np.ndarray | None = None
    data: bytes = b""
    offset: int = 0
    length: int = 0


class EndedError(Exception):
    """The daemon ended the session; the text is its notice, empty when there was none."""


@dataclass
class DataClient:
    """A data connection. `do` sends ops as one frame and waits for all their answers."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    block_size: int
    waiting: dict = field(default_factory=dict)
    notice: str = ""
    pongs: int = 0
    next_job: int = 1

    async def start(self):
        self.ended = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._receive())
        return self

    async def read_frame(self):
        head = await self.reader.readexactly(wire.HEADER_BYTES)
        rest = await self.reader.readexactly(wire.frame_length(head) - len(head))
        return wire.decode(head + rest)

    def send_frame(self, kind, *args, **more):
        self.writer.writelines(wire.encode(kind, *args, **more))

    async def hello(self, token):
        self.send_frame(
            FrameKind.HELLO, [wire.pack_op(0, OpKind.NOOP, blob_bytes=len(token))], blobs=[token]
        )
        frame = await asyncio.wait_for(self.read_frame(), SECONDS)
        if frame.kind is FrameKind.NOTICE:
            raise EndedError(frame.blob(0).decode())
        assert frame.kind is FrameKind.WELCOME
        return await self.start()

    async def _receive(self):
        try:
            while True:
                frame = await self.read_frame()
                if frame.kind is FrameKind.REPLY:
                    self._reply(frame)
                elif frame.kind is FrameKind.NOTICE:
                    self.notice = frame.blob(0).decode()
                elif frame.kind is FrameKind.PONG:
                    self.pongs += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        for future in self.waiting.values():
            if not future.done():
                future.set_exception(EndedError(self.notice))
        self.ended.set_result(self.notice)

    def _reply(self, frame):
        at = block = 0
        for index, op in enumerate(frame.ops):
            kind, length, status = int(op["kind"]), int(op["length"]), OpStatus(int(op["status"]))
            answer = Answer(
                status,
                int(op["number"]),
                frame.blob(index).decode(),
                offset=int(op["offset"]),
                length=int(op["length"]),
            )
            if status is OpStatus.OK:
                size = {
                    OpKind.READ: self.block_size,
                    OpKind.EXTENT_DIGEST: 8,
                    OpKind.EXTENT_STATES: 24,
                }.get(kind, 0) * length
                answer.data = bytes(frame.payload[at : at + size])
                at += size
                if kind == OpKind.READ:
                    answer.contexts = frame.contexts[block : block + length].copy()
                    block += length
            self.waiting.pop(int(op["job"])).set_result(answer)

    def start_ops(self, *ops, deps=()):
        """Sends the ops in one frame; their futures. Each op is (kind, fields); `data` is a
        field."""
        table, blobs, contexts, payload, futures = [], [], [], [], []
        for kind, fields in ops:
            fields = dict(fields)
            data, blob = fields.pop("data", None), fields.pop("blob", b"")
            given = fields.pop("contexts", None)
            if data is not None:
                fields["length"] = len(data) // self.block_size
                contexts.append(plain_contexts(data, self.block_size) if given is None else given)
                payload.append(data)
            blobs.append(blob)
            job, self.next_job = self.next_job, self.next_job + 1
            table.append(
                wire.pack_op(job, kind, blob_bytes=len(blob), dependency_count=len(deps), **fields)
            )
            futures.append(asyncio.get_running_loop().create_future())
            self.waiting[job] = futures[-1]
        self.send_frame(
            FrameKind.REQUEST,
            table,
            dependencies=list(deps) * len(ops),
            blobs=blobs,
            contexts=np.concatenate(contexts) if contexts else None,
            payload=payload,
        )
        return futures

    async def do(self, *ops):
        return await asyncio.wait_for(asyncio.gather(*self.start_ops(*ops)), SECONDS)

    async def one(self, kind, **fields):
        [answer] = await self.do((kind, fields))
        return answer

    async def write(self, offset, data, **more):
        answer = await self.one(OpKind.WRITE, offset=offset, data=data, **more)
        assert answer.status is OpStatus.OK, answer

    async def read(self, offset, length):
        answer = await self.one(OpKind.READ, offset=offset, length=length)
        assert answer.status is OpStatus.OK, answer
        return answer.data

    async def flush(self, number, generation=1):
        answer = await self.one(OpKind.FLUSH, number=number, generation=generation)
        assert answer.status is OpStatus.OK, answer

    async def states(self):
        answer = await self.one(OpKind.EXTENT_STATES)
        return np.frombuffer(answer.data, dtype="<u8").reshape(-1, 3)

    async def digests(self, count):
        answer = await self.one(OpKind.EXTENT_DIGEST, offset=0, length=count)
        return np.frombuffer(answer.data, dtype="<u8").tolist()

    async def wait_ended(self):
        return await asyncio.wait_for(asyncio.shield(self.ended), SECONDS)

    async def close(self):
        self.writer.close()
        await self.wait_ended()
        self.task.cancel()


class Downstairs:
    """A daemon in this process and stubs to it; `peer` tells how it is reached over TLS."""

    def __init__(self, daemon, tracing, peer=None):
        self.daemon = daemon
        self.secure = {}
        if peer is not None:
            self.secure = {"ssl": peer.context, "server_hostname": peer.server_name}
        self.tracing = tracing
        self.address = f"127.0.0.1:{daemon.rpc.port}"
        self.channel = open_channel(self.address, tls=peer)
        self.block = block_grpc.BlockServiceStub(self.channel)
        self.region = region_grpc.RegionServiceStub(self.channel)
        self.repair = repair_grpc.RepairServiceStub(self.channel)
        self.clients = []
        self.place = None

    async def call(self, method, request):
        """A unary call; raises the domain's errors."""
        with translated("the daemon"):
            return await method(request, timeout=SECONDS)

    async def get(self):
        return (await self.call(self.region.GetRegion, region_pb.GetRegionRequest())).region

    def proposal(self, upstairs, generation=1, session=None, **changes):
        geometry = self.daemon.host.engine.definition.geometry
        fields = {
            "upstairs_id": str(upstairs),
            "session_id": str(session or uuid.uuid4()),
            "generation": generation,
            "geometry": region_pb.Geometry(
                block_size=geometry.block_size,
                extent_size=geometry.blocks_per_extent,
                extent_count=geometry.extent_count,
            ),
            "data_versions": [wire.DATA_VERSION],
            **changes,
        }
        return block_pb.OpenSessionRequest(**fields)

    async def open(self, upstairs, generation=1, session=None, **changes):
        request = self.proposal(upstairs, generation, session, **changes)
        return await self.call(self.block.OpenSession, request)

    async def dial(self, answer, *, unix=False):
        """A data connection to where the answer says, before any HELLO."""
        if unix:
            streams = await asyncio.open_unix_connection(answer.data_unix_path, **self.secure)
        else:
            host, _, port = answer.data_address.rpartition(":")
            streams = await asyncio.open_connection(host, int(port), **self.secure)
        client = DataClient(*streams, answer.region.geometry.block_size)
        self.clients.append(client)
        return client

    async def session(self, upstairs, generation=1, session=None, *, unix=False, **changes):
        answer = await self.open(upstairs, generation, session, **changes)
        client = await self.dial(answer, unix=unix)
        return await client.hello(answer.token)

    async def close(self):
        for client in self.clients:
            client.writer.close()
        await self.channel.close()
        await self.daemon.stop()
        self.tracing.shutdown()
        for client in self.clients:
            if hasattr(client, "task"):
                client.task.cancel()


def options(directory, **changes):
    fields = {
        "directory": directory,
        "address": Address("127.0.0.1", 0),
        "data_port": None,
        "advertise": "",
        "read_only": False,
        "faults": FaultPlan(),
        "create": None,
        **changes,
    }
    return RunOptions(**fields)


@pytest.fixture
async def serve(tmp_path, monkeypatch):
    """`await serve(disk=None, ...)` starts a daemon; all are stopped at the end. The disk is a
    directory, a new one unless given, or a MemoryDisk; it is made a region if it is none."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    running = []

    async def start(disk=None, *, geometry=GEOMETRY, cipher="", tuning=DEFAULT_TUNING, **changes):
        place = disk if disk is not None else tmp_path / f"region-{len(running)}"
        definition = RegionDefinition(uuid.uuid4(), geometry, cipher, version_for(cipher))
        read_only = changes.get("read_only", False)
        if isinstance(place, Path):
            if not (place / "region.json").exists():
                Region.create(FileDisk(place), definition).close()
            engine = Region.open(FileDisk(place), read_only=read_only, tuning=tuning)
        elif isinstance(place, MemoryDisk) and place.exists("region.json"):
            engine = Region.open(place, read_only=read_only)
        else:
            engine = Region.create(place, definition, tuning=tuning)
        tracing = Tracing("downstairs", f"test-{len(running)}")
        directory = place if isinstance(place, Path) else tmp_path / f"memory-{len(running)}"
        daemon = Daemon(engine, options(directory, **changes), tracing)
        await daemon.start()
        files = changes.get("tls")
        peer = None if files is None else await reach(f"127.0.0.1:{daemon.rpc.port}", files)
        downstairs = Downstairs(daemon, tracing, peer)
        downstairs.place = place
        running.append(downstairs)
        return downstairs

    yield start
    for downstairs in running:
        await downstairs.close()


@pytest.fixture
def upstairs():
    return uuid.uuid4()


def pytest_asyncio_loop_factories(config, item):
    """The daemon runs on uvloop; asyncio's own loop is stricter in places, so both are tried."""
    if hasattr(item.module, "ONE_LOOP"):
        return {"uvloop": uvloop.new_event_loop}
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
