"""Opening a store: its directory or database, its lock, its migrations, its key.

Invariants: one process at a time uses a directory; a commit is on disk when it returns (SQLite: WAL
with synchronous=FULL); a store made by a newer version is refused, not guessed at; so is one that
was made with another key.
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
from sqlalchemy import Connection, Engine, event, insert, inspect, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from controlplane.store import failures
from controlplane.store.place import DATABASE_FILE, Place
from controlplane.store.postgres import hold_schema, postgres_engine
from controlplane.store.schema import disks, facts
from controlplane.store.sealing import Sealer, load_sealer, missing_key
from stairlib.model.errors import DataError, StateError

LOCK_FILE = "lock"
_OWNER_ONLY = 0o700
_KEY_CHECK = "secret_key_check"
_KEY_CHECK_TEXT = "stairwell"


@dataclass(slots=True)
class Opened:
    """What a store works with. `lock` is the descriptor that keeps others out of a directory."""

    engine: Engine
    sealer: Sealer
    place: Place
    lock: int | None = None

    def close(self) -> None:
        """Closes the database, then lets the next one in."""
        self.engine.dispose()
        if self.lock is not None:
            os.close(self.lock)


def open_place(place: Place) -> Opened:
    """Opens a store, making what is missing; a typed error when it cannot be used."""
    if not place.shared:
        return _open_directory(place)
    engine = postgres_engine(place.url)
    try:
        return Opened(engine, _prepared(engine, place), place)
    except BaseException:
        engine.dispose()
        raise


def _open_directory(place: Place) -> Opened:
    directory = place.directory
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
            return Opened(engine, _prepared(engine, place), place, lock)
        except BaseException:
            engine.dispose()
            raise
    except BaseException:
        os.close(lock)
        raise


def _prepared(engine: Engine, place: Place) -> Sealer:
    """Migrates, and finds the key."""
    try:
        migrate(engine)
        return _sealer(engine, place)
    except DBAPIError as error:
        where = place.words if place.shared else str(place.directory / DATABASE_FILE)
        meant = failures.meaning(error, where)
        if meant is None:
            meant = DataError(
                f"{where} cannot be read or written: {failures.text(error)}",
                reason="STORE_UNREADABLE",
            )
        raise meant from error


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
    config, known = _migrations()
    with engine.begin() as connection:
        # Control planes that start at once migrate one after another.
        hold_schema(connection)
        refuse_newer(version(connection), known)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def version(connection: Connection) -> str | None:
    """The schema's version; None where there is none yet."""
    return MigrationContext.configure(connection).get_current_revision()


def newest_version() -> str:
    """The schema's version that this program makes and needs."""
    config, _known = _migrations()
    head = ScriptDirectory.from_config(config).get_current_head()
    assert head is not None
    return head


def refuse_newer(present: str | None, known: set[str] | None = None) -> None:
    """StateError for a version that this program does not know."""
    if present is not None and present not in (known or _migrations()[1]):
        raise StateError(
            f"the stored state has schema version {present}, made by a newer stairwell; start"
            " that version, or name another place with --data or --database",
            reason="STORE_TOO_NEW",
            version=present,
        )


def _migrations() -> tuple[Config, set[str]]:
    """(alembic's configuration, the versions it knows)."""
    # Its notes on each start are of no use to an operator.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    scripts = ScriptDirectory.from_config(config).walk_revisions()
    return config, {script.revision for script in scripts}


def _sealer(engine: Engine, place: Place) -> Sealer:
    """The sealer of a store that is there; DataError when its key is another one, or missing."""
    with engine.begin() as connection:
        hold_schema(connection)
        check = key_check(connection)
        sealer = load_sealer(place, may_make=check is None)
        prove_key(sealer, check, place)
        named = facts.c.name == _KEY_CHECK
        if sealer.has_key and connection.execute(select(facts.c.name).where(named)).first() is None:
            sealed = sealer.seal(_KEY_CHECK_TEXT)
            connection.execute(insert(facts).values(name=_KEY_CHECK, value=sealed))
        return sealer


def key_check(connection: Connection) -> bytes | None:
    """Something that was sealed with the store's key; None where nothing was."""
    if inspect(connection).has_table(facts.name):
        query = select(facts.c.value).where(facts.c.name == _KEY_CHECK)
        found: bytes | None = connection.execute(query).scalar_one_or_none()
        if found is not None:
            return found
    # A store of before there were such checks: any secret of its disks will do.
    secret = disks.c.construction_sealed
    query = select(secret).where(secret.is_not(None)).limit(1)
    return connection.execute(query).scalar_one_or_none()


def prove_key(sealer: Sealer, check: bytes | None, place: Place) -> None:
    """DataError unless the sealer opens what the store was sealed with, if anything was."""
    if check is None:
        return
    if not sealer.has_key:
        where = "the command line" if place.shared else str(place.directory)
        raise missing_key(where)
    sealer.open(check)


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StateError(
            f"another control plane uses {directory}; stop it, or name another directory with"
            " --data (several at once need a PostgreSQL --database)",
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
