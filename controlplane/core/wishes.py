"""The answers to users' words as text: what was refused there is refused here, in the same way."""

from __future__ import annotations

import json
from typing import Any

from stairlib.model import errors
from stairlib.model.errors import (
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    StairwellError,
    UnavailableError,
)


def good() -> str:
    """The answer to a word that was done."""
    return json.dumps({})


def failure_of(error: StairwellError) -> str:
    """The answer to a word that was refused, or failed."""
    kind = next(each for each in type(error).__mro__ if each.__module__ == errors.__name__)
    violations = getattr(error, "violations", ())
    return json.dumps(
        {
            "error": kind.__name__,
            "message": error.message,
            "reason": error.reason,
            "metadata": {name: str(value) for name, value in error.metadata.items()},
            "violations": [[each.field, each.description, each.reason] for each in violations],
        }
    )


def read_answer(text: str) -> None:
    """Raises the failure of an answer, as the same kind of error; returns when it was good."""
    answer: dict[str, Any] = json.loads(text)
    if "error" not in answer:
        return
    metadata = answer["metadata"]
    kind = getattr(errors, answer["error"], UnavailableError)
    if kind is InvalidRequestError:
        found = tuple(FieldViolation(*each) for each in answer["violations"])
        raised: StairwellError = InvalidRequestError(answer["message"], found)
    elif kind is NotFoundError:
        raised = NotFoundError(
            metadata.get("kind", ""), metadata.get("name", ""), answer["message"]
        )
    else:
        raised = kind(answer["message"])
    raised.reason, raised.metadata = answer["reason"], metadata
    raise raised
