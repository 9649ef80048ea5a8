"""Where the state is kept, and where the key to its secrets is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from controlplane.core.leases import LEASE_SECONDS
from stairlib.model.errors import InvalidRequestError

DATABASE_FILE = "controlplane.sqlite"
_SCHEMES = ("postgresql", "postgres")


@dataclass(frozen=True, slots=True)
class Place:
    """A state directory, or a database by its URL; `directory` is not used then.

    The key to the secrets is in `key_file`, or is `key_text` (64 hexadecimal digits); a directory
    has one of its own when neither is given. `lease_seconds` counts where control planes share the
    database.
    """

    directory: Path
    url: str = field(default="", repr=False)
    key_file: Path | None = None
    key_text: str = field(default="", repr=False)
    lease_seconds: float = LEASE_SECONDS

    @property
    def shared(self) -> bool:
        """Whether several control planes may use it at once."""
        return bool(self.url)

    @property
    def words(self) -> str:
        """The place for people, without a password."""
        if not self.url:
            return str(self.directory)
        url = database_url(self.url)
        host = url.host or str(url.query.get("host", "")) or "its default host"
        port = f":{url.port}" if url.port else ""
        return f"database {url.database or 'of that name'!r} at {host}{port}"


def database_url(text: str) -> URL:
    """The URL as the engine takes it; InvalidRequestError, without the text, when it is wrong."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.drivername.partition("+")[0] not in _SCHEMES:
        raise InvalidRequestError(
            "the database is not named by a PostgreSQL URL; write --database"
            " postgresql://USER@HOST/NAME, or leave it out for SQLite in the directory of --data",
            reason="BAD_DATABASE_URL",
        )
    return url.set(drivername="postgresql+psycopg")
