"""`serial` and `nmi`: the console of a machine, and the switch for when it hangs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import typer

from controlplane.cli.command import command
from controlplane.cli.commands.instance import Name, press
from controlplane.cli.plain import plain
from controlplane.cli.session import Session
from stairlib.rpc.errors import translated
from stairwell.controlplane.v1 import serial_service_pb2 as pb
from stairwell.vmmd.v1 import machine_service_pb2 as machine_pb

# Ctrl-]
LEAVE = b"\x1d"
HISTORY_BYTES = 16 << 10
# What is kept of the latest, and what one answer holds.
HISTORY_BYTES_MAX = 1 << 20
READ_BYTES = 4096
# What was typed and not yet taken; a machine that does not listen takes nothing.
TYPED_BYTES_MAX = 4 << 20
LEAVE_SECONDS = 1.0


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
    command(app, "serial")(serial)
    command(app, "nmi")(nmi)


async def serial(
    session: Session,
    name: Name = "",
    history: Annotated[
        int,
        typer.Option(
            "--history",
            min=0,
            max=HISTORY_BYTES_MAX,
            metavar="BYTES",
            help="How much of before to begin with.",
        ),
    ] = HISTORY_BYTES,
    only_history: Annotated[
        bool, typer.Option("--only-history", help="Print what was said and leave.")
    ] = False,
) -> int:
    """Be at the serial console of an instance's machine. Ctrl-] leaves it.

    What the machine said before comes first. Any number of people may be there, and all may type.
    Without a terminal, what is piped in is typed, and the console is printed until the machine
    ends.
    """
    if only_history:
        return await _print_history(session, name, history)
    keys = _Keys()
    if keys.is_terminal:
        session.note("Ctrl-] leaves the console")
    with keys.raw():
        left = await _attached(session, name, history, keys)
    if keys.is_terminal:
        session.note("\nleft the console" if left else "\nthe machine has ended")
    return 0


async def _print_history(session: Session, name: str, count: int) -> int:
    request = pb.GetHistoryRequest(instance=name, most_recent=count, max_bytes=count or 1)
    answer = await session.call(session.serial_ports.GetHistory, request, pb.GetHistoryResponse)
    if session.is_json:
        text = answer.data.decode(errors="replace")
        session.show({"text": text, "last_byte_offset": answer.last_byte_offset}, "")
    else:
        _print(answer.data)
    return 0


def _print(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


async def _attached(session: Session, name: str, history: int, keys: _Keys) -> bool:
    """Both ways until somebody ends it; whether that was who types."""
    typing = _Typing(keys)

    async def sent() -> AsyncIterator[pb.AttachRequest]:
        yield pb.AttachRequest(instance=name, history_bytes=history)
        async for data in typing:
            yield pb.AttachRequest(data=data)

    async def shown() -> None:
        async for answer in call:
            if answer.skipped_bytes:
                _print(f"\r\n[{answer.skipped_bytes} bytes missed]\r\n".encode())
            _print(answer.data)

    with translated(session.peer):
        # mypy-protobuf types a stub by its channel; this one is asynchronous.
        stub: Any = session.serial_ports
        call = stub.Attach(sent())
        showing = asyncio.create_task(shown())
        leaving = asyncio.create_task(typing.until_left())
        try:
            await asyncio.wait({showing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if showing.done():
                await showing
        finally:
            call.cancel()
            for task in (showing, leaving):
                task.cancel()
            await asyncio.gather(showing, leaving, return_exceptions=True)
    if typing.lost_bytes:
        session.note(f"\n{typing.lost_bytes} typed bytes were not taken, and are lost")
    return typing.left


class _Typing:
    """What is typed on its way out. A terminal is read whether the machine takes it or not, since
    Ctrl-] may be behind; what is piped in is read as it is taken."""

    def __init__(self, keys: _Keys) -> None:
        self._keys = keys
        self._waiting = bytearray()
        self._changed = asyncio.Condition()
        self._ended = False
        self.left = False
        self.lost_bytes = 0

    async def until_left(self) -> None:
        """Reads; returns when who types leaves and what came before is sent, or is not taken."""
        async for data in self._keys:
            before, leave, _rest = (
                data.partition(LEAVE) if self._keys.is_terminal else (data, b"", b"")
            )
            await self._add(before)
            if leave:
                self.left = True
                break
        async with self._changed:
            self._ended = True
            self._changed.notify_all()
        if not self.left:
            # Nothing more is typed; the machine is listened to.
            await asyncio.Event().wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS), self._changed:
                await self._changed.wait_for(lambda: not self._waiting)
        self.lost_bytes += len(self._waiting)

    async def _add(self, data: bytes) -> None:
        async with self._changed:
            if not self._keys.is_terminal:
                await self._changed.wait_for(lambda: not self._waiting)
            room = TYPED_BYTES_MAX - len(self._waiting)
            self._waiting += data[:room]
            self.lost_bytes += max(0, len(data) - room)
            self._changed.notify_all()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Pieces to send. The next one is asked for when the last one is gone."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._waiting) or self._ended)
                data = bytes(self._waiting[:READ_BYTES])
            if not data:
                return
            yield data
            async with self._changed:
                del self._waiting[: len(data)]
                self._changed.notify_all()


class _Keys:
    """Standard input, a piece at a time."""

    def __init__(self) -> None:
        # A program that was started without an input has none to ask.
        self._fd = os.open(os.devnull, os.O_RDONLY) if sys.stdin is None else sys.stdin.fileno()
        self.is_terminal = os.isatty(self._fd)

    @contextlib.contextmanager
    def raw(self) -> Iterator[None]:
        """Each key as it is pressed, and none for this program; the terminal is put back."""
        if not self.is_terminal:
            yield
            return
        before = termios.tcgetattr(self._fd)
        # What was typed ahead is typed.
        tty.setraw(self._fd, termios.TCSADRAIN)
        try:
            yield
        finally:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, before)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self._read():
            yield data

    async def _read(self) -> bytes:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        try:
            loop.add_reader(self._fd, ready.set)
        except PermissionError:
            # A plain file is always ready, and no loop waits for one.
            return os.read(self._fd, READ_BYTES)
        try:
            await ready.wait()
            return os.read(self._fd, READ_BYTES)
        finally:
            loop.remove_reader(self._fd)


async def nmi(session: Session, name: Name = "") -> None:
    """Send a non-maskable interrupt to an instance's machine: its kernel dumps, or panics."""
    instance = await press(session, name, machine_pb.GUEST_SIGNAL_NMI)
    session.show(plain(instance), f"{instance.name}: NMI sent")
