"""What answers QMP in place of a QEMU, command by command, as a test wants."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any


class MonitorPeer:
    """Connects to a monitor's socket, says hello, and keeps what it is asked.

    Commands are answered in order. One that is in `silent` is answered when `answer()` is called;
    those behind it wait with it, as QEMU's do. `refused` are answered with an error, once each.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.silent: set[str] = set()
        self.refused: set[str] = set()
        self._go_on = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None

    async def connect(self, path: Path) -> None:
        """Greets and serves."""
        reader, self._writer = await asyncio.open_unix_connection(str(path))
        version = {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": ""}
        self._say({"QMP": {"version": version, "capabilities": []}})
        self._task = asyncio.create_task(self._serve(reader))

    def answer(self) -> None:
        """Goes on, and keeps silent no more."""
        self.silent.clear()
        self._go_on.set()

    def event(self, name: str, **data: Any) -> None:
        """Tells news."""
        self._say({"event": name, "data": data, "timestamp": {"seconds": 0, "microseconds": 0}})

    async def close(self) -> None:
        """Hangs up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()

    def _say(self, message: dict[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(message).encode() + b"\r\n")

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        # Nothing but its own end ends a command.
        text = ""
        while data := await reader.read(4096):
            text += data.decode()
            while text:
                try:
                    message, end = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    break
                text = text[end:].lstrip()
                await self._take(message)

    async def _take(self, message: dict[str, Any]) -> None:
        name = message["execute"]
        self.asked.append((name, message.get("arguments", {})))
        if name in self.silent:
            await self._go_on.wait()
        # The first one, of the capabilities, has none.
        identity = {"id": message["id"]} if "id" in message else {}
        if name in self.refused:
            self.refused.discard(name)
            error = {"class": "DeviceNotFound", "desc": "there is none"}
            self._say({"error": error, **identity})
        else:
            self._say({"return": {}, **identity})
