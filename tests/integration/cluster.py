"""An installation of real processes for the scenario tests: started, tormented, and cleaned up.

`Cluster` keeps one vmmd and one control plane and any number of downstairs, each on a fixed port of
its own, so that a program that was killed comes back at the same address. Ports are taken below
the range the system hands out by itself: nobody takes one while its owner is down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import grpc

from stairlib.model.errors import StairwellError
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.health_check import check
from stairlib.rpc.tls import FLAGS, PeerTls, TlsFiles
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import disk_service_pb2_grpc as disk_grpc
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import instance_service_pb2_grpc as instance_grpc
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.controlplane.v1 import replacement_service_pb2_grpc as replacement_grpc
from tests.ports import LOOPBACK, free_ports

# Not a measure of speed: others may have the machine at the same time.
DEADLINE = 60.0
# Between looks at what cannot be waited for.
LOOK_SECONDS = 0.03
STOP_SECONDS = 15.0
BLOCK_SIZE = 4096
BLOCKS_PER_EXTENT = 256
EXTENT_COUNT = 64
MIB = 1 << 20
BIN = Path(sys.executable).parent

T = TypeVar("T")


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(2.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


async def until(
    look: Callable[[], Awaitable[T]], wanted: Callable[[T], object], seconds: float = DEADLINE
) -> T:
    """Looks again and again until what is seen is wanted; AssertionError with the last look."""
    end = time.monotonic() + seconds
    while True:
        seen = await look()
        if wanted(seen):
            return seen
        assert time.monotonic() < end, f"not as wanted after {seconds:g} s:\n{seen}"
        await asyncio.sleep(LOOK_SECONDS)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command came to."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output as a JSON document."""
        return json.loads(self.out)

    def good(self) -> Self:
        """Itself, if it succeeded."""
        assert self.status == 0, self.out + self.err
        return self

    def bad(self, *words: str) -> Self:
        """Itself, if it failed as a user's mistake should: in words, and with these among them."""
        text = self.out + self.err
        assert self.status not in (0, None), text
        assert "Traceback" not in text, text
        for word in words:
            assert word in self.err, f"{word!r} is not in:\n{text}"
        return self


async def run(
    *command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None
) -> Answer:
    """Runs a command of this installation to its end."""
    name, *arguments = map(str, command)
    process = await asyncio.create_subprocess_exec(
        str(BIN / name) if (BIN / name).exists() else name,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    )
    try:
        async with asyncio.timeout(DEADLINE):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Answer(process.returncode, out.decode(), err.decode())


class Program:
    """One daemon at one address. It leads a process group, which ends with it. Its health is asked
    with `tls` where it speaks that."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        log: Path,
        env: dict[str, str],
        tls: TlsFiles | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.port = port
        self.address = f"{LOOPBACK}:{port}"
        self.log = log
        self.tls = tls
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def launch(self, **env: str) -> None:
        """Starts it, with more variables for this once; `serving` waits for it."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(BIN / self.command[0]), *self.command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self._env, **env},
            )

    async def serving(self) -> None:
        """Returns when its health says SERVING."""

        async def look() -> bool:
            assert self.is_running, f"{self.name} ended:\n{self.tail()}"
            # A refused channel backs off: asked only once something listens.
            if not listens(self.port):
                return False
            with contextlib.suppress(StairwellError):
                return await check(self.address, seconds=2.0, tls=self.tls) == "SERVING"
            return False

        await until(look, bool)

    async def start(self, **env: str) -> None:
        """Starts it and returns when it serves."""
        self.launch(**env)
        await self.serving()

    def signal(self, number: int) -> None:
        """Sends a signal to the process alone."""
        if self.is_running:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, as a host that loses power; returns when it is gone."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(DEADLINE)

    async def end(self, seconds: float = DEADLINE) -> int:
        """SIGTERM; the exit status once it has ended."""
        self.signal(signal.SIGTERM)
        return await self.ended(seconds)

    async def ended(self, seconds: float = DEADLINE) -> int:
        """The exit status once it has ended by itself."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, seconds)

    def sweep(self) -> None:
        """Kills what is left of its group."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def children(pid: int) -> list[int]:
    """The processes a process has started."""
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for each in listed for word in each.read_text().split()]


class Addressed(Protocol):
    """A daemon, as callers know it."""

    @property
    def address(self) -> str:
        """Where it is now."""


class Calls:
    """Calls of the daemons of an installation, wherever these run; `close` it when done."""

    def __init__(
        self,
        controlplane: Addressed,
        vmmd: Addressed,
        identity: Callable[[str], TlsFiles] | None = None,
    ) -> None:
        self.controlplane = controlplane
        self.vmmd = vmmd
        self.identity = identity
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    def channel(self, address: str) -> grpc.aio.Channel:
        """The channel to a daemon, opened once."""
        if address not in self._channels:
            tls = None
            if self.identity is not None:
                name = "controlplane" if address == self.controlplane.address else ""
                client = self.identity(name).client()
                tls = PeerTls(client.credentials, client.context, LOOPBACK)
            self._channels[address] = open_channel(address, tls=tls)
        return self._channels[address]

    async def call(self, stub: type, method: str, request: Any, *, at: str = "") -> Any:
        """One call, by default of the control plane; failures come back as typed errors."""
        address = at or self.controlplane.address
        with translated(address):
            bound = getattr(stub(self.channel(address)), method)
            return await bound(request, timeout=DEADLINE, wait_for_ready=True)

    async def get_disk(self, name: str) -> disk_pb.Disk:
        """A disk as the control plane tells it."""
        request = disk_pb.GetDiskRequest(name=name)
        disk: disk_pb.Disk = (await self.call(disk_grpc.DiskServiceStub, "GetDisk", request)).disk
        return disk

    async def get_instance(self, name: str) -> instance_pb.Instance:
        """An instance as the control plane tells it."""
        request = instance_pb.GetInstanceRequest(name=name)
        answer = await self.call(instance_grpc.InstanceServiceStub, "GetInstance", request)
        instance: instance_pb.Instance = answer.instance
        return instance

    async def get_replacement(self, name: str) -> replacement_pb.Replacement:
        """A replacement as the control plane tells it."""
        stub = replacement_grpc.ReplacementServiceStub
        request = replacement_pb.GetReplacementRequest(id=name)
        found: replacement_pb.Replacement = (
            await self.call(stub, "GetReplacement", request)
        ).replacement
        return found

    async def replacements(self, disk: str = "") -> list[replacement_pb.Replacement]:
        """All replacements of a disk, or of all."""
        stub = replacement_grpc.ReplacementServiceStub
        request = replacement_pb.ListReplacementsRequest(disk=disk)
        return list((await self.call(stub, "ListReplacements", request)).replacements)


class Cluster(Calls):
    """See the module. Use `started`; everything a test adds goes away with it."""

    def __init__(
        self,
        folder: Path,
        env: dict[str, str] | None = None,
        identity: Callable[[str], TlsFiles] | None = None,
    ) -> None:
        """`env` is given to all programs; `identity` says by a program's name what it is shown with
        calls, where these go over TLS: "controlplane", or "" for the other daemons."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.sockets = Path(tempfile.mkdtemp(prefix="sw-"))
        self.env = {"TMPDIR": str(self.sockets), "XDG_RUNTIME_DIR": str(self.sockets)}
        self.env |= env or {}
        self.programs: list[Program] = []
        (folder / "server.toml").touch()
        self.vmmd = self._daemon("vmmd", ["vmmd", "run", str(folder / "server.toml")])
        data = ["--vmmd", self.vmmd.address, "--data", str(folder / "controlplane")]
        self.controlplane = self._daemon("controlplane", ["controlplane", "run"], data)
        super().__init__(self.controlplane, self.vmmd, identity)

    def _daemon(self, name: str, words: list[str], more: Sequence[str] = ()) -> Program:
        port = free_ports(1)
        return self.program(name, [*words, f"{LOOPBACK}:{port}", *more], port)

    def program(
        self, name: str, command: Sequence[str], port: int, tls: TlsFiles | None = None
    ) -> Program:
        """A program of this cluster; not yet started."""
        found = Program(name, command, port, self.folder / f"{name}.log", self.env, tls)
        self.programs.append(found)
        return found

    def downstairs(
        self,
        *,
        block_size: int = BLOCK_SIZE,
        blocks_per_extent: int = BLOCKS_PER_EXTENT,
        extent_count: int = EXTENT_COUNT,
        tls: TlsFiles | None = None,
    ) -> Program:
        """A new downstairs with an empty region; not yet started."""
        port = free_ports(1)
        # A port may be used again by a later one, a region must not.
        name = f"downstairs-{port}-{uuid.uuid4().hex[:6]}"
        command = [
            "downstaird", "run", "--create", "-u", str(uuid.uuid4()),
            "-d", str(self.folder / name), "-p", str(port), "-a", LOOPBACK,
            "--block-size", str(block_size), "--extent-size", str(blocks_per_extent),
            "--extent-count", str(extent_count),
        ]  # fmt: skip
        if tls is not None:
            paths = (tls.cert, tls.key, tls.root)
            command += [word for pair in zip(FLAGS, paths, strict=True) for word in pair]
        return self.program(name, command, port, tls)

    @classmethod
    @asynccontextmanager
    async def started(cls, folder: Path, server_config: str = "") -> AsyncIterator[Cluster]:
        """A cluster with its vmmd and control plane running; `server_config` is vmmd's."""
        cluster = cls(folder)
        (folder / "server.toml").write_text(server_config)
        try:
            await asyncio.gather(cluster.vmmd.start(), cluster.controlplane.start())
            yield cluster
        finally:
            await cluster.close()

    async def close(self) -> None:
        """Ends everything, gently first."""
        await super().close()
        self.remove(self.programs)
        shutil.rmtree(self.sockets, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove(self, programs: Sequence[Program]) -> None:
        """Ends programs and forgets them."""
        programs = list(programs)
        try:
            for program in reversed(programs):
                program.signal(signal.SIGCONT)
                program.signal(signal.SIGTERM)
            end = time.monotonic() + STOP_SECONDS
            while time.monotonic() < end and any(program.is_running for program in programs):
                time.sleep(LOOK_SECONDS)
        finally:
            for program in programs:
                program.sweep()
        self.programs = [each for each in self.programs if each not in programs]

    async def cli(self, *words: str | Path, server: str = "") -> Answer:
        """`stairwell` with these words, sent to the control plane."""
        host, _, port = (server or self.controlplane.address).rpartition(":")
        return await run("stairwell", "-s", host, "-p", port, *words, env=self.env)
