"""A PostgreSQL server of the tests' own: made in a temporary directory, gone with them.

It is Debian's package run by hand: the system's own cluster is neither needed nor touched. The
server refuses to run as root, so root starts it as another user. Its databases sort as people do,
not by the letters' numbers, and ask for a password: both have to be right in the store.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ports import free_ports

USER = "stairwell"
PASSWORD = "not-to-be-seen"
START_SECONDS = 60.0
_numbers = itertools.count(1)


def binaries() -> Path | None:
    """The newest installed server's programs."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda each: float(each.parts[4])
    )
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def _account() -> str | None:
    """Who runs the server; None for whoever runs the tests."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


class PostgresServer:
    """One server at one port. It may be stopped, killed and started again."""

    def __init__(self, folder: Path, programs: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self._programs = programs
        self._account = _account()
        self._process: subprocess.Popen[bytes] | None = None

    def _run_as(self) -> dict[str, str]:
        return {"user": self._account, "group": self._account_group()} if self._account else {}

    def _account_group(self) -> str:
        import grp

        assert self._account is not None
        return grp.getgrgid(pwd.getpwnam(self._account).pw_gid).gr_name

    def make(self) -> None:
        """Makes the empty cluster."""
        password = self.folder / "password"
        password.write_text(PASSWORD + "\n")
        if self._account:
            for path in (self.folder, password):
                shutil.chown(path, self._account, self._account_group())
        subprocess.run(
            [
                self._programs / "initdb", "-D", self.folder / "data", "-U", USER,
                "--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8",
                "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en", "--no-sync",
            ],
            check=True, capture_output=True, cwd=self.folder, **self._run_as(),
        )  # fmt: skip

    def start(self) -> None:
        """Starts the server and returns when it takes connections."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._programs / "postgres", "-D", self.folder / "data", "-p", str(self.port),
                    "-c", "listen_addresses=127.0.0.1", "-k", str(self.folder),
                    "-c", "max_connections=100", "-c", "shared_buffers=16MB",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                start_new_session=True, **self._run_as(),
            )  # fmt: skip
        end = time.monotonic() + START_SECONDS
        while True:
            # Not before it says so: a connection is taken before questions are.
            ready = subprocess.run(
                [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)],
                check=False,
            )
            if ready.returncode == 0:
                return
            log_text = (self.folder / "log").read_text(errors="replace")
            assert self._process.poll() is None, log_text
            assert time.monotonic() < end, log_text
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGINT) -> None:
        """Ends it: at once but in order, or by SIGQUIT as a host that loses power would."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(START_SECONDS)
            self._process = None

    def sweep(self) -> None:
        """Ends what is left."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGCONT)
            # Its files go away too: nothing is worth a checkpoint.
            self.stop(signal.SIGQUIT)

    def sql(self, *statements: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Runs statements; the rows of the last one."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def url(self, database: str) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of a new empty database."""
        name = f"stairwell_{next(_numbers)}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running server; skips the test, with a message, where it cannot be."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="the PostgreSQL driver is not installed")
    # Beside pytest's own directories, which another user may not enter.
    folder = Path(tempfile.mkdtemp(prefix="stairwell-postgres-"))
    server = PostgresServer(folder, programs, free_ports(1))
    try:
        server.make()
        server.start()
        yield server
    finally:
        server.sweep()
        shutil.rmtree(folder, ignore_errors=True)
