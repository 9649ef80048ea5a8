"""From errors to the text a user reads: what is wrong, where, and what to do. Pure.

The daemons' messages already say what would be right; what is added here is what only the client
knows: the file and line a field came from, the address that was called, the command to type next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stairlib.model.errors import (
    ConflictError,
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    StairwellError,
    UnavailableError,
    UnsupportedError,
)

_LISTED = frozenset({"DISK_NOT_FOUND", "INSTANCE_NOT_FOUND"})

Locate = Callable[[str], str | None]


@dataclass(slots=True)
class CommandError(Exception):
    """Something the client itself refuses or gives up on; `hint` says what to do about it."""

    message: str
    hint: str = ""
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.message


def nowhere(_field: str) -> str | None:
    """The locator of requests that came from no file."""
    return None


def peer_name(address: str) -> str:
    """How messages name the control plane at an address."""
    return f"the control plane at {address}"


def describe(error: StairwellError | CommandError, address: str, locate: Locate = nowhere) -> str:
    """The whole text for stderr. `locate` turns a field path into "file:line" where it can."""
    if isinstance(error, CommandError):
        return _text(error.message, list(error.details), error.hint)
    details: list[str] = []
    message = error.message
    if isinstance(error, InvalidRequestError):
        message = _before_list(error)
        details = [violation_line(violation, locate) for violation in error.violations]
        if omitted := error.metadata.get("violations_omitted"):
            details.append(f"and {omitted} more")
    elif field := error.metadata.get("field"):
        # Well formed, but what it names will not do: a target that is away, or in use.
        details = [f"named in {_where(field, locate)}"]
    return _text(f"{message} ({error.reason})", details, hint_for(error, address))


def _before_list(error: InvalidRequestError) -> str:
    """The message without its own list of the violations, which follow one a line."""
    if not error.violations:
        return error.message
    first = error.violations[0]
    head, listed, _ = error.message.partition(f": {first.field}: {first.description}")
    return head if listed else error.message


def violation_line(violation: FieldViolation, locate: Locate = nowhere) -> str:
    """One broken rule: field path, where it stands in the user's file, what would be right."""
    where = _where(violation.field, locate) if violation.field else "(request)"
    reason = f" ({violation.reason})" if violation.reason not in {"", "INVALID"} else ""
    return f"{where}: {violation.description}{reason}"


def _where(field: str, locate: Locate) -> str:
    """A field path and, if it came from a file, its place there."""
    place = locate(field)
    return f"{field} [{place}]" if place else field


def hint_for(error: StairwellError, address: str) -> str:
    """What to do next, where the daemon's own message cannot know it."""
    if isinstance(error, UnavailableError) and error.metadata.get("peer") == peer_name(address):
        if error.reason == "DEADLINE_EXCEEDED":
            return "give it longer with --timeout SECONDS, or look at the control plane's log"
        return (
            f"start it with `controlplane run {address} --vmmd ADDRESS`, or name another one "
            "with --server and --port"
        )
    if isinstance(error, NotFoundError) and error.reason in _LISTED:
        return "`stairwell list` shows what there is"
    if isinstance(error, ConflictError):
        return "`stairwell replacement list` shows what runs; wait for it or see its error"
    if isinstance(error, UnsupportedError) and error.reason == UnsupportedError.reason:
        return f"does {address} run the control plane, and the same version as this client?"
    return ""


def _text(message: str, details: list[str], hint: str) -> str:
    lines = [f"error: {message}"]
    lines += [f"  {line}" for line in details]
    if hint:
        lines.append(f"hint: {hint}")
    return "\n".join(lines)
