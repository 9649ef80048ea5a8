"""A disk over vhost-user: a hypervisor's conversation, its end at any point, and nonsense."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from tests.contract.vhost_user_front import ENTRIES, Front, FrontDisk, SharedPlainMemory
from tests.unit.vmmd.hw.virtio.driver import DriverRing
from vmmd.block.backend import BackendInfo, BlockOp, Done, Request
from vmmd.block.memory import MemoryBackend
from vmmd.hw.virtio_blk.bits import RequestType
from vmmd.vhost_user.core import wire
from vmmd.vhost_user.core.wire import Kind
from vmmd.vhost_user.export import VhostUserExport

BLOCK = 4096
SECTORS = 8
BLOCKS = 2048


class HeldBackend:
    """A disk in memory that answers when it is let to."""

    def __init__(self) -> None:
        self.disk = MemoryBackend(BLOCK, BLOCKS)
        self.open = asyncio.Event()
        self.open.set()
        self.asked: list[Request] = []
        self._waiting: list[tuple[Request, Done]] = []
        self.changed = asyncio.Event()

    @property
    def info(self) -> BackendInfo:
        return self.disk.info

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        self.asked += batch
        self.changed.set()
        if self.open.is_set():
            self.disk.submit(batch, done)
        else:
            self._waiting += [(request, done) for request in batch]

    def hold(self) -> None:
        self.open.clear()

    def let_go(self) -> None:
        self.open.set()
        waiting, self._waiting = self._waiting, []
        for request, done in waiting:
            self.disk.submit([request], done)

    async def until_asked(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.asked) < count:
                self.changed.clear()
                await self.changed.wait()

    def count(self, op: BlockOp) -> int:
        return sum(request.op is op for request in self.asked)


@pytest_asyncio.fixture
async def backend() -> HeldBackend:
    return HeldBackend()


@pytest_asyncio.fixture
async def export(backend: HeldBackend, tmp_path: Path) -> AsyncIterator[VhostUserExport]:
    made = VhostUserExport(backend, serial="one", socket=tmp_path / "disk.sock")
    await made.start()
    yield made
    backend.let_go()
    await made.stop()


async def connected(export: VhostUserExport, memory: SharedPlainMemory | None = None) -> Front:
    front = Front(export.path, memory)
    async with asyncio.timeout(20):
        await export.disconnected.wait()
    await front.connect()
    await front.negotiate()
    return front


async def started(export: VhostUserExport) -> tuple[Front, FrontDisk]:
    """A disk with a ring, without an area for notes."""
    front = await connected(export)
    ring = DriverRing(front.memory, ENTRIES)
    await front.start_ring(ring)
    return front, FrontDisk(front, ring)


async def noted(
    export: VhostUserExport,
) -> tuple[Front, FrontDisk, wire.Inflight, int]:
    """A disk with a ring and an area."""
    front = await connected(export)
    area, file = await front.area()
    await front.told(Kind.SET_INFLIGHT_FD, wire.inflight_payload(area), [file])
    ring = DriverRing(front.memory, ENTRIES)
    await front.start_ring(ring)
    return front, FrontDisk(front, ring), area, file


async def returned(
    export: VhostUserExport, disk: FrontDisk, area: wire.Inflight, file: int
) -> tuple[Front, FrontDisk]:
    """The same hypervisor, connected anew, with the ring and the area as they are."""
    front = await connected(export, disk.ring.memory)
    await front.told(Kind.SET_INFLIGHT_FD, wire.inflight_payload(area), [file])
    await front.start_ring(disk.ring)
    again = FrontDisk(front, disk.ring)
    return front, again


async def test_a_conversation(export, backend) -> None:
    front, disk = await started(export)
    data = os.urandom(2 * BLOCK)
    assert await disk.ask(RequestType.OUT, 4 * SECTORS, data) == (0, b"")
    assert await disk.ask(RequestType.IN, 4 * SECTORS, into=len(data)) == (0, data)
    assert await disk.ask(RequestType.FLUSH) == (0, b"")
    assert (await disk.ask(RequestType.GET_ID, into=20))[1].rstrip(b"\0") == b"one"
    config = await front.ask(Kind.GET_CONFIG, wire.config_payload(0, 0, bytes(60)))
    assert int.from_bytes(config[12:20], "little") == BLOCKS * SECTORS
    number, base = wire.ring_state(
        await front.ask(Kind.GET_VRING_BASE, wire.ring_state_payload(0, 0))
    )
    assert (number, base) == (0, 4)
    assert export.counters.writes == 1
    front.close()


async def test_a_second_hypervisor_is_refused_and_the_first_goes_on(export) -> None:
    front, disk = await started(export)
    second = await Front(export.path).connect()
    assert await second.hung_up()
    assert (await disk.ask(RequestType.IN, into=BLOCK))[0] == 0
    second.close()
    front.close()


async def test_one_that_says_nothing_is_hung_up_on(export, monkeypatch) -> None:
    monkeypatch.setattr("vmmd.vhost_user.session.FIRST_SECONDS", 0.05)
    silent = await Front(export.path).connect()
    assert await silent.hung_up()
    silent.close()
    front, disk = await started(export)
    await asyncio.sleep(0.1)  # later it may be silent for as long as it likes
    assert (await disk.ask(RequestType.IN, into=BLOCK))[0] == 0
    front.close()


async def test_what_was_in_flight_is_begun_again_in_order(export, backend) -> None:
    front, disk, area, file = await noted(export)
    backend.hold()
    first = disk.offer(RequestType.OUT, 0, b"1" * BLOCK)
    second = disk.offer(RequestType.OUT, 0, b"2" * BLOCK)
    read = disk.offer(RequestType.IN, 8, into=BLOCK)
    asked = len(backend.asked)
    front.kick()
    await backend.until_asked(asked + 3)
    front.close()
    # What was in flight stays there, is answered to nobody, and is not lost.
    backend.asked.clear()
    backend.let_go()
    front, disk = await returned(export, disk, area, file)
    for head, _data, _state in (first, second, read):
        await disk.wait(head)
    assert [disk.byte(state) for _head, _data, state in (first, second, read)] == [0, 0, 0]
    assert await disk.ask(RequestType.IN, 0, into=BLOCK) == (0, b"2" * BLOCK)
    front.close()
    os.close(file)


async def test_what_was_acknowledged_and_not_flushed_is_made_again_by_the_next_process(
    export, backend, tmp_path
) -> None:
    front, disk, area, file = await noted(export)
    kept = await disk.ask(RequestType.OUT, 0, b"k" * BLOCK), await disk.ask(RequestType.FLUSH)
    assert kept == ((0, b""), (0, b""))
    for number in range(1, 4):
        assert await disk.ask(RequestType.OUT, number * SECTORS, bytes([number]) * BLOCK) == (
            0,
            b"",
        )
    zero = (3 * SECTORS).to_bytes(8, "little") + SECTORS.to_bytes(4, "little") + bytes(4)
    assert (await disk.ask(RequestType.WRITE_ZEROES, 0, zero))[0] == 0
    front.close()
    # The next process has a volume that fell back to its last flush.
    fallen = HeldBackend()
    fallen.disk.content[:BLOCK] = b"k" * BLOCK
    later = VhostUserExport(fallen, serial="one", socket=tmp_path / "later.sock")
    await later.start()
    front, disk = await returned(later, disk, area, file)
    got = [(await disk.ask(RequestType.IN, n * SECTORS, into=BLOCK))[1][:1] for n in range(5)]
    assert got == [b"k", b"\1", b"\2", b"\0", b"\0"]
    assert [request.offset for request in fallen.asked if request.op is BlockOp.WRITE] == [
        1,
        2,
        3,
        3,
    ]
    assert fallen.count(BlockOp.FLUSH) >= 1
    front.close()
    # Once is enough: it is durable now.
    front, disk = await returned(later, disk, area, file)
    assert (await disk.ask(RequestType.IN, into=BLOCK))[0] == 0
    assert fallen.count(BlockOp.WRITE) == 4
    front.close()
    await later.stop()
    os.close(file)


async def test_an_orderly_stop_leaves_nothing_to_be_made_again(export, backend, tmp_path) -> None:
    """Somebody else may have the disk before this hypervisor comes back."""
    front, disk, area, file = await noted(export)
    assert await disk.ask(RequestType.OUT, 0, b"old" + bytes(BLOCK - 3)) == (0, b"")
    await export.stop()
    assert backend.asked[-1].op is BlockOp.FLUSH
    front.close()
    backend.asked.clear()
    backend.disk.content[:3] = b"new"
    later = VhostUserExport(backend, serial="one", socket=tmp_path / "later.sock")
    await later.start()
    front, disk = await returned(later, disk, area, file)
    assert (await disk.ask(RequestType.IN, 0, into=BLOCK))[1][:3] == b"new"
    assert backend.count(BlockOp.WRITE) == 0
    front.close()
    await later.stop()
    os.close(file)


async def test_an_area_for_rings_that_run_is_refused(export) -> None:
    front, _disk, area, file = await noted(export)
    front.send(Kind.SET_INFLIGHT_FD, wire.inflight_payload(area), [file])
    assert await front.hung_up()
    front.close()
    os.close(file)


async def test_a_ring_that_is_stopped_says_where_it_was_though_requests_hang(
    export, backend, monkeypatch
) -> None:
    monkeypatch.setattr("vmmd.vhost_user.session.STOP_SECONDS", 0.05)
    front, disk, _area, file = await noted(export)
    await disk.ask(RequestType.IN, into=BLOCK)
    backend.hold()
    head, data, state = disk.offer(RequestType.IN, 8, into=BLOCK)
    asked = len(backend.asked)
    front.kick()
    await backend.until_asked(asked + 1)
    base = wire.ring_state(await front.ask(Kind.GET_VRING_BASE, wire.ring_state_payload(0, 0)))
    assert base == (0, 2)
    backend.disk.content[BLOCK : 2 * BLOCK] = b"n" * BLOCK
    backend.let_go()
    assert disk.byte(state) == 0xFF, "the guest may have other plans for its memory by now"
    await front.start_ring(disk.ring, base=2)
    await disk.wait(head)
    assert (disk.byte(state), disk.bytes(data, 1)) == (0, b"n")
    front.close()
    os.close(file)


@pytest.mark.parametrize(
    "message",
    [
        wire.HEADER.pack(Kind.GET_FEATURES, 2, 0),
        wire.HEADER.pack(Kind.GET_FEATURES, 1, 1 << 30),
        wire.HEADER.pack(99, 1, 0),
        wire.HEADER.pack(Kind.SET_FEATURES, 1, 4) + bytes(4),
        wire.HEADER.pack(Kind.SET_FEATURES, 1, 8) + b"\xff" * 8,
        wire.HEADER.pack(Kind.SET_VRING_NUM, 1, 8) + wire.ring_state_payload(77, 8),
        wire.HEADER.pack(Kind.SET_VRING_NUM, 1, 8) + wire.ring_state_payload(0, 3),
        wire.HEADER.pack(Kind.SET_VRING_NUM, 1, 8) + wire.ring_state_payload(0, 1 << 20),
        wire.HEADER.pack(Kind.SET_VRING_KICK, 1, 8) + wire.u64_payload(0),
        wire.HEADER.pack(Kind.SET_VRING_KICK, 1, 8) + wire.u64_payload(1 << 8),
        wire.HEADER.pack(Kind.SET_MEM_TABLE, 1, 8) + wire.ring_state_payload(9, 0),
        wire.HEADER.pack(Kind.SET_MEM_TABLE, 1, 40) + wire.ring_state_payload(1, 0) + bytes(32),
        wire.HEADER.pack(Kind.GET_INFLIGHT_FD, 1, 24)
        + wire.inflight_payload(wire.Inflight(0, 0, 60000, 8)),
        wire.HEADER.pack(Kind.SET_INFLIGHT_FD, 1, 24)
        + wire.inflight_payload(wire.Inflight(1 << 40, 0, 1, 8)),
        wire.HEADER.pack(Kind.GET_CONFIG, 1, 12) + wire.config_payload(250, 0, bytes(60))[:12],
    ],
)
async def test_nonsense_ends_the_connection_and_nothing_else(export, message) -> None:
    front = await Front(export.path).connect()
    front.send_raw(message)
    assert await front.hung_up()
    front.close()
    front, disk = await started(export)
    assert (await disk.ask(RequestType.IN, into=BLOCK))[0] == 0
    front.close()


async def test_a_driver_out_of_its_mind_loses_its_ring_only(export) -> None:
    front, disk = await started(export)
    disk.ring.put(ENTRIES + 5)
    front.kick()
    other = DriverRing(front.memory, ENTRIES)
    await front.start_ring(other, number=1)
    assert (await FrontDisk(front, other).ask(RequestType.IN, into=BLOCK))[0] == 0
    front.close()


async def test_random_bytes_at_every_stage_harm_nobody(export) -> None:
    draw = random.Random(7)
    for number in range(40):
        front = await connected(export)
        if number % 2:
            ring = DriverRing(front.memory, ENTRIES)
            await front.start_ring(ring)
            noise = draw.randbytes(ENTRIES * 16)
            ring.descriptors[:] = noise
            for _ in range(draw.randrange(1, 5)):
                ring.put(draw.randrange(ENTRIES))
            front.kick()
        kind, size = draw.randrange(40), draw.randrange(64)
        with_files = [front.memory.file] * draw.randrange(3)
        front.send(kind, draw.randbytes(size), with_files)
        front.connection.shutdown(socket.SHUT_WR)
        while not await front.hung_up():
            pass
        front.close()
        os.close(front.memory.file)
    front, disk = await started(export)
    assert (await disk.ask(RequestType.IN, into=BLOCK))[0] == 0
    front.close()


async def test_descriptors_do_not_pile_up(export, backend) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        front, disk, _area, file = await noted(export)
        assert (await disk.ask(RequestType.OUT, 0, bytes(BLOCK)))[0] == 0
        front.close()
        os.close(file)
        os.close(front.memory.file)
    async with asyncio.timeout(20):
        await export.disconnected.wait()
    backend.asked.clear()
    # The last front is still here.
    assert len(os.listdir("/proc/self/fd")) <= before + 3
