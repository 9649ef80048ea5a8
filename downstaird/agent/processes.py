"""Region processes that are not tied to the life of whoever started them, and finding them again.

A process is known by what it was told to do: its arguments name the region's directory, which no
other region of this machine has. That is true from the moment it runs, so one that an agent started
a moment before it died is found as well; a file with its number in it might be missing, or old.
What keeps two off one region is not this but the lock in the region's directory.

Linux only: /proc, and pidfds, which speak of one process however often its number is used again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from downstaird.launching import cannot_run, child_environment

# What a region's process may print before its file is begun anew; the one before is kept.
OUTPUT_BYTES_MAX = 8 << 20
_PROC = Path("/proc")
_VERBS = ("run", "create", "clone")


class RegionProcess:
    """One process at work on a region. `verb`: run, create or clone. `output_begins`: where in its
    file what it printed begins; 0 where that is not known."""

    def __init__(
        self,
        pid: int,
        descriptor: int,
        command: Sequence[str],
        child: subprocess.Popen[bytes] | None = None,
        output_begins: int = 0,
    ) -> None:
        self.output_begins = output_begins
        self.pid = pid
        self.command = tuple(command)
        self._descriptor = descriptor
        self._child = child

    @property
    def adopted(self) -> bool:
        """Whether somebody else started it."""
        return self._child is None

    @property
    def verb(self) -> str:
        """What it does."""
        return self.command[0]

    async def ended(self) -> str:
        """Returns once it is gone: how it ended, in words. To be called once, and not again once it
        returned; the process lives on where this is cancelled."""
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(self._descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        if self._child is None:
            return "ended"
        status = self._child.wait()
        if status >= 0:
            return f"ended with status {status}"
        return f"was ended by signal {signal.Signals(-status).name}"

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; nothing happens where it is gone."""
        try:
            signal.pidfd_send_signal(self._descriptor, number)
        except ProcessLookupError:
            return

    def release(self) -> None:
        """Leaves it alone for good: it goes on without us."""
        os.close(self._descriptor)
        if self._child is not None:
            # Popen would complain of a child that nobody waited for.
            self._child.returncode = 0


def start(program: str, command: Sequence[str], output: Path) -> RegionProcess:
    """Starts `program` with arguments, in a session of its own. UnavailableError CANNOT_RUN."""
    try:
        if output.exists() and output.stat().st_size > OUTPUT_BYTES_MAX:
            output.replace(output.with_name(f"{output.name}.1"))
        with output.open("ab") as file:
            begins = file.tell()
            child = subprocess.Popen(
                [program, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=child_environment(),
            )
        return RegionProcess(child.pid, os.pidfd_open(child.pid), command, child, begins)
    except OSError as error:
        raise cannot_run(program, str(output), error) from error


def at_work_on(directory: Path, program: str) -> list[RegionProcess]:
    """The processes of ours that run, create or clone the region in `directory`."""
    found = []
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        command = _command(entry, directory, program)
        if command is None:
            continue
        pid = int(entry.name)
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            continue
        # The number may have gone to another one since it was looked at.
        if _command(entry, directory, program) == command:
            found.append(RegionProcess(pid, descriptor, command))
        else:
            os.close(descriptor)
    return found


def _command(entry: Path, directory: Path, program: str) -> list[str] | None:
    """The arguments after the program's name, if it is at work on the directory."""
    try:
        if entry.stat().st_uid != os.geteuid():
            return None
        arguments = [os.fsdecode(part) for part in (entry / "cmdline").read_bytes().split(b"\0")]
    except OSError:
        return None
    wanted = str(directory)
    if wanted not in arguments:
        return None
    place = arguments.index(wanted)
    if place < 3 or arguments[place - 1] != "-d" or arguments[place - 2] not in _VERBS:
        return None
    if Path(arguments[place - 3]).name != Path(program).name:
        return None
    return arguments[place - 2 : -1]


async def end(process: RegionProcess, grace_seconds: float) -> str:
    """Ends it: SIGTERM, and SIGKILL when that is not heeded in time. How it ended."""
    ending = asyncio.ensure_future(process.ended())
    try:
        process.signal(signal.SIGTERM)
        await asyncio.wait([ending], timeout=grace_seconds)
        if not ending.done():
            process.signal(signal.SIGKILL)
        return await ending
    finally:
        ending.cancel()
