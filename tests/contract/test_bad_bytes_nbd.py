"""Bad bytes at every stage of an NBD conversation: whoever sends them is hung up on or answered,
and the client beside them notices nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import struct

import pytest

from tests.unit.vmmd.block.nbd_client import NbdClient
from vmmd.block import nbd
from vmmd.block import nbd_wire as wire
from vmmd.block.memory import MemoryBackend
from vmmd.block.nbd import NbdExport

BLOCKS = 1024
SECONDS = 30.0
ROUNDS = 25


def a_conversation(chance):
    """All that a client says who reads, writes, asks for holes, flushes, trims and leaves; and
    where in it a message begins."""
    request = struct.pack(">I", 6) + b"block2" + struct.pack(">H", 0)
    context = struct.pack(">I", 6) + b"block2" + struct.pack(">II", 1, 15) + b"base:allocation"
    said = [wire.CLIENT_FLAGS.pack(3)]
    for option, data in (
        (wire.Option.STRUCTURED_REPLY, b""),
        (wire.Option.LIST, b""),
        (wire.Option.SET_META_CONTEXT, context),
        (wire.Option.GO, request),
    ):
        said.append(wire.OPTION.pack(wire.OPTION_MAGIC, option, len(data)) + data)
    for handle, command in enumerate(chance.choices(list(wire.Command), k=12)):
        length = 4096 * chance.randrange(1, 9)
        offset = 4096 * chance.randrange(BLOCKS - 9)
        payload = chance.randbytes(length) if command == wire.Command.WRITE else b""
        header = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, command, handle, offset, length)
        said.append(header + payload)
    starts = [sum(map(len, said[:index])) for index in range(len(said))]
    return b"".join(said), starts


def spoilt(chance):
    """One conversation with one thing wrong in it: the ways to be wrong take turns."""
    good, starts = a_conversation(chance)
    at = chance.choice(starts)
    noise = chance.randbytes(chance.choice((1, 7, 28, 400, 70_000)))
    flipped = bytearray(good)
    for _flip in range(chance.randrange(1, 4)):
        # Mostly heads, which decide more than payloads.
        place = min(at + chance.randrange(28), len(flipped) - 1)
        flipped[place] ^= 1 << chance.randrange(8)
    return chance.choice(
        (
            good,
            noise,
            good[: chance.randrange(len(good))],
            good[:at] + noise + good[at:],
            good[:at] + noise,
            bytes(flipped),
            good[:at] + b"\xff" * 32 + good[at:],
        )
    )


async def say(path, content, *, reads):
    """Says it and leaves, politely or not; who does not read what is answered is let wait."""
    reader, writer = await asyncio.open_unix_connection(path)
    with contextlib.suppress(ConnectionError, TimeoutError):
        writer.write(content)
        async with asyncio.timeout(SECONDS):
            if reads:
                writer.write_eof()
                while await reader.read(1 << 20):
                    pass
            else:
                await reader.readexactly(len(wire.GREETING.pack(0, 0, 0)))
    writer.transport.abort()


@pytest.mark.parametrize("seed", range(4))
async def test_nobody_else_notices(tmp_path, seed):
    chance = random.Random(seed)
    path = str(tmp_path / "nbd.sock")
    export = NbdExport(MemoryBackend(4096, BLOCKS), "block2", socket=tmp_path / "nbd.sock")
    await export.start()
    try:
        beside = await (await NbdClient.connect(path)).go()
        for number in range(ROUNDS):
            contents = [spoilt(chance) for _client in range(nbd.CLIENTS_MAX - 2)]
            await asyncio.gather(
                *(say(path, content, reads=chance.random() < 0.7) for content in contents)
            )
            async with asyncio.timeout(SECONDS):
                while export.client_count > 1:  # noqa: ASYNC110 - looked at from outside
                    await asyncio.sleep(0.001)
            block = os.urandom(4096)
            assert await beside.write(4096 * number, block) == 0
            assert await beside.read(4096 * number, 4096) == (0, block)
        assert export.attachment.in_flight == 0
        again = await (await NbdClient.connect(path)).go()
        await again.close()
        await beside.close()
    finally:
        await export.stop()
