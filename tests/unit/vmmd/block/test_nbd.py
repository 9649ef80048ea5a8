"""The export over real sockets: requests, errors, flow control, clients coming and going."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from stairlib.model.errors import UnavailableError
from tests.unit.vmmd.block.nbd_client import NbdClient
from tests.unit.vmmd.guest.machine import MoodyBackend
from vmmd.block import nbd, nbd_wire
from vmmd.block.backend import BlockOp
from vmmd.block.memory import MemoryBackend
from vmmd.block.nbd import NbdExport
from vmmd.block.nbd_wire import Command, Error

MIB = 1 << 20
BLOCKS = 16384


@pytest.fixture
def backend() -> MoodyBackend:
    return MoodyBackend(4096, BLOCKS)


@pytest.fixture
async def export(backend: MoodyBackend, tmp_path: Path) -> AsyncIterator[NbdExport]:
    made = NbdExport(backend, "block2", socket=tmp_path / "nbd.sock")
    await made.start()
    yield made
    backend.let_go()
    await made.stop()


@pytest.fixture
async def client(export: NbdExport, tmp_path: Path) -> AsyncIterator[NbdClient]:
    made = await NbdClient.connect(str(tmp_path / "nbd.sock"))
    yield await made.go()
    await made.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - looks at the server from outside
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("size", [4096, MIB, 5 * MIB + 8192])
async def test_what_is_written_is_read(
    export: NbdExport, tmp_path: Path, size: int, structured: bool
) -> None:
    client = await NbdClient.connect(str(tmp_path / "nbd.sock"))
    await client.go(structured=structured)
    data = os.urandom(size)
    assert await client.write(8192, data) == 0
    assert await client.read(8192, size) == (0, data)
    await client.close()


async def test_trim_and_write_zeroes(client: NbdClient, backend: MoodyBackend) -> None:
    assert await client.write(0, b"\xff" * 8 * MIB) == 0
    assert await client.ask(Command.TRIM, 4096, MIB) == 0
    assert await client.ask(Command.WRITE_ZEROES, 2 * MIB, 5 * MIB, flags=2) == 0
    content = backend.memory.content
    assert content[: 8 * MIB].count(0) == 6 * MIB
    assert not any(content[4096 : MIB + 4096])
    assert not any(content[2 * MIB : 7 * MIB])


@pytest.mark.parametrize("command", [Command.WRITE, Command.TRIM, Command.WRITE_ZEROES])
async def test_fua_flushes_before_the_reply(
    export: NbdExport, client: NbdClient, command: int
) -> None:
    payload = bytes(2 * MIB) if command == Command.WRITE else b""
    assert await client.ask(command, 0, 2 * MIB, flags=1, payload=payload) == 0
    assert export.attachment.counters.flushes == 1


async def test_flush(export: NbdExport, client: NbdClient) -> None:
    assert await client.ask(Command.FLUSH) == 0
    assert export.attachment.counters.flushes == 1


@pytest.mark.parametrize(
    ("command", "offset", "length", "flags", "error"),
    [
        (Command.READ, 512, 4096, 0, Error.EINVAL),
        (Command.READ, 0, 512, 0, Error.EINVAL),
        (Command.READ, 0, 0, 0, Error.EINVAL),
        (Command.READ, BLOCKS * 4096, 4096, 0, Error.EINVAL),
        (Command.READ, 0, 33 * MIB, 0, Error.EINVAL),
        (Command.TRIM, (BLOCKS - 1) * 4096, 8192, 0, Error.ENOSPC),
        (Command.WRITE_ZEROES, 1 << 62, 4096, 0, Error.ENOSPC),
        (Command.WRITE_ZEROES, 0, 4096, 16, Error.EINVAL),
        (Command.FLUSH, 4096, 0, 0, Error.EINVAL),
        (5, 0, 4096, 0, Error.EINVAL),
        (77, 0, 0, 0, Error.EINVAL),
    ],
)
async def test_bad_requests_get_an_error_and_the_talk_goes_on(
    client: NbdClient, command: int, offset: int, length: int, flags: int, error: int
) -> None:
    assert await client.ask(command, offset, length, flags=flags) == error
    assert await client.ask(Command.FLUSH) == 0


async def test_a_bad_write_takes_its_payload_along(client: NbdClient) -> None:
    assert await client.write(BLOCKS * 4096, bytes(3 * 4096)) == Error.ENOSPC
    assert await client.write(1, bytes(300_000)) == Error.EINVAL
    assert await client.write(0, bytes(4096)) == 0


async def test_backend_errors(client: NbdClient, backend: MoodyBackend) -> None:
    backend.failing = {BlockOp.WRITE, BlockOp.READ}
    assert await client.write(0, bytes(3 * MIB)) == Error.EIO
    assert await client.read(0, 3 * MIB) == (Error.EIO, b"")
    backend.failing = {BlockOp.FLUSH}
    assert await client.write(0, bytes(4096), flags=1) == Error.EIO


async def test_a_read_only_export(tmp_path: Path) -> None:
    path = tmp_path / "ro.sock"
    export = NbdExport(MemoryBackend(512, 64, read_only=True), "ro", socket=path)
    await export.start()
    client = await (await NbdClient.connect(str(path))).go(b"ro")
    assert await client.write(0, bytes(512)) == Error.EPERM
    assert await client.ask(Command.TRIM, 0, 512) == Error.EPERM
    assert await client.read(0, 512) == (0, bytes(512))
    await client.close()
    await export.stop()


async def test_requests_of_one_read_are_one_batch(client: NbdClient, backend: MoodyBackend) -> None:
    backend.batches.clear()
    request = nbd_wire.REQUEST.pack(nbd_wire.REQUEST_MAGIC, 0, Command.READ, 9, 0, 4096)
    client.writer.write(request * 100)
    for _ in range(100):
        assert (await client.reply())[1] == 0
    assert max(backend.batches) > 10


async def test_in_flight_requests_are_bounded(
    export: NbdExport, client: NbdClient, backend: MoodyBackend
) -> None:
    backend.holding = True
    count = nbd.REQUESTS_IN_FLIGHT_MAX * 3
    for handle in range(count):
        client.send(Command.FLUSH, 0, 0, handle=handle)
    await until(lambda: export.attachment.in_flight >= nbd.REQUESTS_IN_FLIGHT_MAX)
    assert export.attachment.in_flight == nbd.REQUESTS_IN_FLIGHT_MAX
    backend.let_go()
    handles = {(await client.reply())[0] for _ in range(count)}
    assert handles == set(range(count))


async def test_in_flight_bytes_are_bounded(
    export: NbdExport, client: NbdClient, backend: MoodyBackend
) -> None:
    backend.holding = True
    for handle in range(40):
        client.send(Command.READ, 0, 4 * MIB, handle=handle)
    await until(lambda: export.attachment.in_flight >= 32)
    assert export.attachment.in_flight == nbd.BYTES_IN_FLIGHT_MAX // MIB
    backend.let_go()
    for _ in range(40):
        assert (await client.reply())[1] == 0


async def test_a_client_that_does_not_read_is_not_served_on(
    export: NbdExport, client: NbdClient
) -> None:
    client.reader._transport.pause_reading()
    for handle in range(200):
        client.send(Command.READ, 0, MIB, handle=handle)
    await until(lambda: export.attachment.counters.reads > 0)
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert export.attachment.counters.reads < 150
    client.reader._transport.resume_reading()
    assert {(await client.reply())[0] for _ in range(200)} == set(range(200))


async def test_disconnect_waits_for_what_is_in_flight(
    client: NbdClient, backend: MoodyBackend
) -> None:
    backend.holding = True
    client.send(Command.WRITE, 0, 4096, handle=5, payload=b"x" * 4096)
    client.send(Command.DISC, 0, 0)
    await until(lambda: bool(backend.held))
    backend.let_go()
    assert (await client.reply())[:2] == (5, 0)
    assert await client.reader.read() == b""


async def test_a_client_that_vanishes_leaves_nothing(
    export: NbdExport, client: NbdClient, backend: MoodyBackend
) -> None:
    backend.holding = True
    client.send(Command.WRITE_ZEROES, 0, 8 * MIB, flags=1)
    await until(lambda: bool(backend.held))
    client.writer.transport.abort()
    await until(lambda: export.client_count == 0)
    backend.let_go()
    assert export.attachment.in_flight == 0


async def test_nonsense_after_the_handshake_is_hung_up_on(
    export: NbdExport, client: NbdClient
) -> None:
    client.writer.write(b"n" * 64)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await client.reply()
    await until(lambda: export.client_count == 0)


async def test_several_clients_see_each_other_and_too_many_are_refused(
    export: NbdExport, tmp_path: Path
) -> None:
    path = str(tmp_path / "nbd.sock")
    clients = [await (await NbdClient.connect(path)).go() for _ in range(nbd.CLIENTS_MAX)]
    assert await clients[0].write(0, b"a" * 4096) == 0
    assert await clients[5].read(0, 4096) == (0, b"a" * 4096)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await NbdClient.connect(path)
    await clients[0].close()
    await until(lambda: export.client_count == nbd.CLIENTS_MAX - 1)
    await (await NbdClient.connect(path)).close()
    for client in clients[1:]:
        await client.close()


async def test_stop_hangs_up_and_frees_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    for _ in range(2):
        export = NbdExport(MemoryBackend(512, 64), "x", socket=path)
        await export.start()
        client = await (await NbdClient.connect(str(path))).go(b"")
        await export.stop()
        assert await client.reader.read() == b""
        await client.close()


async def test_tcp_and_uris() -> None:
    export = NbdExport(MemoryBackend(512, 64), "a b", tcp=("127.0.0.1", 0))
    await export.start()
    assert export.uri == f"nbd://127.0.0.1:{export.tcp_port}/a%20b"
    taken = NbdExport(MemoryBackend(512, 64), "x", tcp=("127.0.0.1", export.tcp_port or 0))
    with pytest.raises(UnavailableError, match="cannot listen"):
        await taken.start()
    await export.stop()
    unix = NbdExport(MemoryBackend(512, 64), "block2", socket="/run/x.sock")
    assert unix.uri == "nbd+unix:///block2?socket=/run/x.sock"
