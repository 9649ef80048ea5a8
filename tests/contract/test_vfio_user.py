"""A disk over vfio-user: a hypervisor's conversation, its end at any point, and nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
import pytest_asyncio

from stairlib.model.errors import UnavailableError
from tests.contract.held_backend import BLOCK, BLOCKS, HeldBackend
from tests.contract.vfio_user_front import (
    DATA,
    EINVAL,
    ENOTSUP,
    GUEST,
    MEMORY_BYTES,
    PAGE,
    Front,
    FrontDisk,
    RefusedError,
)
from vmmd.hw.nvme import bits
from vmmd.hw.nvme.bits import AdminOpcode, IoOpcode
from vmmd.hw.nvme.controller import InterruptKind
from vmmd.vfio_user import session
from vmmd.vfio_user.core import wire
from vmmd.vfio_user.core.wire import Command, Irq
from vmmd.vfio_user.export import VfioUserExport

DISK = UUID(int=0xD15C)


@pytest_asyncio.fixture
async def backend() -> HeldBackend:
    return HeldBackend()


@pytest_asyncio.fixture
async def export(backend: HeldBackend, tmp_path: Path) -> AsyncIterator[VfioUserExport]:
    made = VfioUserExport(backend, serial="one", namespace_uuid=DISK, socket=tmp_path / "disk.sock")
    await made.start()
    yield made
    backend.let_go()
    await made.stop()


async def connected(export: VfioUserExport) -> Front:
    async with asyncio.timeout(20):
        await export.disconnected.wait()
    return await Front(export.path).connect()


async def started(export: VfioUserExport) -> tuple[Front, FrontDisk]:
    front = await (await connected(export)).begin()
    return front, await FrontDisk(front).start()


async def read_back(front: Front, disk: FrontDisk, block: int) -> bytes:
    assert await disk.io(IoOpcode.READ, prp1=DATA + 0x8000, cdw10=block) == 0
    return front.load(DATA + 0x8000, BLOCK)


async def test_what_a_hypervisor_asks(export) -> None:
    front = await connected(export)
    answer = await front.version()
    assert answer[:4] == bytes(4)
    assert answer.endswith(b"}\0")
    assert b'"write_multiple":true' in answer
    told = struct.unpack("<IIII", await front.ask(Command.DEVICE_GET_INFO, bytes(16)))
    assert told == (16, 3, 9, 5)

    async def region(index: int) -> tuple[int, ...]:
        asked = struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0)
        return struct.unpack("<IIIIQQ", await front.ask(Command.DEVICE_GET_REGION_INFO, asked))

    sizes = {index: (await region(index))[4] for index in range(9)}
    assert sizes == {0: 16384, 4: 8192, 7: 256, **dict.fromkeys((1, 2, 3, 5, 6, 8), 0)}
    assert (await region(0))[:3] == (32, 3, 0)
    assert (await region(1))[:3] == (32, 0, 1)

    async def irq(index: int) -> int:
        asked = struct.pack("<IIII", 16, 0, index, 0)
        return struct.unpack("<IIII", await front.ask(Command.DEVICE_GET_IRQ_INFO, asked))[3]

    assert [await irq(index) for index in range(5)] == [0, 0, 16, 1, 1]
    whole = (await front.read(0, 256, region=7)).to_bytes(256, "little")
    assert whole[8:12] == bytes((0, 2, 8, 1))
    # Sized as a processor does it: the type bits stay.
    front.write(0x10, 0xFFFFFFFF, region=7)
    assert await front.read(0x10, 4, region=7) == 0xFFFFC004
    front.close()


async def test_a_disk_at_work(export, backend) -> None:
    front, disk = await started(export)
    data = os.urandom(3 * BLOCK)
    front.store(DATA, data)
    front.store(DATA + 0x10000, struct.pack("<QQ", DATA + PAGE, DATA + 2 * PAGE))
    write = {"prp1": DATA, "prp2": DATA + 0x10000, "cdw10": 7, "cdw12": 2}
    assert await disk.io(IoOpcode.WRITE, **write) == 0
    assert await disk.io(IoOpcode.FLUSH) == 0
    assert backend.disk.content[7 * BLOCK : 10 * BLOCK] == data
    assert await read_back(front, disk, 8) == data[BLOCK : 2 * BLOCK]
    front.store(DATA, struct.pack("<IIQ", 0, 1, 8))
    assert await disk.io(IoOpcode.DATASET_MANAGEMENT, prp1=DATA, cdw11=4) == 0
    assert await read_back(front, disk, 8) == bytes(BLOCK)
    assert await disk.io(IoOpcode.READ, prp1=DATA, cdw10=BLOCKS) == bits.LBA_OUT_OF_RANGE
    assert await disk.admin(AdminOpcode.IDENTIFY, prp1=DATA, cdw10=1) == 0
    page = front.load(DATA, 4096)
    assert page[4:24] == b"one".ljust(20)
    assert page[768:].split(b"\0")[0].decode().endswith(str(DISK))
    assert export.counters.writes == 1
    front.close()


async def test_what_comes_together_reaches_the_disk_together(export, backend) -> None:
    front, disk = await started(export)
    backend.batches.clear()
    messages = b""
    for block in range(10):
        disk.queue(1, IoOpcode.READ, prp1=DATA + block * PAGE, cdw10=block)
        messages += disk.doorbell(1)
    front.send_raw(messages)
    assert len(await disk.completed(1, 10)) == 10
    assert backend.batches == [10]
    front.close()


async def test_many_writes_in_one_message(export, backend) -> None:
    front, disk = await started(export)
    backend.batches.clear()
    writes = b""
    for block in range(4):
        disk.queue(1, IoOpcode.READ, prp1=DATA + block * PAGE, cdw10=block)
        writes += struct.pack("<QIIQ", bits.REG_DOORBELLS + 8, 0, 4, disk.tails[1])
    answer = await front.ask(Command.REGION_WRITE_MULTI, struct.pack("<Q", 4) + writes)
    assert answer == struct.pack("<Q", 4)
    assert len(await disk.completed(1, 4)) == 4
    assert backend.batches == [4]
    front.close()


async def test_messages_in_pieces(export) -> None:
    """Of any size; a file belongs to the message that it came with."""
    front = await connected(export)
    loop = asyncio.get_running_loop()
    told = struct.pack("<HH", 0, 0) + b"{}\0"
    for byte in front.message(Command.VERSION, told):
        await loop.sock_sendall(front.connection, bytes((byte,)))
    assert (await front.receive())[0].command == Command.VERSION
    piece = struct.pack("<IIQQQ", 32, 3, 0, GUEST, MEMORY_BYTES)
    message = front.message(Command.DMA_MAP, piece)
    before = front.message(Command.DEVICE_GET_INFO, bytes(16))
    front.send_raw(before)
    front.send_raw(message[:20], [front.file])
    # Nothing of what is cut up is answered before it is whole.
    assert (await front.receive())[0].command == Command.DEVICE_GET_INFO
    front.send_raw(message[20:] + front.message(Command.DEVICE_RESET))
    assert [(await front.receive())[0].command for _ in range(2)] == [2, 13]
    await front.use_interrupts()
    await FrontDisk(front).start()
    front.close()


async def test_memory_that_is_gone_is_not_touched(export, backend) -> None:
    """A read is at the disk when its memory is unmapped: the answer to that does not wait, what
    comes late is held, and goes where the memory is mapped then."""
    front, disk = await started(export)
    front.store(DATA, b"\xee" * BLOCK)
    backend.disk.content[:BLOCK] = b"\x11" * BLOCK
    backend.open = False
    identifier = disk.queue(1, IoOpcode.READ, prp1=DATA)
    backend.batches.clear()
    disk.ring(1)
    await backend.until_asked(1)
    assert await front.unmap() == struct.pack("<IIQQ", 24, 0, GUEST, MEMORY_BYTES)
    before = bytes(front.memory)
    backend.let_go()
    assert await front.read(bits.REG_CSTS) == bits.CSTS_READY
    assert bytes(front.memory) == before
    # The lower half of another file, and the upper one of it elsewhere.
    other = os.memfd_create("other")
    os.ftruncate(other, 2 * MEMORY_BYTES)
    os.pwrite(other, before, MEMORY_BYTES)
    await front.map(offset=MEMORY_BYTES, file=other)
    await front.interrupted(1)
    assert bytes(front.memory) == before
    there = os.pread(other, MEMORY_BYTES, MEMORY_BYTES)
    assert there[DATA - GUEST :][:BLOCK] == b"\x11" * BLOCK
    completion = there[0x40000:][: 16 * 16]
    assert struct.pack("<H", identifier) in completion
    os.close(other)
    front.close()


async def test_memory_in_pieces(export, backend) -> None:
    """A transfer over the seam of two pieces; one without a file, and one that is read-only."""
    front = await connected(export)
    await front.version()
    half = DATA + 2 * PAGE - GUEST
    await front.map(size=half)
    await front.map(address=GUEST + half, size=MEMORY_BYTES - half, offset=half)
    piece = struct.pack("<IIQQQ", 32, 1, 0, 0xFFFC0000, 0x40000)
    assert await front.ask(Command.DMA_MAP, piece) == b""
    await front.map(address=1 << 40, size=PAGE, flags=1)
    await front.use_interrupts()
    disk = await FrontDisk(front).start()
    backend.disk.content[: 4 * BLOCK] = data = os.urandom(4 * BLOCK)
    front.store(DATA + 0x10000, struct.pack("<3Q", *(DATA + PAGE * n for n in (1, 2, 3))))
    read = {"prp1": DATA, "prp2": DATA + 0x10000, "cdw12": 3}
    assert await disk.io(IoOpcode.READ, **read) == 0
    assert front.load(DATA, 4 * BLOCK) == data
    assert await disk.io(IoOpcode.READ, prp1=1 << 40) == bits.DATA_TRANSFER_ERROR
    # All of it at once, as firmware does.
    await front.unmap(0, 2 << 40)
    await front.map()
    assert await disk.io(IoOpcode.FLUSH) == 0
    await front.unmap(0, 0, flags=2)
    await front.map()
    assert await disk.io(IoOpcode.FLUSH) == 0
    front.close()


async def test_a_reset_does_not_wait_and_ends_what_is_in_flight(export, backend) -> None:
    front, disk = await started(export)
    backend.open = False
    backend.batches.clear()
    disk.queue(1, IoOpcode.READ, prp1=DATA)
    disk.ring(1)
    await backend.until_asked(1)
    assert await front.ask(Command.DEVICE_RESET) == b""
    assert await front.read(bits.REG_CSTS) == 0
    before = bytes(front.memory)
    backend.let_go()
    assert await front.read(bits.REG_CC) == 0
    assert bytes(front.memory) == before
    disk = await FrontDisk(front).start()
    assert await disk.io(IoOpcode.FLUSH) == 0
    front.close()


async def test_an_interrupt_that_nobody_took_is_owed(export) -> None:
    """A hypervisor takes all descriptors back for a moment when a guest uses one vector more."""
    front, disk = await started(export)
    await front.ask(Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x21, Irq.MSIX, 0, 0))
    disk.queue(1, IoOpcode.FLUSH)
    disk.ring(1)
    assert await front.read(bits.REG_CSTS) == bits.CSTS_READY
    for file in front.events.values():
        os.close(file)
    await front.use_interrupts()
    await front.interrupted(1)
    assert len(disk.completions(1)) == 1
    # Given none, and told to be raised by the hypervisor itself.
    one = struct.pack("<IIIII", 20, 0x21, Irq.MSIX, 1, 1)
    await front.ask(Command.DEVICE_SET_IRQS, one)
    await front.interrupted(1)
    states = struct.pack("<IIIII", 22, 0x22, Irq.MSIX, 0, 2) + b"\1\0"
    await front.ask(Command.DEVICE_SET_IRQS, states)
    await front.interrupted(0)
    front.close()


async def test_msi(backend, tmp_path: Path) -> None:
    export = VfioUserExport(
        backend,
        serial="one",
        namespace_uuid=DISK,
        socket=tmp_path / "msi.sock",
        interrupts=InterruptKind.MSI,
    )
    await export.start()
    front = await connected(export)
    await front.version()
    await front.map()
    await front.use_interrupts(Irq.MSI)
    disk = await FrontDisk(front).start()
    assert await disk.io(IoOpcode.FLUSH) == 0
    with pytest.raises(RefusedError):
        await front.use_interrupts(Irq.MSIX)
    front.close()
    await export.stop()


async def test_a_hypervisor_that_dies_and_the_next_one(export, backend) -> None:
    front, disk = await started(export)
    front.store(DATA, b"\x22" * BLOCK)
    assert await disk.io(IoOpcode.WRITE, prp1=DATA, cdw10=3) == 0
    backend.open = False
    backend.batches.clear()
    disk.queue(1, IoOpcode.READ, prp1=DATA, cdw10=3)
    disk.ring(1)
    await backend.until_asked(1)
    front.connection.close()
    async with asyncio.timeout(20):
        await export.disconnected.wait()
    before = bytes(front.memory)
    backend.let_go()
    assert bytes(front.memory) == before
    again, disk = await started(export)
    assert await read_back(again, disk, 3) == b"\x22" * BLOCK
    assert bytes(front.memory) == before
    front.close()
    again.close()


async def test_a_second_hypervisor_is_refused_and_the_first_goes_on(export) -> None:
    front, disk = await started(export)
    second = await Front(export.path).connect()
    assert await second.hung_up()
    assert await disk.io(IoOpcode.FLUSH) == 0
    second.close()
    front.close()


async def test_one_that_says_nothing_is_hung_up_on(export, monkeypatch) -> None:
    monkeypatch.setattr(session, "FIRST_SECONDS", 0.05)
    front = await connected(export)
    assert await front.hung_up()
    front.close()
    front, disk = await started(export)
    assert await disk.io(IoOpcode.FLUSH) == 0
    front.close()


async def test_one_that_reads_no_answers_is_hung_up_on(export) -> None:
    front = await connected(export)
    await front.version()
    asked = front.message(Command.REGION_READ, struct.pack("<QII", 0, 7, 256)) * 200
    loop = asyncio.get_running_loop()

    async def go_on() -> None:
        while True:
            await loop.sock_sendall(front.connection, asked)

    with pytest.raises((ConnectionError, BrokenPipeError)):
        await asyncio.wait_for(go_on(), 20)
    front.close()
    _front, disk = await started(export)
    assert await disk.io(IoOpcode.FLUSH) == 0
    _front.close()


def packed(layout: str, *values: object) -> bytes:
    return struct.pack(layout, *values)


REQUESTS = [
    (Command.REGION_READ, packed("<QII", 16384, 0, 4), EINVAL),
    (Command.REGION_READ, packed("<QII", 16382, 0, 4), EINVAL),
    (Command.REGION_READ, packed("<QII", (1 << 64) - 2, 0, 4), EINVAL),
    (Command.REGION_READ, packed("<QII", 0, 0, 3), EINVAL),
    (Command.REGION_READ, packed("<QII", 0, 0, 0), EINVAL),
    (Command.REGION_READ, packed("<QII", 0, 0, 0xFFFFFFFF), EINVAL),
    (Command.REGION_READ, packed("<QII", 0, 1, 4), EINVAL),
    (Command.REGION_READ, packed("<QII", 0, 99, 4), EINVAL),
    (Command.REGION_READ, packed("<QII", 0, 7, 257), EINVAL),
    (Command.REGION_READ, b"", EINVAL),
    (Command.REGION_WRITE, packed("<QII", 0x14, 0, 4) + b"\0\0", EINVAL),
    (Command.REGION_WRITE, b"\0" * 15, EINVAL),
    (Command.REGION_WRITE_MULTI, b"", EINVAL),
    (Command.REGION_WRITE_MULTI, packed("<Q", 1 << 60), EINVAL),
    (Command.REGION_WRITE_MULTI, packed("<QQIIQ", 1, 0, 0, 9, 0), EINVAL),
    (Command.DEVICE_GET_REGION_INFO, packed("<IIIIQQ", 32, 0, 9, 0, 0, 0), EINVAL),
    (Command.DEVICE_GET_IRQ_INFO, packed("<IIII", 16, 0, 5, 0), EINVAL),
    (Command.DEVICE_GET_IRQ_INFO, b"1", EINVAL),
    (Command.DEVICE_SET_IRQS, packed("<IIIII", 20, 0x24, 2, 0, 17), EINVAL),
    (Command.DEVICE_SET_IRQS, packed("<IIIII", 20, 0x24, 2, 0xFFFFFFFF, 2), EINVAL),
    (Command.DEVICE_SET_IRQS, packed("<IIIII", 20, 0x24, 9, 0, 1), EINVAL),
    (Command.DEVICE_SET_IRQS, packed("<IIIII", 20, 0x09, 2, 0, 1), EINVAL),
    (Command.DEVICE_SET_IRQS, packed("<IIIII", 20, 0x27, 2, 0, 1), EINVAL),
    (Command.DEVICE_SET_IRQS, packed("<IIIII", 20, 0x22, 2, 0, 2) + b"\1", EINVAL),
    (Command.DEVICE_SET_IRQS, b"\0", EINVAL),
    (Command.DMA_UNMAP, packed("<IIQQ", 24, 0, GUEST + PAGE, PAGE), EINVAL),
    (Command.DMA_UNMAP, packed("<IIQQ", 24, 1, GUEST, MEMORY_BYTES), EINVAL),
    (Command.DMA_UNMAP, b"", EINVAL),
    (Command.DMA_MAP, b"", EINVAL),
    (6, bytes(16), ENOTSUP),
    (99, b"", ENOTSUP),
]


@pytest.mark.parametrize(("command", "payload", "number"), REQUESTS)
async def test_a_request_that_cannot_be_is_refused_and_all_goes_on(
    export, command: int, payload: bytes, number: int
) -> None:
    front, disk = await started(export)
    with pytest.raises(RefusedError) as refused:
        await front.ask(command, payload)
    assert refused.value.number == number
    # Posted, nobody is told.
    front.send(command, payload, flags=wire.FLAG_NO_REPLY)
    assert await disk.io(IoOpcode.FLUSH) == 0
    front.close()


@pytest.mark.parametrize(
    ("offset", "address", "size"),
    [
        (0, 0, 0),
        (0, 0, MEMORY_BYTES + 1),
        (MEMORY_BYTES, 0, PAGE),
        (1 << 63, 0, PAGE),
        (0, (1 << 64) - PAGE, 2 * PAGE),
        (0, GUEST, PAGE),
        (0, GUEST - PAGE, 2 * PAGE),
        (0, GUEST + MEMORY_BYTES - PAGE, 2 * PAGE),
        (0, 0, 1 << 60),
    ],
)
async def test_memory_that_cannot_be_mapped(export, offset: int, address: int, size: int) -> None:
    front, disk = await started(export)
    with pytest.raises(RefusedError):
        await front.map(address, size, offset=offset)
    with pytest.raises(RefusedError):
        await front.map(address, PAGE, file=front.connection.fileno())
    piece = struct.pack("<IIQQQ", 32, 3, 0, 1 << 40, PAGE)
    with pytest.raises(RefusedError):
        await front.ask(Command.DMA_MAP, piece, [front.file, front.file])
    assert await disk.io(IoOpcode.FLUSH) == 0
    front.close()


@pytest.mark.parametrize(
    "raw",
    [
        wire.request(1, Command.DEVICE_GET_INFO, bytes(16)),
        wire.request(1, Command.VERSION, b""),
        wire.request(1, Command.VERSION, struct.pack("<HH", 1, 0) + b"{}\0"),
        wire.request(1, Command.VERSION, struct.pack("<HH", 0, 0) + b"no\0"),
        wire.request(1, Command.VERSION, struct.pack("<HH", 0, 0) + b"[]\0"),
        wire.request(1, Command.VERSION, struct.pack("<HH", 0, 0) + b"[" * 5000),
        wire.HEADER.pack(1, 1, 15, 0, 0),
        wire.HEADER.pack(1, 1, 1 << 31, 0, 0),
        wire.HEADER.pack(1, 1, 16, 1, 0),
        b"\xff" * 64,
    ],
)
async def test_nonsense_ends_the_connection_and_nothing_else(export, raw: bytes) -> None:
    front = await connected(export)
    front.send_raw(raw)
    assert await front.hung_up()
    front.close()
    front, disk = await started(export)
    assert await disk.io(IoOpcode.FLUSH) == 0
    front.close()


async def test_too_many_files(export) -> None:
    front = await connected(export)
    await front.version()
    front.send(Command.DEVICE_GET_INFO, bytes(16), [front.file] * 17)
    assert await front.hung_up()
    front.close()


def open_files() -> Counter[str]:
    """What this process has open, and how often."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[os.readlink(f"/proc/self/fd/{name}")] += 1
    return found


async def test_no_descriptor_is_left_behind(export) -> None:
    """Given with messages that take none, replaced, mapped, and cut off in the middle."""
    # What tests before this one have left to the collector would otherwise be closed meanwhile.
    gc.collect()
    before = open_files()
    for end in range(3):
        front, disk = await started(export)
        await front.ask(Command.DEVICE_GET_INFO, bytes(16), [front.file] * 5)
        with pytest.raises(RefusedError):
            await front.ask(
                Command.DEVICE_SET_IRQS,
                struct.pack("<IIIII", 20, 0x24, 2, 0, 1),
                [front.file, front.file],
            )
        for file in front.events.values():
            os.close(file)
        await front.use_interrupts()
        assert await disk.io(IoOpcode.FLUSH) == 0
        await front.unmap()
        await front.map()
        if end == 1:
            piece = struct.pack("<IIQQQ", 32, 3, 0, 1 << 40, PAGE)
            front.send_raw(front.message(Command.DMA_MAP, piece)[:30], [front.file])
        elif end == 2:
            front.send_raw(b"\xff" * 32, [front.file])
            assert await front.hung_up()
        front.close()
        front.memory.release()
        async with asyncio.timeout(20):
            await export.disconnected.wait()
    assert open_files() == before


async def test_any_bytes(export) -> None:
    """After a good beginning, messages of known commands with anything in them."""
    chance = random.Random(5)
    commands = [*Command, 6, 11, 12, 14, 16, 99]
    for _ in range(60):
        front = await connected(export)
        await front.version()
        for _ in range(30):
            payload = chance.randbytes(chance.choice((0, 8, 16, 20, 24, 32, 40)))
            if chance.random() < 0.5:
                words = (chance.choice((0, 1, 2, 4, 7, 20, 0x24, 4096)) for _ in range(8))
                payload = struct.pack("<8I", *words)
            files = [front.file] * chance.choice((0, 0, 1, 3))
            try:
                front.send(chance.choice(commands), payload, files, chance.choice((0, 0x10)))
            except OSError:
                break
        front.close()
    front, disk = await started(export)
    assert await disk.io(IoOpcode.FLUSH) == 0
    front.close()


async def test_a_socket_that_cannot_be_had(backend, tmp_path: Path) -> None:
    made = VfioUserExport(
        backend, serial="one", namespace_uuid=DISK, socket=tmp_path / "no" / "disk.sock"
    )
    with pytest.raises(UnavailableError, match="cannot listen on"):
        await made.start()
    assert not made.listening


async def test_a_stop_while_the_disk_stands_still_leaves_no_socket(backend, tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    made = VfioUserExport(backend, serial="one", namespace_uuid=DISK, socket=path)
    await made.start()
    front, disk = await started(made)
    backend.open = False
    backend.batches.clear()
    disk.queue(1, IoOpcode.READ, prp1=DATA)
    disk.ring(1)
    await backend.until_asked(1)
    stopping = asyncio.create_task(made.stop())
    assert await front.hung_up()
    backend.let_go()
    await stopping
    assert not path.exists()
    front.close()


async def test_a_path_that_another_process_has_taken_over_stays(backend, tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    made = VfioUserExport(backend, serial="one", namespace_uuid=DISK, socket=path)
    await made.start()
    path.unlink()
    other = socket.socket(socket.AF_UNIX)
    other.bind(str(path))
    await made.stop()
    assert path.exists()
    other.close()


async def test_write_zeroes_and_what_is_not_offered(export, backend) -> None:
    front, disk = await started(export)
    assert await disk.io(IoOpcode.WRITE_ZEROES, cdw10=5, cdw12=9) == 0
    assert not any(backend.disk.content[5 * BLOCK : 15 * BLOCK])
    assert await disk.io(0x80) == bits.INVALID_OPCODE
    assert await disk.admin(0x80, namespace=1) == bits.INVALID_OPCODE
    front.close()
