"""PostgreSQL's side of the store: its engine, and its word of changes made elsewhere.

Transactions are READ COMMITTED. That is enough, and asked for by name: every decision that depends
on a row is either one statement with its condition in it, or is made with the row locked (FOR
UPDATE), which reads the newest committed version; and what must be unique is a unique key. A row
that is not there cannot be locked: where the look found none, the write is an INSERT and nothing
else, which the key refuses when another control plane added the row meanwhile; the transaction is
then run again. A transaction never waits for a control plane that was stopped while it held a lock:
waits for locks end soon, and the server ends a session that idles inside a transaction.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, event

from controlplane.store.place import database_url
from stairlib.model.errors import UnsupportedError
from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)

# Transactions at once; one more connection listens.
WORKERS = 4
CHANNEL = "stairwell"
# Migrations and the first key are made by one control plane at a time.
_SCHEMA_LOCK = 0x5374_6169_7277
_CONNECT_SECONDS = 5
_SESSION = " ".join(
    f"-c {name}={milliseconds}"
    for name, milliseconds in (
        ("lock_timeout", 5_000),
        ("statement_timeout", 20_000),
        ("idle_in_transaction_session_timeout", 10_000),
    )
)
# A server whose host has vanished is noticed in about this time.
_TCP = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# Between looks for the end, and between tries to listen again.
_LOOK_SECONDS = 0.5


def postgres_engine(url: str) -> Engine:
    """An engine of `WORKERS` connections, made as they are needed."""
    try:
        engine = sqlalchemy.create_engine(
            database_url(url),
            isolation_level="READ COMMITTED",
            pool_size=WORKERS + 1,
            max_overflow=0,
            connect_args={
                "connect_timeout": _CONNECT_SECONDS,
                "application_name": "stairwell controlplane",
                "options": _SESSION,
                **_TCP,
            },
        )
    except ImportError:
        raise UnsupportedError(
            "PostgreSQL needs its driver; run: pip install 'stairwell[postgres]'",
            reason="NO_POSTGRES_DRIVER",
        ) from None
    event.listen(engine, "connect", _set_up)
    return engine


def _set_up(connection: Any, _record: object) -> None:
    # A server may be set to lose the last commits in a crash; what we store must outlive one.
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false)"
        " WHERE current_setting('synchronous_commit') = 'off'"
    )
    connection.commit()


def hold_schema(connection: Connection) -> None:
    """Others that want the same wait until this transaction has ended."""
    if connection.dialect.name == "postgresql":
        connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))


@dataclass(frozen=True, slots=True)
class Notice:
    """Something changed: a record of this kind and key; an empty kind means anything may have."""

    kind: str
    key: str


def notify(connection: Connection, owner: str, notice: Notice) -> None:
    """Tells the other control planes, once and if the transaction commits."""
    text = json.dumps([owner, notice.kind, notice.key])
    connection.execute(sqlalchemy.select(sqlalchemy.func.pg_notify(CHANNEL, text)))


class Listener:
    """Hears the notices of other control planes on a thread of its own.

    `hear` is called on that thread. Each time it listens anew it says that anything may have
    changed: notices sent while nobody listened are lost.
    """

    def __init__(self, url: str, owner: str, hear: Callable[[Notice], None]) -> None:
        self._url = database_url(url).set(drivername="postgresql")
        self._owner = owner
        self._hear = hear
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store notices", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        import psycopg

        while not self._ending.is_set():
            try:
                self._listen(psycopg)
            except (psycopg.Error, OSError) as error:
                lines = str(error).strip().splitlines()
                _log.warning("no notices from the database", error=lines[0] if lines else "")
                self._ending.wait(_LOOK_SECONDS)

    def _listen(self, psycopg: Any) -> None:
        text = self._url.render_as_string(hide_password=False)
        with contextlib.closing(
            psycopg.connect(
                text,
                autocommit=True,
                connect_timeout=_CONNECT_SECONDS,
                application_name="stairwell notices",
                **_TCP,
            )
        ) as connection:
            connection.execute(f"LISTEN {CHANNEL}")
            self._hear(Notice("", ""))
            while not self._ending.is_set():
                for heard in connection.notifies(timeout=_LOOK_SECONDS):
                    self._tell(heard.payload)

    def _tell(self, payload: str) -> None:
        try:
            owner, kind, key = json.loads(payload)
        except (ValueError, TypeError):
            # Anybody who may use the database may notify; it costs a look at most.
            owner, kind, key = "", "", ""
        if owner != self._owner:
            self._hear(Notice(str(kind), str(key)))
