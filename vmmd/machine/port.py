"""The console of a machine whose serial port is somebody else's: bytes on a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from stairlib.model.errors import UnavailableError
from stairlib.runtime.listening import stop_listening
from vmmd.machine.console import Console

READ_BYTES = 64 << 10


class PortSocket:
    """Listens for the hypervisor, which connects once; its port is `console` from then on."""

    def __init__(self, console: Console, path: Path) -> None:
        self._console = console
        self._path = path
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None

    async def listen(self) -> None:
        """Returns when the hypervisor may connect."""
        try:
            self._server = await asyncio.start_unix_server(self._connected, self._path)
        except OSError as error:
            raise UnavailableError(
                f"the console cannot listen on {self._path}: {error.strerror or error}",
                reason="PORT_IN_USE",
            ) from error

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self._writer = writer
        self._console.connect(self._write)
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(READ_BYTES):
                    self._console.said(data)
        finally:
            self._console.connect(None)
            writer.close()
            self._serving.discard(task)

    async def _write(self, data: bytes) -> None:
        assert self._writer is not None
        with contextlib.suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def close(self) -> None:
        """Hangs up; what the hypervisor said before it ended was read."""
        if self._server is not None:
            await stop_listening([self._server])
        serving = {*self._serving}
        if serving:
            # It has hung up by now, so this is the end of what it said.
            _done, late = await asyncio.wait(serving, timeout=1.0)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._path.unlink(missing_ok=True)
