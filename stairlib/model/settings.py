"""What a daemon tells of its configuration: each value as text, and where it came from.

Secrets are told by their type: a flag or variable that holds one has `SecretText` or `SecretUrl` as
its type, and what is shown of those is decided here alone. Invariants: of a type that is not known
here nothing is shown; a password in a URL is never shown, whatever the type of the value.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

MASK: Final = "***"
# libpq's own words, and what others call the like.
_SECRET_KEY: Final = re.compile(r"pass|secret|token|key|sig|credential", re.IGNORECASE)


class SecretText(str):
    """A text that is shown nowhere: it is told whether there is one."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(MASK if self else "")


class SecretUrl(str):
    """A URL that may hold a password, before its host or among what follows `?`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(shown(self)[0])


class Source(enum.Enum):
    """Where a value came from."""

    DEFAULT = "default"
    FLAG = "flag"
    ENVIRONMENT = "environment"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Setting:
    """One value in effect. `origin` is the flag, the variable or the file, empty for a default;
    `masked` says that something of the value is not shown."""

    name: str
    value: str
    source: Source = Source.DEFAULT
    origin: str = ""
    masked: bool = False


def setting(name: str, value: object, source: Source, origin: str = "") -> Setting:
    """A value as it may be shown."""
    text, masked = shown(value)
    return Setting(name, text, source, origin if source is not Source.DEFAULT else "", masked)


def shown(value: object) -> tuple[str, bool]:
    """(what may be shown of a value, whether something is not)."""
    match value:
        case None:
            return "", False
        case SecretText():
            return (MASK, True) if value else ("", False)
        case enum.Enum():
            return shown(value.value)
        case bool():
            return ("true" if value else "false"), False
        case int() | float():
            return f"{value:g}" if isinstance(value, float) else str(value), False
        case str():
            return _url(value) if isinstance(value, SecretUrl) or "://" in value else (value, False)
        case list() | tuple():
            parts = [shown(each) for each in value]
            return ", ".join(text for text, _ in parts), any(masked for _, masked in parts)
    # A path, without importing what could open one.
    path = getattr(value, "__fspath__", None)
    if path is not None and isinstance(text := path(), str):
        return text, False
    return MASK, True


def flattened(table: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """The keys of tables in tables as paths with dots, each with its value. Lists of tables are
    numbered from zero."""
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            found += flattened(value, f"{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
            for index, each in enumerate(value):
                found += flattened(each, f"{name}[{index}].")
        else:
            found.append((name, value))
    return found


def _url(text: str) -> tuple[str, bool]:
    """A URL without what is secret in it; nothing of a text that cannot be taken apart."""
    if not text:
        return "", False
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return MASK, True
    # A password with a `/`, `?` or `#` that is not written as it should be ends the host for some
    # readers and not for others: its rest would stand in the path.
    if not parts.scheme or "@" in f"{parts.path}{parts.query}{parts.fragment}":
        return MASK, True
    found = _without_password(parts)
    query = "&".join(_query_part(each) for each in found.query.split("&"))
    # A fragment has no meaning here, and is not needed to find what is wrong.
    found = found._replace(query=query, fragment=MASK if found.fragment else "")
    made = found.geturl()
    return (text, False) if MASK not in made else (made, True)


def _without_password(parts: SplitResult) -> SplitResult:
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return parts
    name, colon, _password = user.partition(":")
    return parts._replace(netloc=f"{name}{colon and ':' + MASK}@{host}")


def _query_part(text: str) -> str:
    name, equals, _value = text.partition("=")
    return f"{name}{equals}{MASK}" if equals and _SECRET_KEY.search(name) else text
