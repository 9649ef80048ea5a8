"""Opening a store: its directory, its lock, its engine, its migrations.

Invariants: one process at a time uses a directory; a commit is on disk when it returns (WAL with
synchronous=FULL); a store made by a newer version is refused, not guessed at.
"""

from __future__ import annotations

import fcntl
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from controlplane.store.sealing import Sealer, load_sealer
from stairlib.model.errors import DataError, StateError

DATABASE_FILE = "controlplane.sqlite"
LOCK_FILE = "lock"
_OWNER_ONLY = 0o700


@dataclass(slots=True)
class Opened:
    """What a store works with. `lock` is the descriptor that keeps others out."""

    engine: Engine
    sealer: Sealer
    lock: int

    def close(self) -> None:
        """Closes the database, then lets the next one in."""
        self.engine.dispose()
        os.close(self.lock)


def open_directory(directory: Path) -> Opened:
    """Opens the store of a directory, making what is missing; StateError when it cannot be used."""
    try:
        directory.mkdir(mode=_OWNER_ONLY, parents=True, exist_ok=True)
        lock = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(
            f"{directory} cannot hold the control plane's state: {error.strerror}; name another"
            " directory with --data",
            reason="BAD_DATA_DIRECTORY",
            directory=str(directory),
        ) from error
    try:
        _lock(lock, directory)
        engine = sqlite_engine(directory / DATABASE_FILE)
        try:
            migrate(engine)
        except BaseException as error:
            engine.dispose()
            if not isinstance(error, DBAPIError):
                raise
            raise DataError(
                f"{directory / DATABASE_FILE} cannot be read or written: {error.orig}",
                reason="STORE_UNREADABLE",
                directory=str(directory),
            ) from error
        return Opened(engine, load_sealer(directory), lock)
    except BaseException:
        os.close(lock)
        raise


def sqlite_engine(path: Path) -> Engine:
    """An engine with one connection, whose transactions begin as writers."""
    engine = sqlalchemy.create_engine(
        f"sqlite:///{path}",
        poolclass=StaticPool,
        # The connection moves between the thread that opens the store and the one that works.
        connect_args={"check_same_thread": False},
    )
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


def migrate(engine: Engine) -> None:
    """Brings the schema to this version's; StateError when it is newer than this program."""
    # Its notes on each start are of no use to an operator.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with engine.begin() as connection:
        present = MigrationContext.configure(connection).get_current_revision()
        if present is not None and present not in known:
            raise StateError(
                f"the stored state has schema version {present}, made by a newer stairwell; start"
                " that version, or name another directory with --data",
                reason="STORE_TOO_NEW",
                version=present,
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StateError(
            f"another control plane uses {directory}; stop it, or name another directory with"
            " --data",
            reason="DATA_DIRECTORY_IN_USE",
            directory=str(directory),
        ) from None


def _set_up(connection: Any, _record: object) -> None:
    # The driver's own way of beginning transactions leaves reads and DDL outside of them.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
