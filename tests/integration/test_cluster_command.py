"""`stairwell cluster` with real processes: up, used, torn apart, and gone without a trace."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli.cluster.networks import Networks, tag_of
from controlplane.cli.cluster.plan import PORT_STEP
from controlplane.cli.cluster.processes import running
from tests.integration.cluster import LOOPBACK, Answer, run, until
from tests.ports import free_ports

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

PROGRAMS = ["controlplane", "vmmd", "ds1", "ds2", "ds3", "ds4"]
# The limit of silence is 20 s, and others may have the machine.
CUT_SECONDS = 90.0


class Written:
    """A cluster.toml on ports of its own."""

    def __init__(self, folder: Path, head: str = "", members: str = "", vmmd: str = "") -> None:
        self.file = folder / "cluster.toml"
        self.directory = folder / "cluster"
        base = free_ports(len(PROGRAMS), step=PORT_STEP)
        self.port, self.first = base, base + 2 * PORT_STEP
        self.file.write_text(
            f"{head}\n[controlplane]\nport = {base}\n[vmmd]\nport = {base + PORT_STEP}\n{vmmd}\n"
            f"[downstairs]\nport = {self.first}\nextent_size = 256\nextent_count = 8\n{members}\n"
        )

    async def __call__(self, word: str, *more: str) -> Answer:
        """`stairwell cluster WORD`."""
        return await run("stairwell", "cluster", word, "--file", self.file, *more)

    async def programs(self) -> dict[str, dict[str, Any]]:
        """What `status` tells of each."""
        answer = await self("status", "--output", "json")
        return {each["name"]: each for each in answer.json["programs"]}

    async def next_step(self, words: str) -> Answer:
        """A command as `up` has named it."""
        return await run(*words.split())


@asynccontextmanager
async def written(folder: Path, **parts: str) -> AsyncIterator[Written]:
    """Whatever becomes of the test, nothing of its cluster is left."""
    made = Written(folder, **parts)
    try:
        yield made
    finally:
        if running(made.directory) or (made.directory / "cluster.json").exists():
            (await made("down", "--volumes")).good()


def sockets_of(made: Written) -> Path:
    return Path(json.loads((made.directory / "cluster.json").read_text())["sockets"])


async def test_up_used_repaired_and_down(tmp_path: Path) -> None:
    async with written(tmp_path) as cluster:
        up = (await cluster("up", "--output", "json")).good()
        assert [each["name"] for each in up.json["programs"]] == PROGRAMS
        assert {each["health"] for each in up.json["programs"]} == {"serving"}
        for name in PROGRAMS:
            assert f"{name} serves at {LOOPBACK}:" in up.err
        for step in up.json["next"]:
            (await cluster.next_step(step)).good()
        port = str(cluster.port)

        async def replaced() -> str:
            words = ("stairwell", "-p", port, "--output", "json", "replacement", "list")
            (one,) = (await run(*words)).good().json["replacements"]
            return str(one["state"])

        assert await until(replaced, lambda state: state in ("done", "failed")) == "done"
        (await cluster("up")).bad("is up already", "stairwell cluster down")
        # One is lost: it is told, and the next `up` starts that one alone.
        before = await cluster.programs()
        os.kill(before["ds1"]["pid"], signal.SIGKILL)

        async def gone() -> bool:
            return (await cluster.programs())["ds1"]["health"] == "not running"

        await until(gone, bool)
        assert (await cluster("status")).status == 1
        (await cluster("up")).good()
        after = await cluster.programs()
        assert after["ds1"]["pid"] != before["ds1"]["pid"]
        assert [after[name]["pid"] for name in PROGRAMS if name != "ds1"] == [
            before[name]["pid"] for name in PROGRAMS if name != "ds1"
        ]
        logged = (await cluster("logs", "ds1", "--output", "json")).good().json
        assert any('"ready"' in line for line in logged["ds1"])
        (await cluster("logs", "ds9")).bad("there is no program 'ds9'", "ds4")
        # With what is stored kept, then without.
        sockets = sockets_of(cluster)
        (await cluster("down")).good()
        assert running(cluster.directory) == []
        assert not sockets.exists()
        kept = json.loads((cluster.directory / "cluster.json").read_text())["regions"]
        (await cluster("up")).good()
        assert json.loads((cluster.directory / "cluster.json").read_text())["regions"] == kept
        (await run("stairwell", "-p", port, "disk", "status", "block2")).good()
        sockets = sockets_of(cluster)
        (tmp_path / "cluster" / "mine.txt").write_text("not the cluster's")
        (await cluster("down", "--volumes")).good()
        assert running(cluster.directory) == []
        assert not sockets.exists()
        assert os.listdir(cluster.directory) == ["mine.txt"]
        (await cluster("down")).bad("there is no cluster in")
        shutil.rmtree(cluster.directory)


async def test_what_cannot_come_up_leaves_nothing_running(tmp_path: Path) -> None:
    async with written(tmp_path) as cluster:
        with socket.socket() as taken:
            taken.bind((LOOPBACK, cluster.first))
            taken.listen()
            (await cluster("up")).bad(f"port {cluster.first} of ds1", "cluster.toml")
        assert running(cluster.directory) == []
        assert not cluster.directory.exists()
    async with written(tmp_path, vmmd='flags = ["--no-such-flag"]') as cluster:
        refused = await cluster("up")
        refused.bad("vmmd ended instead of serving", "--no-such-flag", "cluster logs vmmd")
        assert running(cluster.directory) == []


async def test_ctrl_c_during_the_start_leaves_nothing_running(tmp_path: Path) -> None:
    async with written(tmp_path) as cluster:
        process = await asyncio.create_subprocess_exec(
            shutil.which("stairwell", path=str(Path(sys.executable).parent)) or "stairwell",
            "cluster", "up", "--file", str(cluster.file),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

        async def begun() -> int:
            return len(running(cluster.directory)) if cluster.directory.exists() else 0

        await until(begun, bool)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), CUT_SECONDS) == 130
        assert running(cluster.directory) == []


@pytest.mark.long
async def test_with_certificates(tmp_path: Path) -> None:
    async with written(tmp_path, head="tls = true", members="count = 3") as cluster:
        up = (await cluster("up", "--output", "json")).good()
        plain = await run("stairwell", "-p", str(cluster.port), "list")
        plain.bad("speaks TLS only")
        for step in up.json["next"]:
            assert "--tls-cert" in step
            (await cluster.next_step(step)).good()
        shown = (await run("stairwell", "pki", "show", "--dir", cluster.directory / "pki")).good()
        for name in (*PROGRAMS[:5], "operator", "viewer"):
            assert name in shown.out
        text = "".join(
            path.read_text(errors="replace") for path in (cluster.directory / "logs").iterdir()
        )
        assert "PRIVATE KEY" not in text


async def test_the_file_is_written_once_and_wrong_ones_are_told_whole(tmp_path: Path) -> None:
    file = tmp_path / "new.toml"
    (await run("stairwell", "cluster", "init", "--file", file)).good()
    (await run("stairwell", "cluster", "init", "--file", file)).bad("is there already")
    (await run("stairwell", "cluster", "up", "--file", tmp_path / "none")).bad("cannot read")
    file.write_text("tsl = true\n[downstairs]\ncount = 0\n")
    (await run("stairwell", "cluster", "up", "--file", file)).bad("tsl:", "downstairs.count:")


@pytest.fixture
async def namespaces() -> None:
    """Skips where this host lets nobody make any."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    name = f"stairwell-try-{os.getpid()}"
    try:
        tried = await run("ip", "netns", "add", name)
        if tried.status:
            pytest.skip(f"no network namespaces here: {tried.err.strip()}")
        link = ("ip", "-n", name, "link", "add", "bridge", "type", "bridge")
        if (made := await run(*link)).status:
            pytest.skip(f"no bridges here: {made.err.strip()}")
    finally:
        await run("ip", "netns", "del", name)


@pytest.mark.long
@pytest.mark.usefixtures("namespaces")
async def test_each_a_host_of_its_own_whose_cable_is_pulled(tmp_path: Path) -> None:
    subnet = f"10.203.{os.getpid() % 200}.0/24"
    async with written(tmp_path, head=f'subnet = "{subnet}"', members="count = 3") as cluster:
        up = (await cluster("up", "--netns", "--output", "json")).good().json
        hosts = {each["address"].partition(":")[0] for each in up["programs"]}
        assert len(hosts) == 5
        networks = Networks(tag_of(cluster.directory))
        assert up["switch"] == networks.switch
        for step in up["next"]:
            (await cluster.next_step(step)).good()
        client = up["next"][0].partition(" new ")[0].split()

        async def slot() -> str:
            status = await run(*client, "--output", "json", "disk", "status", "block2")
            slots = status.good().json["volume"]["regions"][0]["slots"]
            return str(slots[2]["state"])

        async def becomes(wanted: Callable[[str], object]) -> None:
            await until(slot, wanted, CUT_SECONDS)

        await becomes(lambda state: state == "active")
        began = time.monotonic()
        (await run("ip", "-n", networks.switch, "link", "set", "ds3", "down")).good()
        # By silence alone: a pulled cable says nothing.
        await becomes(lambda state: state != "active")
        assert time.monotonic() - began > 5
        # The program runs and cannot be asked, as behind a cut network.
        lost = (await cluster.programs())["ds3"]
        assert (lost["health"], bool(lost["pid"])) == ("no answer", True)
        (await run("ip", "-n", networks.switch, "link", "set", "ds3", "up")).good()
        await becomes(lambda state: state == "active")
        (await cluster("up", "--netns")).bad("is up already")
        (await cluster("down", "--volumes")).good()
        assert not networks.exist()
        assert not cluster.directory.exists()
