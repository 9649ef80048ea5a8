"""Orders to a running link, over a unix socket: one line of JSON there, one back.

    {"do": "show"}                                          nothing changes
    {"do": "set", "direction": "back", "values": {"delay": 0.02, "rate": 1048576}}
    {"do": "cut"}, {"do": "join"}, {"do": "clear"}

Each answer is the link's state then, or {"error": "..."}. Whoever may write to the socket's file
may command; it is made for its owner alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from pathlib import Path
from typing import Any, Final

from stairlib.link.proxy import Link
from stairlib.link.shape import Shape
from stairlib.model.errors import InvalidRequestError, StairwellError, UnavailableError
from stairlib.runtime.listening import stop_listening

LINE_BYTES_MAX: Final = 64 << 10
# Asking is one turn of an event loop, on a machine that may be busy.
ASK_SECONDS: Final = 20.0


class Control:
    """The socket at `path`, for one link."""

    def __init__(self, link: Link, path: Path) -> None:
        self._link = link
        self._path = path
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens. UnavailableError CONTROL_SOCKET when that cannot be."""
        before = os.umask(0o177)
        try:
            # Left behind by a link that was killed. Of two at one path the second one is asked.
            self._path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(
                self._serve, self._path, limit=LINE_BYTES_MAX
            )
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on {self._path}: {error.strerror}", reason="CONTROL_SOCKET"
            ) from error
        finally:
            os.umask(before)

    async def close(self) -> None:
        """Listens no more."""
        if self._server is not None:
            await stop_listening([self._server])
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError):
            # Gone, or a line without an end.
            pass
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            await self._obey(_request(line))
        except StairwellError as error:
            return {"error": error.message}
        return self._link.state()

    async def _obey(self, request: dict[str, Any]) -> None:
        match request.get("do"):
            case "show":
                pass
            case "set":
                values = request.get("values")
                if not isinstance(values, dict):
                    raise InvalidRequestError("set takes values")
                self._link.set(values, str(request.get("direction") or ""))
            case "clear":
                self._link.set(Shape().to_json())
                await self._link.join()
            case "cut":
                await self._link.cut()
            case "join":
                await self._link.join()
            case other:
                raise InvalidRequestError(f"a link does not do {other!r}")


async def ask(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The state of the link whose socket is at `path`, after what it was asked to do.

    UnavailableError LINK_AWAY when none listens there; InvalidRequestError when it refuses.
    """
    try:
        async with asyncio.timeout(ASK_SECONDS):
            reader, writer = await asyncio.open_unix_connection(path, limit=LINE_BYTES_MAX)
            try:
                writer.write(json.dumps(request).encode() + b"\n")
                line = await reader.readline()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            answer: dict[str, Any] = json.loads(line)
    except (OSError, TimeoutError, ValueError) as error:
        raise UnavailableError(
            f"no link answers at {path}: is it running, and was --control given to both?",
            reason="LINK_AWAY",
        ) from error
    if "error" in answer:
        raise InvalidRequestError(str(answer["error"]))
    return answer


def _request(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        raise InvalidRequestError("that is not a line of JSON") from None
    if not isinstance(found, dict):
        raise InvalidRequestError("a request is a JSON object")
    return found
