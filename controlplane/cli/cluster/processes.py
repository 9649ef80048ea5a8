"""The processes of a cluster, found by what their environment says and ended by pidfd.

A process is the cluster's when it was given the cluster's directory in its environment; what it
starts (machines, hypervisors) has that too. So those of a command that was killed are found as
well, and a number that another process has by now is never signalled. Linux only.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK, NAME = "STAIRWELL_CLUSTER", "STAIRWELL_CLUSTER_PROGRAM"
# What a daemon may take to end in order: twice what it grants its calls and more.
STOP_SECONDS = 15.0
# A killed one is gone at once, unless the kernel is busy for it.
KILLED_SECONDS = 1.0
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Running:
    """One process of the cluster; `leads` says that it is the program itself, not one that it has
    started."""

    pid: int
    program: str
    leads: bool


def environment(directory: Path, name: str, sockets: Path) -> dict[str, str]:
    """Ours, with the marks, and with the program's temporary files in `sockets`."""
    return {
        **os.environ,
        MARK: str(directory),
        NAME: name,
        "TMPDIR": str(sockets),
        "XDG_RUNTIME_DIR": str(sockets),
    }


def running(directory: Path) -> list[Running]:
    """All processes of the cluster, those it may be asked about: other users' are not."""
    pids = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal()]
    looked = (_looked_at(pid, directory) for pid in pids)
    return [one for one in looked if one is not None]


def programs(directory: Path) -> dict[str, int]:
    """The process of each program that runs, by its name."""
    return {each.program: each.pid for each in running(directory) if each.leads}


def _looked_at(pid: int, directory: Path) -> Running | None:
    # One that ended meanwhile has no environment, nor has a zombie.
    with suppress(OSError):
        words = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
        if f"{MARK}={directory}".encode() in words:
            name = next(
                (each.partition(b"=")[2].decode() for each in words
                 if each.startswith(f"{NAME}=".encode())), "",
            )  # fmt: skip
            return Running(pid, name, os.getsid(pid) == pid)
    return None


async def stop(directory: Path) -> list[str]:
    """Ends every process of the cluster, gently first; the names of the programs that had to be
    killed. Returns when none is left."""
    await _signalled(directory, signal.SIGTERM, leaders=True, seconds=STOP_SECONDS)
    late = sorted({each.program for each in running(directory)})
    while running(directory):
        await _signalled(directory, signal.SIGKILL, leaders=False, seconds=KILLED_SECONDS)
    return late


async def _signalled(
    directory: Path, number: signal.Signals, *, leaders: bool, seconds: float
) -> None:
    """Signals those that run (the programs alone: each ends its own), and waits for their ends."""
    descriptors = [
        descriptor
        for each in running(directory)
        if each.leads or not leaders
        if (descriptor := _opened(each.pid, directory)) is not None
    ]
    try:
        for descriptor in descriptors:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*map(_ended, descriptors))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _opened(pid: int, directory: Path) -> int | None:
    """A descriptor of the process; None where the number is another one's by now."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    if _looked_at(pid, directory) is None:
        os.close(descriptor)
        return None
    return descriptor


async def _ended(descriptor: int) -> None:
    """Returns once the process is gone: its pidfd can be read from then."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(descriptor)
