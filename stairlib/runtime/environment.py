"""Numbers that the environment may set: for what is tuned by the few, and has no flag."""

from __future__ import annotations

import os

from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)


def number_from(variable: str, default: float, *, at_most: float) -> float:
    """What the variable says, from 0 to `at_most`, in a unit that is in its name; the default where
    it says nothing, or, told in the log, what makes no sense."""
    text = os.environ.get(variable, "")
    if not text:
        return default
    try:
        wanted = float(text)
    except ValueError:
        wanted = -1.0
    if not 0 <= wanted <= at_most:
        _log.warning(
            "not a number in its bounds: the default is used",
            variable=variable,
            value=text,
            default=default,
            at_most=at_most,
        )
        return default
    return wanted
