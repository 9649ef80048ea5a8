"""The console's keys: without a terminal, and from one to a machine that does not listen."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from collections.abc import Iterator

import pytest

from controlplane.cli.commands.serial import LEAVE, _Keys, _Typing

PASTE = b"x" * 300_000


async def test_a_program_without_an_input_has_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    keys = _Keys()
    assert not keys.is_terminal
    with keys.raw():
        assert [piece async for piece in keys] == []


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where a person types; standard input is the other end."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "rb", buffering=0) as end:
        monkeypatch.setattr(sys, "stdin", end)
        yield ours
    os.close(ours)


async def typed(terminal: int, data: bytes) -> None:
    def write() -> None:
        rest = data
        while rest:
            rest = rest[os.write(terminal, rest[:2048]) :]

    await asyncio.to_thread(write)


async def test_a_machine_that_takes_nothing_can_be_left_behind_a_large_paste(terminal: int) -> None:
    keys = _Keys()
    with keys.raw():
        typing = _Typing(keys)
        sent = aiter(typing)
        leaving = asyncio.create_task(typing.until_left())
        # The first piece goes, and no other is asked for.
        first = asyncio.ensure_future(anext(sent))
        async with asyncio.timeout(30):
            await typed(terminal, PASTE + LEAVE + b"of no interest")
            await leaving
            assert await first
    assert typing.left
    assert typing.lost_bytes == len(PASTE)


async def test_what_was_typed_before_one_leaves_is_sent(terminal: int) -> None:
    keys = _Keys()
    with keys.raw():
        typing = _Typing(keys)
        leaving = asyncio.create_task(typing.until_left())

        async def take() -> bytes:
            return b"".join([piece async for piece in typing])

        taking = asyncio.create_task(take())
        async with asyncio.timeout(30):
            await typed(terminal, PASTE + LEAVE)
            await leaving
            assert await taking == PASTE
    assert (typing.left, typing.lost_bytes) == (True, 0)


async def test_what_is_piped_in_is_read_as_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that takes nothing does not fill this process; the end of the input is no leave."""
    there, here = os.pipe()
    os.set_blocking(here, False)
    with os.fdopen(there, "rb", buffering=0) as end:
        monkeypatch.setattr(sys, "stdin", end)
        typing = _Typing(_Keys())
        reading = asyncio.create_task(typing.until_left())
        sent = aiter(typing)
        os.write(here, b"one" + LEAVE)
        async with asyncio.timeout(30):
            assert await anext(sent) == b"one" + LEAVE
            os.write(here, b"two")
            assert await anext(sent) == b"two"
            os.close(here)
            with pytest.raises(StopAsyncIteration):
                await anext(sent)
        assert not reading.done()
        assert not typing.left
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
