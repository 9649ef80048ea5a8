"""Bearer tokens of people: a file of digests, and who has shown one.

One line a token: role, name, SHA-256 of the token in hexadecimal digits, and the day after which it
is not taken any more, or `-`. The tokens themselves are 32 random bytes and kept by nobody but
their owners, so a digest without salt gives nothing away. The file is read again when it changes.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

from stairlib.model.errors import InvalidRequestError, StateError, UnauthenticatedError
from stairlib.rpc.access import Caller, Role, Shown
from stairlib.rpc.renewal import Renewed

PREFIX: Final = "stw_"
_SCHEME: Final = "bearer"
_FILE_BYTES_MAX: Final = 1 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_ROLE_NAMES: Final = frozenset(str(role) for role in Role)
_HEADING: Final = "# role name sha256 last-day; made by `stairwell pki token`\n"


@dataclass(frozen=True, slots=True)
class _Entry:
    role: Role
    name: str
    last_day: date | None


def checked_name(name: str) -> str:
    """A name of a certificate or a token; InvalidRequestError when it cannot be one."""
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{name!r} is no name: it has 1 to 64 letters, digits and . _ @ - and begins with a "
            "letter or digit"
        )
    return name


def digest_of(token: str) -> str:
    """What the file has of a token."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def new_token(name: str, role: Role, days: int | None, today: date) -> tuple[str, str]:
    """(token, line of the file) for a person; `days` None: it is taken until it is removed."""
    token = PREFIX + secrets.token_urlsafe(32)
    last = (today + timedelta(days=days)).isoformat() if days is not None else "-"
    return token, f"{role} {checked_name(name)} {digest_of(token)} {last}\n"


def add_line(path: Path, line: str) -> None:
    """Appends to the file, made for its owner alone. StateError when it cannot be written."""
    try:
        new = not path.exists()
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(handle, "a") as file:
            file.write((_HEADING if new else "") + line)
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror}", reason="CANNOT_WRITE") from error


class TokenBook:
    """The tokens of one file, as they are now. StateError TOKEN_FILE at construction when it cannot
    be read or has a line that is none; a change for the worse later is logged, and the tokens of
    before stay."""

    def __init__(self, path: Path) -> None:
        self._entries = Renewed("tokens", (path,), lambda: _read(path))

    def caller(self, authorization: str | None) -> Caller:
        """Who shows this header. UnauthenticatedError when nobody known does."""
        scheme, _, token = (authorization or "").strip().partition(" ")
        if scheme.lower() != _SCHEME or not token.strip():
            raise UnauthenticatedError(
                "this port takes a bearer token with each call: `stairwell --token-file FILE`, or "
                "the header `authorization: Bearer TOKEN`",
                reason="TOKEN_NEEDED",
            )
        found = self._entries.now().get(digest_of(token.strip()))
        if found is None:
            raise UnauthenticatedError(
                "the bearer token is not known here: ask who keeps the cluster for another one "
                "(`stairwell pki token`)",
                reason="TOKEN_UNKNOWN",
            )
        if found.last_day is not None and datetime.now(UTC).date() > found.last_day:
            raise UnauthenticatedError(
                f"the bearer token of {found.name} was good until {found.last_day}: ask who keeps "
                "the cluster for another one (`stairwell pki token`)",
                reason="TOKEN_EXPIRED",
            )
        return Caller(found.name, frozenset({found.role}), Shown.TOKEN)


def _read(path: Path) -> dict[str, _Entry]:
    """Entries by digest."""
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES_MAX + 1)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise _wrong(path, f"cannot be read: {why}") from None
    if len(content) > _FILE_BYTES_MAX:
        raise _wrong(path, f"has more than {_FILE_BYTES_MAX} bytes")
    entries = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        entry = _entry(words)
        if entry is None:
            # Not shown: somebody may have put the token itself there.
            raise _wrong(path, f"line {number} is not ROLE NAME SHA256 LAST-DAY")
        entries[words[2]] = entry
    return entries


def _entry(words: list[str]) -> _Entry | None:
    if len(words) != 4 or words[0] not in _ROLE_NAMES:
        return None
    role, name, digest, last = words
    if Role(role) is Role.DAEMON or not _NAME.fullmatch(name) or not _DIGEST.fullmatch(digest):
        return None
    try:
        return _Entry(Role(role), name, None if last == "-" else date.fromisoformat(last))
    except ValueError:
        return None


def _wrong(path: Path, why: str) -> StateError:
    return StateError(
        f"the file of tokens {path} {why} (`stairwell pki token` writes it)", reason="TOKEN_FILE"
    )
