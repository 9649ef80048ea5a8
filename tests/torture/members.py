"""The storage daemons that are tormented: real processes on real files, which keep their address
and directory over kills, freezes, and copies put back."""

from __future__ import annotations

import shutil
import signal
import subprocess
import uuid
from pathlib import Path

from stairlib.model.geometry import Geometry
from tests.integration.cluster import BIN, LOOPBACK, Program
from tests.ports import free_ports


class Members:
    """`count` daemons; the first three are the volume's at first. `cipher` empty: not encrypted."""

    def __init__(self, root: Path, geometry: Geometry, count: int, cipher: str) -> None:
        self.root = root
        self.geometry = geometry
        self.cipher = cipher
        self.mode = "rw"
        self.frozen: set[int] = set()
        self.killed = 0
        base = free_ports(count, step=10)
        self.ports = [base + 10 * number for number in range(count)]
        self.programs = [self._program(number, ()) for number in range(count)]
        for number in range(count):
            self.create(number)

    @property
    def addresses(self) -> list[str]:
        """All of them."""
        return [program.address for program in self.programs]

    def directory(self, number: int) -> Path:
        """Its region."""
        return self.root / f"region-{number}"

    def _program(self, number: int, more: tuple[str, ...]) -> Program:
        command = [
            "downstaird", "run", "-d", str(self.directory(number)), "-a", LOOPBACK,
            "-p", str(self.ports[number]), "--mode", self.mode, "--log-level", "warning", *more,
        ]  # fmt: skip
        sockets = {"XDG_RUNTIME_DIR": str(self.root), "TMPDIR": str(self.root)}
        log = self.root / f"downstairs-{number}.log"
        return Program(f"downstairs-{number}", command, self.ports[number], log, sockets)

    def create(self, number: int) -> None:
        """A blank region in its directory, whatever was there."""
        shutil.rmtree(self.directory(number), ignore_errors=True)
        geometry = self.geometry
        words = [
            "create", "-d", str(self.directory(number)), "-u", str(uuid.uuid4()),
            "--block-size", str(geometry.block_size),
            "--extent-size", str(geometry.blocks_per_extent),
            "--extent-count", str(geometry.extent_count),
        ]  # fmt: skip
        if self.cipher:
            words += ["--encrypted", "--cipher", self.cipher]
        subprocess.run([BIN / "downstaird", *words], check=True, capture_output=True)

    async def start(self, number: int, *more: str) -> None:
        """Returns when it serves; `more` are flags of `downstaird run`."""
        if not self.programs[number].is_running:
            self.programs[number] = self._program(number, more)
            await self.programs[number].start()

    async def start_all(self) -> None:
        """Those that do not run."""
        for number in range(len(self.programs)):
            await self.start(number)

    def kill(self, number: int) -> None:
        """SIGKILL."""
        if self.programs[number].is_running:
            self.thaw(number)
            self.programs[number].kill()
            self.killed += 1

    def freeze(self, number: int) -> None:
        """SIGSTOP: it holds its connections, and says nothing."""
        self.programs[number].signal(signal.SIGSTOP)
        self.frozen.add(number)

    def thaw(self, number: int) -> None:
        """SIGCONT."""
        self.programs[number].signal(signal.SIGCONT)
        self.frozen.discard(number)

    async def stop(self, number: int) -> None:
        """SIGTERM; returns when it is gone."""
        if self.programs[number].is_running:
            self.thaw(number)
            await self.programs[number].end()

    async def stop_all(self) -> None:
        """All of them, gently."""
        for number in range(len(self.programs)):
            await self.stop(number)

    def keep_copy(self, number: int) -> None:
        """Of its directory, while it does not run."""
        assert not self.programs[number].is_running
        shutil.rmtree(self.root / f"copy-{number}", ignore_errors=True)
        shutil.copytree(self.directory(number), self.root / f"copy-{number}")

    def put_back(self, number: int) -> None:
        """The copy that was kept last takes the directory's place."""
        assert not self.programs[number].is_running
        shutil.rmtree(self.directory(number))
        shutil.copytree(self.root / f"copy-{number}", self.directory(number))

    def dump(self, numbers: list[int]) -> subprocess.CompletedProcess[str]:
        """`downstaird dump` of these regions, none of them served: status 1 when they differ."""
        words = [word for number in numbers for word in ("-d", str(self.directory(number)))]
        return subprocess.run(
            [BIN / "downstaird", "dump", "-o", *words], capture_output=True, text=True, check=False
        )

    def sweep(self) -> None:
        """Kills whatever is left."""
        for program in self.programs:
            program.signal(signal.SIGCONT)
            program.sweep()
