"""A member behind a link that can be made bad, as plain processes.

Member and link are on one host, so the link has another address of it, and the same port numbers:
what a member tells of itself leads through the link. Its unix socket would lead past it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from stairlib.link.control import ask
from stairlib.link.proxy import BACK, THERE
from tests.integration.cluster import LOOPBACK, Cluster, Program, until

LINK_HOST = "127.0.0.2"
# Below this no directory can be made: nothing listens on a unix socket.
NO_DIRECTORY = os.devnull


class LinkProgram:
    """A link, and the member behind it, which is told of it before either is started."""

    def __init__(self, cluster: Cluster, member: Program) -> None:
        port = member.port
        self._path = cluster.sockets / f"link-{port}.sock"
        self._member = member
        forwards = [f"{LINK_HOST}:{each}={LOOPBACK}:{each}" for each in (port, port + 1)]
        command = ["-m", "stairlib.link", "run", *forwards, "--control", str(self._path)]
        self._program = cluster.program(f"link-{port}", [sys.executable, *command], port)
        member.address = f"{LINK_HOST}:{port}"
        member.command += ["--data-port", str(port + 1), "--advertise", LINK_HOST]

    async def start(self) -> None:
        """Starts both; returns when the member serves through the link."""
        self._program.launch()

        async def look() -> bool:
            assert self._program.is_running, self._program.tail()
            return self._path.exists()

        await until(look, bool)
        await self._member.start(XDG_RUNTIME_DIR=NO_DIRECTORY)

    async def set(self, direction: str = "", **values: Any) -> None:
        """Makes it worse or better; see stairlib.link.shape."""
        await ask(self._path, {"do": "set", "direction": direction, "values": values})

    async def cut(self) -> None:
        """Resets its connections and refuses new ones."""
        await ask(self._path, {"do": "cut"})

    async def clear(self) -> None:
        """Takes everything out of the way."""
        await ask(self._path, {"do": "clear"})

    async def passed(self, *directions: str) -> int:
        """Bytes that went through it, both ways if none is named."""
        state = await ask(self._path, {"do": "show"})
        return sum(int(state[each]["bytes"]) for each in directions or (THERE, BACK))
