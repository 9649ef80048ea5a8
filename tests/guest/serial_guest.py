"""A guest at the serial console of its instance, as `stairwell serial` reaches it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from stairwell.controlplane.v1 import serial_service_pb2 as pb
from stairwell.controlplane.v1.serial_service_pb2_grpc import SerialServiceStub
from tests.guest.machine import BOOT_SECONDS, COMMAND_SECONDS, GuestError
from tests.integration.cluster import LOOK_SECONDS, Cluster


class SerialGuest:
    """Types commands and reads what they print. `attach` first, and again when its machine was made
    anew."""

    def __init__(self, cluster: Cluster, instance: str) -> None:
        self._cluster = cluster
        self._instance = instance
        self._typed: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._call: Any = None
        self._text = b""
        self._number = 0

    async def attach(self, history: int = 1 << 20) -> None:
        """Hangs up, and attaches to the machine there is now."""
        self.hang_up()
        self._typed, self._text = asyncio.Queue(), b""
        typed = self._typed

        async def requests() -> AsyncIterator[pb.AttachRequest]:
            yield pb.AttachRequest(instance=self._instance, history_bytes=history)
            while (data := await typed.get()) is not None:
                yield pb.AttachRequest(data=data)

        stub: Any = SerialServiceStub(self._cluster.channel(self._cluster.controlplane.address))
        self._call = stub.Attach(requests())

    def hang_up(self) -> None:
        """Leaves the console."""
        if self._call is not None:
            self._typed.put_nowait(None)
            self._call.cancel()
            self._call = None

    async def ready(self) -> None:
        """Returns when the guest takes commands."""
        await self.until(b"guest: ready", 2 * BOOT_SECONDS)

    async def attach_until_ready(self) -> None:
        """Attaches to a machine that has just been made anew, and returns when its guest takes
        commands. A console that is not there yet, or is still the former one's, is tried again."""
        end = time.monotonic() + 2 * BOOT_SECONDS
        while True:
            await self.attach()
            try:
                await self.until(b"guest: ready", end - time.monotonic())
            except (GuestError, grpc.RpcError):
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(LOOK_SECONDS)
            else:
                return

    async def until(self, mark: bytes, seconds: float) -> bytes:
        """The console's text up to the mark, which is taken with it."""
        end = time.monotonic() + seconds
        while mark not in self._text:
            try:
                async with asyncio.timeout(max(end - time.monotonic(), 0.01)):
                    answer = await self._call.read()
            except TimeoutError:
                answer = None
            if not isinstance(answer, pb.AttachResponse):
                last = self._text[-2000:].decode(errors="replace")
                raise GuestError(f"waited for {mark!r} in vain ({answer}); {last}")
            self._text += answer.data
        before, _mark, self._text = self._text.partition(mark)
        return before

    def type(self, text: str) -> None:
        """Types it."""
        self._typed.put_nowait(text.encode())

    def send(self, command: str) -> bytes:
        """Types a command; the mark that is printed behind it, with its status."""
        self._number += 1
        # The mark is put together in the guest, so that what is typed is not taken for it.
        self.type(f'{command}; echo "mark-"{self._number}:$?\n')
        return f"mark-{self._number}:".encode()

    async def wait(self, mark: bytes, seconds: float = COMMAND_SECONDS) -> str:
        """What a sent command printed; GuestError unless its status is 0."""
        text = await self.until(mark, seconds)
        status = (await self.until(b"\n", 10.0)).strip()
        if status != b"0":
            raise GuestError(f"status {status.decode()}: {text.decode(errors='replace')[-2000:]}")
        return text.decode(errors="replace").replace("\r\n", "\n").strip()

    async def run(self, command: str, seconds: float = COMMAND_SECONDS) -> str:
        """A command to its end: what it printed; GuestError unless its status is 0."""
        return await self.wait(self.send(command), seconds)
