"""What a database's failures mean to the domain, and which transactions are simply run again.

Only the database's own first line is shown: its details may quote a row.
"""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, IntegrityError

from stairlib.model.errors import (
    DataError,
    InvalidRequestError,
    LimitError,
    StairwellError,
    UnavailableError,
)

# SQLSTATE: a serialisation failure, a deadlock. Nothing was done; the next run sees the other's.
_PASSING = frozenset({"40001", "40P01"})
_FULL = frozenset({"53100", "SQLITE_FULL"})
_READ_ONLY = frozenset({"25006", "SQLITE_READONLY", "SQLITE_READONLY_DBMOVED"})
_BUSY = frozenset({"55P03", "57014", "SQLITE_BUSY", "SQLITE_LOCKED"}) | _PASSING
# The database refuses us, for now: too many connections, out of memory, a login that ended.
_TURNED_AWAY = ("53", "28", "3D", "42501")
_UNSTORABLE = ("22",)
_CUT = ("08", "57P0")
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR", "XX")


def code(error: DBAPIError) -> str:
    """SQLSTATE, or SQLite's name for its error; empty when there is none."""
    return str(
        getattr(error.orig, "sqlstate", None) or getattr(error.orig, "sqlite_errorname", None) or ""
    )


def text(error: DBAPIError) -> str:
    """What the database says, without the row it may quote."""
    diagnosis = getattr(error.orig, "diag", None)
    primary = getattr(diagnosis, "message_primary", None)
    lines = str(primary or error.orig).strip().splitlines()
    return lines[0] if lines else type(error.orig).__name__


def runs_again(error: DBAPIError) -> bool:
    """Whether the whole transaction is run again: another one was quicker, or the line was cut.

    A unique key that was taken since it was looked up is one of these: the next run finds the row,
    and says what that means. A commit that failed is never run again by this rule.
    """
    if isinstance(error, IntegrityError):
        return code(error) == "23505"
    return code(error) in _PASSING or cut(error)


def cut(error: DBAPIError) -> bool:
    """Whether the connection is gone; there was one."""
    return error.connection_invalidated or (bool(code(error)) and code(error).startswith(_CUT))


def meaning(error: DBAPIError, where: str) -> StairwellError | None:
    """The typed error of a failure; None for one that nobody foresaw. `where` names the store."""
    found, said = code(error), text(error)
    if found in _FULL:
        return LimitError(
            f"{where} is full: {said}; make room there, and what runs goes on by itself",
            reason="STORE_FULL",
        )
    if found in _READ_ONLY:
        return UnavailableError(
            f"{where} takes no changes: {said}; let it be written to (is it a standby?), and what"
            " runs goes on by itself",
            reason="STORE_READ_ONLY",
        )
    if found in _BUSY:
        return UnavailableError(
            f"{where} is busy: {said}; try again in a moment", reason="STORE_BUSY"
        )
    if found.startswith(_DAMAGED):
        return DataError(f"{where} cannot be read or written: {said}", reason="STORE_UNREADABLE")
    if found.startswith(_TURNED_AWAY):
        return UnavailableError(
            f"{where} turns this control plane away: {said}", reason="STORE_UNAVAILABLE"
        )
    if found.startswith(_UNSTORABLE) or "NUL (0x00)" in said:
        return InvalidRequestError(
            f"the request holds a text that cannot be stored: {said}", reason="UNSTORABLE_TEXT"
        )
    if cut(error) or (not found and type(error.orig).__name__ == "OperationalError"):
        return UnavailableError(
            f"{where} does not answer: {said}; what runs goes on by itself when it is back",
            reason="STORE_UNAVAILABLE",
        )
    return None
