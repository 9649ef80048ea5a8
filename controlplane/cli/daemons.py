"""Daemons as processes that a command starts: launched in groups of their own, asked until they
serve, and told of with the end of their log when they do not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from controlplane.cli.failure import CommandError
from stairlib.model.errors import StairwellError
from stairlib.rpc.health_check import check
from stairlib.rpc.tls import TlsFiles

# A Python daemon is up in a second or two; a loaded machine may need many.
START_SECONDS = 30.0
HEALTH_INTERVAL_SECONDS = 0.05
HEALTH_CALL_SECONDS = 2.0
SERVING = "SERVING"
LOG_LINES_SHOWN = 15
_NOISE = frozenset({"level", "timestamp", "service", "logger", "exception", "span_id", "trace_id"})


class Daemon:
    """One running program and its log."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        hint: str = "",
    ) -> None:
        """Starts it; `hint` says in errors where its log is to be had. CommandError when it cannot
        be started at all."""
        self.name = name
        self.log = log
        self.address = ""
        self._hint = hint or f"its log is {log}"
        try:
            with log.open("ab") as output:
                self.process = subprocess.Popen(
                    [program(arguments[0]), *arguments[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=environment,
                )
        except OSError as error:
            raise CommandError(
                f"cannot start {arguments[0]}: {error.strerror}",
                "all commands of this package have to be installed; try `make setup`",
            ) from None

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, as a host that loses power; returns when the process is gone."""
        self.signal_group(signal.SIGKILL)
        self.process.wait()

    def signal_group(self, number: int) -> None:
        """Signals the daemon and what it started; one that has ended is left alone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def log_tail(self) -> tuple[str, ...]:
        """The last lines of its log, for messages."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return ()
        return tuple(map(condensed, lines[-LOG_LINES_SHOWN:]))

    def failed(self, what: str) -> CommandError:
        """The error for a daemon that did not do what was asked, with the end of its log."""
        status = self.process.poll()
        ended = f" (exit status {status})" if status is not None else ""
        return CommandError(
            f"{self.name} {what}{ended}",
            self._hint,
            self.log_tail(),
        )


def condensed(line: str) -> str:
    """A structured log line as its event and fields, without what a person can spare."""
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    if not isinstance(entry, dict):
        return line
    kept = {key: value for key, value in entry.items() if key not in _NOISE}
    words = [f"{key}={value}" for key, value in kept.items() if key != "event"]
    return " ".join([str(kept.get("event", "")), *words])


async def serves(
    daemon: Daemon, tls: TlsFiles | None = None, seconds: float = START_SECONDS
) -> bool:
    """Waits until the daemon's health says SERVING; False when it ends or stays silent."""
    deadline = time.monotonic() + seconds
    while daemon.is_running and time.monotonic() < deadline:
        # Asked only once something listens: a refused channel would back off first.
        if listens(daemon.address) and await health(daemon.address, tls) == SERVING:
            return daemon.is_running
        await asyncio.sleep(HEALTH_INTERVAL_SECONDS)
    return False


def listens(address: str) -> bool:
    """Whether somebody accepts connections at host:port."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(HEALTH_CALL_SECONDS)
        return probe.connect_ex((host, int(port))) == 0


def program(name: str) -> str:
    """The command beside this Python, where an installation puts it, else as PATH has it."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


async def health(address: str, tls: TlsFiles | None = None) -> str:
    """What the daemon at an address says of itself, as SERVING; empty when it does not answer."""
    with contextlib.suppress(StairwellError):
        return await check(address, seconds=HEALTH_CALL_SECONDS, tls=tls)
    return ""
