"""Makes regions and downstairs processes: the one place that runs the downstaird program."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from asyncio.subprocess import DEVNULL, STDOUT, Process
from dataclasses import dataclass
from pathlib import Path

from downstaird.dsc.core.layout import MemberPlan
from stairlib.model.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NotFoundError,
    StairwellError,
    UnavailableError,
)
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


@dataclass(frozen=True, slots=True)
class Launcher:
    """How members are run: with which program, on which host, writable or not, with which TLS files
    if any."""

    program: str
    host: str
    read_only: bool
    tls: TlsFiles | None = None

    def address(self, plan: MemberPlan) -> str:
        """Where a member is reached from here."""
        return str(Address(_LOCAL.get(self.host, self.host), plan.port))

    async def create(self, plan: MemberPlan, geometry: Geometry, *, cipher: str) -> None:
        """Make a member's region; `cipher` empty: not encrypted. Raises a StairwellError with what
        the program printed."""
        Path(plan.directory).parent.mkdir(parents=True, exist_ok=True)
        command = [
            *(self.program, "create", "-d", plan.directory, "-u", str(plan.region_id)),
            *("--block-size", str(geometry.block_size)),
            *("--extent-size", str(geometry.blocks_per_extent)),
            *("--extent-count", str(geometry.extent_count)),
            *(["--encrypted", "--cipher", cipher] if cipher else []),
        ]
        status = await self._finished(command, plan)
        if status != 0:
            raise StairwellError(
                f"creating region {plan.directory} failed with status {status}{tail(plan)}",
                reason="CREATE_FAILED",
                directory=plan.directory,
            )

    async def _finished(self, command: list[str], plan: MemberPlan) -> int:
        process = await _spawned(command, plan)
        try:
            async with asyncio.timeout(CREATE_SECONDS):
                return await process.wait()
        except TimeoutError:
            raise UnavailableError(
                f"creating region {plan.directory} took longer than {CREATE_SECONDS:.0f} s",
                reason="CREATE_TIMEOUT",
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def spawn(self, plan: MemberPlan) -> Process:
        """Start a member's process; its output file begins anew. Raises StairwellError."""
        command = [
            *(self.program, "run", "-d", plan.directory, "-p", str(plan.port)),
            *("--address", self.host, "--mode", "ro" if self.read_only else "rw"),
        ]
        if self.tls is not None:
            paths = (self.tls.cert, self.tls.key, self.tls.root)
            for flag, path in zip(FLAGS, paths, strict=True):
                command += [flag, path]
        return await _spawned(command, plan)

    async def serving(self, plan: MemberPlan) -> None:
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


async def _spawned(command: list[str], plan: MemberPlan) -> Process:
    try:
        output = os.open(plan.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=DEVNULL,
                stdout=output,
                stderr=STDOUT,
                # Ctrl-C goes to the terminal's whole group; dsc alone decides when members end.
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        finally:
            os.close(output)
    except OSError as error:
        raise UnavailableError(
            f"cannot run {command[0]} with output to {plan.output}: {error.strerror}",
            reason="CANNOT_RUN",
        ) from error


async def _listens(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


def tail(plan: MemberPlan) -> str:
    """The end of what a member printed, for an error message; empty when it printed nothing."""
    try:
        text = Path(plan.output).read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return ""
    lines = text.strip().splitlines()[-_TAIL_LINES:]
    shown = "\n".join(f"  {line}" for line in lines)
    return f"; {plan.output} ends with:\n{shown}" if lines else ""


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


def clear_place(plan: MemberPlan, *, cleanup: bool) -> None:
    """See to it that nothing is where a region is to be; without `cleanup` refuse instead."""
    directory = Path(plan.directory)
    if not directory.exists() and not directory.is_symlink():
        return
    if not cleanup:
        raise AlreadyExistsError(
            f"region directory {directory} exists; add --cleanup to delete what is in it, or use "
            "`dsc start` without --create to serve it as it is",
            reason="REGION_EXISTS",
            directory=str(directory),
        )
    if directory.is_symlink() or not directory.is_dir():
        raise InvalidRequestError(
            f"{directory} is not a directory, so --cleanup leaves it alone; remove it by hand",
            reason="NOT_A_DIRECTORY",
            directory=str(directory),
        )
    shutil.rmtree(directory)


def require_region(plan: MemberPlan) -> None:
    """Refuse to go on where a member has no region directory."""
    if not Path(plan.directory).is_dir():
        raise NotFoundError(
            "region",
            plan.directory,
            f"there is no region at {plan.directory}; add --create to make it, or check "
            "--region-dir, --port-base and --region-count",
        )
