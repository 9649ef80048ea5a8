"""Errors of the domain as a browser gets them: a status of HTTP and a JSON object.

The classes and their reasons are those of the API; an exception that is none of them tells nothing.
"""

from __future__ import annotations

from typing import Any, Final

from stairlib.model.errors import (
    AlreadyExistsError,
    ConflictError,
    DataError,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    RefusedError,
    StairwellError,
    StateError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from stairlib.rpc.errors import INTERNAL_TEXT, as_domain_error
from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)

_STATUSES: Final[dict[type[StairwellError], int]] = {
    InvalidRequestError: 400,
    UnauthenticatedError: 401,
    RefusedError: 403,
    NotFoundError: 404,
    AlreadyExistsError: 409,
    StateError: 409,
    ConflictError: 409,
    LimitError: 429,
    DataError: 500,
    UnsupportedError: 501,
    UnavailableError: 503,
}


def failure(error: Exception) -> tuple[int, dict[str, Any]]:
    """(status, object) of any exception; an unexpected one is logged here."""
    found = as_domain_error(error)
    if found is None:
        _log.error("a request of the console failed", exc_info=error)
        return 500, {"reason": "INTERNAL", "message": INTERNAL_TEXT, "violations": []}
    status = next(_STATUSES[kind] for kind in type(found).__mro__ if kind in _STATUSES)
    violations = [
        {"field": each.field, "reason": each.reason, "description": each.description}
        for each in getattr(found, "violations", ())
    ]
    return status, {"reason": found.reason, "message": found.message, "violations": violations}
