"""Makes regions and downstairs processes: the one place that runs the downstaird program.

For whoever keeps several: `dsc`, which torments them, and the agent, which keeps them up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

from stairlib.model.errors import NotFoundError, StairwellError, UnavailableError
from stairlib.model.geometry import Geometry
from stairlib.rpc.health_check import check
from stairlib.rpc.tls import FLAGS, TlsFiles
from stairlib.runtime.addresses import Address

# Creating takes CPU at start-up only; more at once would not be sooner on small machines.
CREATIONS_AT_ONCE = 4
CREATE_SECONDS = 60.0
# How often a starting downstairs is asked whether it serves yet.
POLL_SECONDS = 0.05
HEALTH_SECONDS = 2.0
_TAIL_LINES = 8
_TAIL_BYTES = 4096
_LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class RegionPlan(Protocol):
    """One downstairs to be: `directory` holds its region, `output` takes what it prints."""

    @property
    def port(self) -> int:
        """Its gRPC port."""

    @property
    def region_id(self) -> UUID:
        """Its region's id."""

    @property
    def directory(self) -> str:
        """Where its region is."""

    @property
    def output(self) -> str:
        """The file for what it prints."""


@dataclass(frozen=True, slots=True)
class Launcher:
    """How downstairs are run: with which program, on which host, writable or not, with which TLS
    files if any, and whether they may speak plain text to other hosts."""

    program: str
    host: str
    read_only: bool
    tls: TlsFiles | None = None
    insecure: bool = False

    def address(self, plan: RegionPlan) -> str:
        """Where a member is reached from here."""
        return str(Address(_LOCAL.get(self.host, self.host), plan.port))

    async def create(self, plan: RegionPlan, geometry: Geometry, *, cipher: str) -> None:
        """Make a region; `cipher` empty: not encrypted. Raises a StairwellError with what the
        program printed. Cancelled, the program is killed."""
        command = [self.program, "create", *_definition(plan, geometry)]
        command += ["--encrypted", "--cipher", cipher] if cipher else []
        await self._make("creating", command, plan, CREATE_SECONDS)

    async def clone(
        self, plan: RegionPlan, geometry: Geometry, *, encrypted: bool, source: str
    ) -> None:
        """Make a region as a copy of the one at `source`, which must be as given; takes as long as
        the data does. Raises a StairwellError with what the program printed."""
        command = [self.program, "clone", *_definition(plan, geometry), "--source", source]
        command += [*(["--encrypted"] if encrypted else []), *self._tls_flags()]
        await self._make("cloning", command, plan, None)

    async def _make(
        self, doing: str, command: list[str], plan: RegionPlan, seconds: float | None
    ) -> None:
        Path(plan.directory).parent.mkdir(parents=True, exist_ok=True)
        status, said = await self._finished(doing, command, plan, seconds)
        # For whoever looks there. A full disk must not keep the reason from being told below.
        with contextlib.suppress(OSError):
            await asyncio.to_thread(Path(plan.output).write_bytes, said)
        if status != 0:
            raise StairwellError(
                f"{doing} region {plan.directory} failed with status {status}{_ending(said)}",
                reason="CREATE_FAILED",
                directory=plan.directory,
            )

    async def _finished(
        self, doing: str, command: list[str], plan: RegionPlan, seconds: float | None
    ) -> tuple[int, bytes]:
        """Status, and what was printed."""
        process = await _spawned(command, plan, PIPE)
        try:
            async with asyncio.timeout(seconds):
                said, _ = await process.communicate()
        except TimeoutError:
            raise UnavailableError(
                f"{doing} region {plan.directory} took longer than {seconds:.0f} s",
                reason="CREATE_TIMEOUT",
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, said

    async def snapshot(self, plan: RegionPlan, action: str, *words: str) -> str:
        """Have the program list, create or delete snapshots of a region that no process serves;
        what it printed. StairwellError with what it said, UnavailableError where it had no say.
        Cancelled, the program is killed."""
        command = [self.program, "snapshot", action, "-d", plan.directory, *words]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
                start_new_session=True,
                env=child_environment(),
            )
        except OSError as error:
            raise cannot_run(self.program, "a pipe", error) from error
        try:
            out, said = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        status = process.returncode
        text = said.decode(errors="replace")[-_TAIL_BYTES:].strip().removeprefix("downstaird: ")
        if status == 0:
            return out.decode(errors="replace")
        doing = f"downstaird snapshot {action} of {plan.directory}"
        if status == 1 and text:
            raise StairwellError(text, reason="SNAPSHOT_REFUSED", directory=plan.directory)
        raise UnavailableError(f"{doing} ended with status {status}: {text}", reason="CANNOT_RUN")

    def run_command(self, plan: RegionPlan) -> list[str]:
        """What serves a region."""
        return [
            *(self.program, "run", "-d", plan.directory, "-p", str(plan.port)),
            *("--address", self.host, "--mode", "ro" if self.read_only else "rw"),
            *self._tls_flags(),
            *(["--insecure"] if self.insecure else []),
        ]

    def _tls_flags(self) -> list[str]:
        if self.tls is None:
            return []
        paths = (self.tls.cert, self.tls.key, self.tls.root)
        return [part for pair in zip(FLAGS, paths, strict=True) for part in pair]

    async def spawn(self, plan: RegionPlan) -> Process:
        """Start a region's process; its output file begins anew. Raises StairwellError."""
        try:
            output = os.open(
                plan.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644
            )
        except OSError as error:
            raise cannot_run(self.program, plan.output, error) from error
        try:
            return await _spawned(self.run_command(plan), plan, output)
        finally:
            os.close(output)

    async def serving(self, plan: RegionPlan) -> None:
        """Return once the member answers that it serves. UnavailableError TLS_... when it never
        will, to us."""
        address = self.address(plan)
        while True:
            if await _listens(_LOCAL.get(self.host, self.host), plan.port):
                try:
                    if await check(address, seconds=HEALTH_SECONDS, tls=self.tls) == "SERVING":
                        return
                except UnavailableError as error:
                    if error.reason.startswith("TLS_"):
                        raise
                    # It came as far as listening; asked again below.
            await asyncio.sleep(POLL_SECONDS)


def _definition(plan: RegionPlan, geometry: Geometry) -> list[str]:
    return [
        *("-d", plan.directory, "-u", str(plan.region_id)),
        *("--block-size", str(geometry.block_size)),
        *("--extent-size", str(geometry.blocks_per_extent)),
        *("--extent-count", str(geometry.extent_count)),
    ]


def child_environment() -> dict[str, str]:
    """Ours, and that lines are written when they are printed."""
    return os.environ | {"PYTHONUNBUFFERED": "1"}


def cannot_run(program: str, output: str, error: OSError) -> UnavailableError:
    """The error for a program that could not be started at all."""
    return UnavailableError(
        f"cannot run {program} with output to {output}: {error.strerror}", reason="CANNOT_RUN"
    )


async def _spawned(command: list[str], plan: RegionPlan, output: int) -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=DEVNULL,
            stdout=output,
            stderr=STDOUT,
            # Ctrl-C goes to the terminal's whole group; who keeps them decides when they end.
            start_new_session=True,
            env=child_environment(),
        )
    except OSError as error:
        raise cannot_run(command[0], plan.output, error) from error


async def _listens(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


def tail(plan: RegionPlan, since: int = 0) -> str:
    """The end of what a member printed, from byte `since` of its file on, for an error message;
    empty when it printed nothing."""
    try:
        said = Path(plan.output).read_bytes()[since:]
    except OSError:
        return ""
    return _ending(said, plan.output)


def _ending(said: bytes, name: str = "what it printed") -> str:
    lines = said[-_TAIL_BYTES:].decode(errors="replace").strip().splitlines()[-_TAIL_LINES:]
    shown = "\n".join(f"  {line}" for line in lines)
    return f"; {name} ends with:\n{shown}" if lines else ""


def find_program(given: str | None) -> str:
    """Path of the downstaird program: as given, else on PATH, else beside this Python."""
    if given is not None:
        if not os.access(given, os.X_OK) or not Path(given).is_file():
            raise NotFoundError(
                "program",
                given,
                f"--ds-bin {given} is not a program that can be run; give the path of downstaird, "
                "or leave --ds-bin out to use the one on PATH",
            )
        return str(Path(given).absolute())
    beside = Path(sys.executable).parent / "downstaird"
    found = shutil.which("downstaird") or (str(beside) if os.access(beside, os.X_OK) else None)
    if found is None:
        raise NotFoundError(
            "program",
            "downstaird",
            f"downstaird is neither on PATH nor at {beside}; install it or give its path "
            "with --ds-bin",
        )
    return found
