"""The domain's errors. They say whose fault it is and what to do, and know no gRPC code.

`stairlib.rpc.errors` holds the one table from these classes to codes. `reason` is UPPER_SNAKE and
goes to clients as google.rpc.ErrorInfo.reason; `metadata` goes with it. Neither ever holds a
secret.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that is wrong: its path as the user wrote it, the rule's name, what would be
    right."""

    field: str
    description: str
    reason: str = "INVALID"


class StairwellError(Exception):
    """Base of everything the domain refuses or fails at."""

    reason = "INTERNAL"

    def __init__(self, message: str, *, reason: str | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata
        if reason is not None:
            self.reason = reason


class InvalidRequestError(StairwellError):
    """The request is wrong whatever the state of the system; `violations` names each field.

    `omitted` is how many more there are than `violations` lists; metadata tells clients."""

    reason = "INVALID_REQUEST"

    def __init__(
        self,
        message: str,
        violations: tuple[FieldViolation, ...] = (),
        *,
        reason: str | None = None,
        omitted: int = 0,
        **metadata: str,
    ) -> None:
        if omitted:
            metadata["violations_omitted"] = str(omitted)
        super().__init__(message, reason=reason, **metadata)
        self.violations = violations


class NotFoundError(StairwellError):
    """`kind` and `name` say what is missing."""

    reason = "NOT_FOUND"

    def __init__(self, kind: str, name: str, message: str | None = None) -> None:
        super().__init__(
            message or f"there is no {kind} {name!r}",
            reason=f"{kind.upper().replace(' ', '_')}_NOT_FOUND",
            kind=kind,
            name=name,
        )


class AlreadyExistsError(StairwellError):
    """Something else has that name or identity."""

    reason = "ALREADY_EXISTS"


class StateError(StairwellError):
    """Right request, wrong moment: the thing it is for cannot do that in its present state."""

    reason = "WRONG_STATE"


class ConflictError(StairwellError):
    """Another operation on the same thing is running, or won the race; metadata names it."""

    reason = "CONFLICT"


class UnavailableError(StairwellError):
    """A peer could not be reached or did not answer in time; trying again may help."""

    reason = "UNAVAILABLE"


class RefusedError(StairwellError):
    """The caller may not do this."""

    reason = "PERMISSION_DENIED"


class UnauthenticatedError(StairwellError):
    """The caller did not show, or not well enough, who it is."""

    reason = "UNAUTHENTICATED"


class LimitError(StairwellError):
    """A stated limit was reached."""

    reason = "LIMIT_REACHED"


class CallRateError(LimitError):
    """The caller makes too many calls, and this one was not begun: the same one may be made again
    after `retry_seconds`."""

    reason = "CALL_RATE"

    def __init__(self, message: str, retry_seconds: float, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.retry_seconds = retry_seconds


class UnsupportedError(StairwellError):
    """Legal, but not offered by this version."""

    reason = "UNSUPPORTED"


class DataError(StairwellError):
    """Stored data is damaged or could not be read or written; names what and where."""

    reason = "DATA_LOSS"
