"""The daemons of the demo as processes: started on free ports, watched, killed, and cleaned up.

Clean-up is plain code without awaits, so that it also runs to its end while the event loop is
being torn down by Ctrl-C. Each daemon leads a process group of its own: a terminal's Ctrl-C does
not reach it before the demo has decided, and what it started ends with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from controlplane.cli.daemons import (
    HEALTH_INTERVAL_SECONDS,
    LOG_LINES_SHOWN,
    START_SECONDS,
    Daemon,
    condensed,
    serves,
)

LOOPBACK = "127.0.0.1"
# Somebody else may take a free port between our look and the daemon's bind.
PORT_ATTEMPTS = 3
# How long daemons may take to end on SIGTERM before they are killed. The demo's data is thrown
# away, so nothing is lost by being short.
STOP_SECONDS = 5.0
LOG_LINES_OF_ONE = 5
_IGNORE = {"ignore_errors": True}
_TROUBLE = frozenset({"warning", "error", "critical"})
_EXCEPTION = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b")


class Processes:
    """All daemons of one demo and their folder. Use as a context manager: it always cleans up."""

    def __init__(self, folder: Path, *, keep: bool) -> None:
        self.folder = folder
        self.keep = keep
        self.daemons: list[Daemon] = []
        self._sockets: Path | None = None
        self._removals: list[threading.Thread] = []

    def __enter__(self) -> Self:
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        # Never below `folder`, which may have any length: a socket's path has 107 bytes at most.
        self._sockets = Path(tempfile.mkdtemp(prefix="sw-"))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stop_gently()
        finally:
            # Also when a second Ctrl-C came in the middle of the gentle way.
            for daemon in self.daemons:
                daemon.signal_group(signal.SIGKILL)
            for daemon in self.daemons:
                daemon.process.wait()
            for removal in self._removals:
                removal.join()
            if self._sockets is not None:
                shutil.rmtree(self._sockets, ignore_errors=True)
            if not self.keep:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _stop_gently(self) -> None:
        """SIGTERM in the reverse order of starting, and a moment to follow it."""
        for daemon in reversed(self.daemons):
            daemon.signal_group(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and any(one.is_running for one in self.daemons):
            time.sleep(0.02)

    async def start(self, name: str, arguments: Callable[[int], Sequence[str]]) -> Daemon:
        """Starts a daemon on a free port, returns when it serves.

        `arguments(port)` is its command line. Raises CommandError with the end of its log.
        """
        daemon: Daemon | None = None
        for _ in range(PORT_ATTEMPTS):
            port = free_port()
            daemon = self._launch(name, arguments(port))
            daemon.address = f"{LOOPBACK}:{port}"
            if await serves(daemon):
                return daemon
            if daemon.is_running:
                raise daemon.failed(f"does not serve at {daemon.address}")
            if not any("in use" in line.lower() for line in daemon.log_tail()):
                break
        assert daemon is not None
        raise daemon.failed("ended instead of serving")

    async def run(self, name: str, arguments: Sequence[str]) -> None:
        """Runs a command to its end; CommandError with its output when it fails."""
        daemon = self._launch(name, arguments)
        deadline = time.monotonic() + START_SECONDS
        while daemon.is_running:
            if time.monotonic() > deadline:
                raise daemon.failed(f"has not ended after {START_SECONDS:.0f} s")
            await asyncio.sleep(HEALTH_INTERVAL_SECONDS)
        self.daemons.remove(daemon)
        if daemon.process.returncode:
            raise daemon.failed("failed")

    def _launch(self, name: str, arguments: Sequence[str]) -> Daemon:
        log = self.folder / "logs" / f"{name}.log"
        hint = f"its log was {log}; run the demo again with --keep to keep it"
        env = environment(self._sockets) if self._sockets else None
        daemon = Daemon(name, arguments, log, env, hint)
        self.daemons.append(daemon)
        return daemon

    def complaints(self) -> tuple[str, ...]:
        """What the daemons' logs say of trouble: the last lines, each after its daemon's name."""
        found = [
            f"{log.stem}: {line}"
            for log in sorted((self.folder / "logs").glob("*.log"))
            for line in troubled_lines(log.read_text(errors="replace").splitlines())
        ]
        return tuple(found[-LOG_LINES_SHOWN:])

    def ended(self) -> list[Daemon]:
        """Daemons that are gone though nobody asked them to; the demo's own kills leave first."""
        return [daemon for daemon in self.daemons if not daemon.is_running]

    def discard(self, folder: Path) -> None:
        """Begins to remove a part of the folder that is needed no more: that takes seconds for
        gigabytes, and the demo has other things to wait for meanwhile. Does nothing with `keep`.
        """
        if self.keep:
            return
        removal = threading.Thread(target=shutil.rmtree, args=(folder,), kwargs=_IGNORE)
        self._removals.append(removal)
        removal.start()

    def kill(self, address: str) -> None:
        """SIGKILLs the daemon at an address and forgets it."""
        daemon = next(one for one in self.daemons if one.address == address)
        daemon.kill()
        self.daemons.remove(daemon)


def environment(sockets: Path) -> dict[str, str]:
    """The daemons' environment: ours, with their sockets and temporary files in `sockets`."""
    return {**os.environ, "TMPDIR": str(sockets), "XDG_RUNTIME_DIR": str(sockets)}


def troubled_lines(lines: Sequence[str]) -> list[str]:
    """Of a daemon's log, the last lines that tell of trouble.

    Structured lines count by their level; of the others only those that look like an exception's
    last line, as a daemon leaves one that ends unexpectedly.
    """
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            if _EXCEPTION.match(line):
                found.append(line)
            continue
        if isinstance(entry, dict) and entry.get("level") in _TROUBLE:
            found.append(condensed(line))
    return found[-LOG_LINES_OF_ONE:]


def free_port() -> int:
    """A port nobody listens on now; the kernel does not hand it out again at once."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
