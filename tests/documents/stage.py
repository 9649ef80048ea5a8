"""The cluster that the documents are about, on free ports, and their commands run there."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.documents.console_blocks import Play
from tests.integration.agent import Agent
from tests.integration.cluster import run
from tests.integration.document_house import DOCUMENT_PORTS, EXAMPLES, House

DOCS = Path(__file__).resolve().parents[2] / "docs"
TOUR, OPERATIONS, TUTORIAL = DOCS / "grpcurl.md", DOCS / "operations.md", DOCS / "tutorial.md"
# What the documents call things that are other ones here.
FOLDER, HOST = "/var/lib/stairwell", "host1"
AGENT, AGENT_PORTS = "127.0.0.1:17000", (8910, 8912)


def grpcurl() -> str | None:
    """The program: STAIRWELL_GRPCURL, else the one of `make grpcurl`, else the PATH's."""
    named = os.environ.get("STAIRWELL_GRPCURL")
    made = EXAMPLES.parent / ".grpcurl" / "grpcurl"
    return named or (str(made) if made.exists() else shutil.which("grpcurl"))


class Stage:
    """A running cluster; `play` knows what stands for what."""

    def __init__(self, house: House, agent: Agent) -> None:
        addresses = {
            f"127.0.0.1:{port}": f"127.0.0.1:{house.port(port)}" for port in DOCUMENT_PORTS
        }
        addresses |= {
            "127.0.0.1:55400": house.controlplane.address,
            "127.0.0.1:55401": house.vmmd.address,
            "127.0.0.1:9998": house.dsc.address,
            AGENT: agent.program.address,
        }
        for told, real in zip(AGENT_PORTS, agent.ports, strict=True):
            addresses[f"127.0.0.1:{told}"] = f"127.0.0.1:{real}"
        words = {
            "/run/stairwell": str(house.sockets),
            FOLDER: str(house.folder),
            f'"{HOST}"': f'"{socket.gethostname()}"',
        }
        self.play = Play(addresses, words)
        self._folder = house.folder
        # Words are wrapped at that width whoever looks.
        self._env = {"STAIRWELL_PORT": str(house.controlplane.port), "COLUMNS": "100"}
        self._env |= house.env
        for file in EXAMPLES.rglob("*.json"):
            copy = house.folder / "examples" / file.relative_to(EXAMPLES)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(self.play.real(file.read_text()))

    async def run(self, command: str) -> str:
        """What a command of a document prints, and then what it complains of."""
        found = grpcurl()
        path = [str(Path(sys.executable).parent), os.environ["PATH"]]
        if found is not None:
            path.insert(0, str(Path(found).parent))
        env = {**self._env, "PATH": os.pathsep.join(path)}
        answer = await run("bash", "-c", self.play.real(command), env=env, cwd=self._folder)
        return answer.out + answer.err


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    """The documents' programs, all serving; gone afterwards."""
    house = House(folder)
    agent = Agent(folder / "agent", len(AGENT_PORTS))
    try:
        for program in (house.dsc, house.vmmd, house.controlplane, agent.program):
            program.launch()
        for program in (house.dsc, house.vmmd, house.controlplane, agent.program):
            await program.serving()
        yield Stage(house, agent)
    finally:
        agent.program.sweep()
        await house.close()
