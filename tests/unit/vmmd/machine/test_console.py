"""A serial port's readers: history first, then what comes, and what a slow one misses."""

from __future__ import annotations

import asyncio
from pathlib import Path

from vmmd.guest.console import GuestConsole
from vmmd.hw.uart.history import PART_BYTES
from vmmd.machine.console import Console
from vmmd.machine.port import PortSocket


async def read(console: Console, start: int) -> tuple[bytes, int]:
    data, skipped = b"", 0
    async for piece in console.follow(start):
        data += piece.data
        skipped += piece.skipped
    return data, skipped


async def test_history_first_then_what_comes_until_the_end() -> None:
    console = Console()
    console.said(b"before ")
    everything = asyncio.create_task(read(console, 0))
    later = asyncio.create_task(read(console, console.history.total))
    await asyncio.sleep(0)
    console.said(b"and after")
    console.close()
    assert await everything == (b"before and after", 0)
    assert await later == (b"and after", 0)
    assert await read(console, 3) == (b"ore and after", 0)


async def test_a_reader_that_was_too_slow_is_told_how_much_it_missed() -> None:
    console = Console()
    console.said(b"a" * PART_BYTES)
    reader = console.follow(0)
    first = await anext(reader)
    console.said(b"b" * (3 * PART_BYTES))
    console.close()
    data, skipped = first.data, 0
    async for piece in reader:
        data += piece.data
        skipped += piece.skipped
    assert skipped == 2 * PART_BYTES
    assert data == b"a" * PART_BYTES + b"b" * PART_BYTES


async def test_what_is_typed_at_an_open_cable_is_lost() -> None:
    await Console().type(b"anybody?")


async def test_the_built_in_guest_greets_and_echoes_through_its_uart() -> None:
    console = Console()
    port = GuestConsole(console.said, lambda: None)
    console.connect(port.typed)
    port.greet("started", {"block2": "16384 blocks of 4096 bytes"})
    await console.type(b"hello\r")
    said = console.history.read_from(0).data.decode()
    assert said.splitlines() == [
        "stairwell built-in guest started: no processor, 1 disk(s)",
        "  block2: 16384 blocks of 4096 bytes",
        "hello",
    ]


async def test_a_hypervisor_s_port(tmp_path: Path) -> None:
    console = Console()
    port = PortSocket(console, tmp_path / "console.sock")
    await port.listen()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "console.sock")
    writer.write(b"login: ")
    pieces = console.follow(0)
    assert (await anext(pieces)).data == b"login: "
    await console.type(b"root\n")
    assert await reader.readexactly(5) == b"root\n"
    writer.write(b"bye")
    writer.close()
    await port.close()
    assert console.history.read_from(0).data == b"login: bye"
    await console.type(b"nobody there")
    await pieces.aclose()
