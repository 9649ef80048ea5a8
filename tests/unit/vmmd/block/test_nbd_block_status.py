"""Holes: what backends tell of them, and how the export passes it on."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.unit.vmmd.block.nbd_client import NbdClient
from tests.unit.vmmd.block.stores import SIZE, Store, allocation
from vmmd.block import nbd_wire as wire
from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.block.concatenation import Concatenation
from vmmd.block.file import FileBackend
from vmmd.block.memory import MemoryBackend
from vmmd.block.nbd import NbdExport
from vmmd.block.nbd_handshake import ExportDescription, Handshake
from vmmd.block.nbd_transmission import status_chunk
from vmmd.block.overlay import Overlay, ReadOnlyView

HOLE = wire.STATE_HOLE | wire.STATE_ZERO
ACK, ERR_INVALID = wire.OptionReply.ACK, wire.OptionReply.ERR_INVALID
CONTEXT = b"base:allocation"
LIST, SET = wire.Option.LIST_META_CONTEXT, wire.Option.SET_META_CONTEXT


def queries(*words: bytes, name: bytes = b"block2") -> bytes:
    """The data of the options about contexts."""
    texts = [struct.pack(">I", len(each)) + each for each in (name, *words)]
    return texts[0] + struct.pack(">I", len(words)) + b"".join(texts[1:])


async def serve(backend: object, tmp_path: Path) -> tuple[NbdExport, NbdClient]:
    export = NbdExport(backend, "block2", socket=tmp_path / "nbd.sock")  # type: ignore[arg-type]
    await export.start()
    return export, await NbdClient.connect(str(tmp_path / "nbd.sock"))


async def select(client: NbdClient, name: bytes = b"block2") -> list[tuple[int, bytes]]:
    assert await client.option(wire.Option.STRUCTURED_REPLY) == [(ACK, b"")]
    return await client.option(SET, queries(CONTEXT, b"qemu:dirty-bitmap:x", name=name))


async def test_stretches_of_data_and_holes(tmp_path: Path) -> None:
    store = Store(64, b3=1, b4=1, b9=1)
    export, client = await serve(store, tmp_path)
    try:
        assert await select(client) == [(4, struct.pack(">I", 1) + CONTEXT), (ACK, b"")]
        await client.go(structured=False)
        expected = [(3 * SIZE, HOLE), (2 * SIZE, 0), (4 * SIZE, HOLE), (SIZE, 0), (54 * SIZE, HOLE)]
        assert await client.statuses(0, 64 * SIZE) == expected
        assert await client.statuses(0, 64 * SIZE, flags=wire.COMMAND_REQ_ONE) == expected[:1]
        assert await client.statuses(4 * SIZE, 3 * SIZE) == [(SIZE, 0), (2 * SIZE, HOLE)]
        assert await client.write(0, bytes(SIZE)) == 0
        assert await client.ask(wire.Command.TRIM, 9 * SIZE, SIZE) == 0
        after = [(SIZE, 0), (2 * SIZE, HOLE), (2 * SIZE, 0), (59 * SIZE, HOLE)]
        assert await client.statuses(0, 64 * SIZE) == after
        store.told = 2
        assert await client.statuses(0, 64 * SIZE) == [*after[:1], (SIZE, HOLE)]
        store.status[BlockOp.ALLOCATION] = BlockStatus.FAILED
        assert await client.statuses(0, 64 * SIZE) == wire.Error.EIO
        del store.status[BlockOp.ALLOCATION]
        for offset, length in ((1, SIZE), (0, 0), (64 * SIZE, SIZE), (63 * SIZE, 2 * SIZE)):
            assert await client.statuses(offset, length) == wire.Error.EINVAL
        assert await client.statuses(0, SIZE, flags=wire.COMMAND_DF) == wire.Error.EINVAL
    finally:
        await client.close()
        await export.stop()


@pytest.mark.parametrize("selected", [None, b""])
async def test_only_who_selected_it_is_told(tmp_path: Path, selected: bytes | None) -> None:
    """A context that was selected under another name than the client came in by counts for none."""
    export, client = await serve(Store(8), tmp_path)
    try:
        if selected is not None:
            await select(client, selected)
        await client.go(structured=selected is None)
        assert await client.statuses(0, SIZE) == wire.Error.EINVAL
    finally:
        await client.close()
        await export.stop()


def answers(*options: tuple[int, bytes]) -> tuple[Handshake, list[tuple[int, bytes]]]:
    """A handshake after these options, and (kind, data) of its replies."""
    shake = Handshake(ExportDescription("block2", MemoryBackend(SIZE, 8).info))
    shake.receive(wire.CLIENT_FLAGS.pack(3))
    found = []
    for option, data in options:
        out = shake.receive(wire.OPTION.pack(wire.OPTION_MAGIC, option, len(data)) + data)
        while out:
            *_, kind, length = wire.OPTION_REPLY.unpack_from(out)
            found.append((kind, out[20 : 20 + length]))
            out = out[20 + length :]
    return shake, found


@pytest.mark.parametrize("words", [(), (b"base:",), (CONTEXT,), (b"other:", CONTEXT)])
def test_contexts_are_listed(words: tuple[bytes, ...]) -> None:
    assert answers((LIST, queries(*words)))[1] == [(4, bytes(4) + CONTEXT), (ACK, b"")]


def test_what_is_not_there_is_neither_listed_nor_selected() -> None:
    structured = (wire.Option.STRUCTURED_REPLY, b"")
    assert answers((LIST, queries(b"other:")))[1] == [(ACK, b"")]
    assert answers(structured, (SET, queries(b"base:")))[1] == [(ACK, b"")] * 2
    assert answers(structured, (SET, queries()))[1] == [(ACK, b"")] * 2
    [_, (kind, _)] = answers(structured, (SET, queries(CONTEXT, name=b"other")))[1]
    assert kind == wire.OptionReply.ERR_UNKNOWN
    [(kind, _)] = answers((SET, queries(CONTEXT)))[1]
    assert kind == ERR_INVALID


def test_a_later_selection_replaces_an_earlier_one() -> None:
    name = b"block2"
    go = (wire.Option.GO, struct.pack(">I", len(name)) + name + bytes(2))
    chosen = ((wire.Option.STRUCTURED_REPLY, b""), (SET, queries(CONTEXT)))
    assert answers(*chosen, go)[0].tells_holes
    assert not answers(*chosen, (SET, queries()), go)[0].tells_holes
    assert not answers(*chosen, (SET, b"nonsense"), go)[0].tells_holes


@pytest.mark.parametrize("cut", range(len(queries(CONTEXT, b"base:"))))
def test_malformed_queries(cut: int) -> None:
    whole = queries(CONTEXT, b"base:")
    for data in (whole[:cut], whole + bytes(cut + 1)):
        [(kind, _)] = answers((LIST, data))[1]
        assert kind == ERR_INVALID


def test_a_chunk_of_one_block() -> None:
    chunk = status_chunk(7, np.array([False]), 4096, one=False)
    assert chunk[20:] == struct.pack(">III", 1, 4096, HOLE)


async def file_allocation(backend: FileBackend, offset: int, length: int) -> list[int]:
    told: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
    request = Request(BlockOp.ALLOCATION, None, offset, length)
    backend.submit([request], lambda done: told.set_result(done[0].owned.astype(int).tolist()))
    async with asyncio.timeout(10):
        return await told


@pytest.mark.parametrize("block_size", [512, 4096, 32768])
async def test_a_file_tells_by_its_holes(tmp_path: Path, block_size: int) -> None:
    """Every block with a byte that is not zero is told of, and a wide hole is seen."""
    path = tmp_path / "disk.img"
    size = 4 << 20
    with path.open("wb") as file:
        file.truncate(size)
        for at in (5, 700_000, size - 1):
            os.pwrite(file.fileno(), b"x", at)
    blocks = size // block_size
    backend = FileBackend(path, block_size=block_size)
    try:
        held = await file_allocation(backend, 0, blocks)
        assert len(held) == blocks
        for at in (5, 700_000, size - 1):
            assert held[at // block_size] == 1
        assert held[(1 << 20) // block_size : (3 << 20) // block_size] == [0] * (
            (2 << 20) // block_size
        )
        first = (1 << 20) // block_size
        assert await file_allocation(backend, first, blocks - first) == held[first:]
    finally:
        backend.close()


async def test_a_file_of_many_stretches_tells_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(1 << 30)
        for at in range(0, 1 << 26, 1 << 16):
            os.pwrite(file.fileno(), b"x", at)
    backend = FileBackend(path, block_size=4096)
    try:
        held = await file_allocation(backend, 0, 1 << 18)
        assert 0 < len(held) < 1 << 14
        assert sum(held) == len(range(0, len(held), 16))
        assert all(held[::16])
    finally:
        backend.close()


def test_memory_counts_as_data() -> None:
    assert allocation(MemoryBackend(SIZE, 8), 2, 3) == [1, 1, 1]


def test_children_one_after_another_answer_each_for_themselves() -> None:
    whole = Concatenation([Store(4, b1=1), Store(4, b0=1)])
    assert allocation(whole, 0, 8) == [0, 1, 0, 0]
    assert allocation(whole, 3, 1) == [0]
    assert allocation(whole, 4, 4) == [1, 0, 0, 0]


def test_an_overlay_holds_what_its_front_or_its_parent_holds() -> None:
    front, parent = Store(8, b1=1, b7=1), Store(6, b1=1, b3=1)
    overlay = Overlay(front, parent)
    assert allocation(overlay, 0, 8) == [0, 1, 0, 1, 0, 0, 0, 1]
    assert allocation(overlay, 2, 2) == [0, 1]
    parent.told = 2
    assert allocation(overlay, 0, 8) == [0, 1]
    front.told = 1
    assert allocation(overlay, 0, 8) == [0]
    assert allocation(overlay, 6, 2) == [0]
    assert not front.ops(BlockOp.READ)
    assert not parent.ops(BlockOp.READ_OWNED)


def test_a_read_only_view_passes_the_question_on() -> None:
    assert allocation(ReadOnlyView(Store(4, b2=1)), 0, 4) == [0, 0, 1, 0]
