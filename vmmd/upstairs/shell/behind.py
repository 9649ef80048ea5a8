"""How long one of three copies may be behind.

STAIRWELL_COPY_BEHIND_MS in the environment is the longest time in milliseconds, 20 by default; 0
sends everything to all members at once.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Final

from stairlib.telemetry.logs import get_logger
from vmmd.upstairs.core import limits

_log = get_logger(__name__)

VARIABLE: Final = "STAIRWELL_COPY_BEHIND_MS"
MILLISECONDS_MAX: Final = 100.0


@cache
def behind_seconds() -> float:
    """What the environment says, told once in the log where it makes no sense."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return limits.BEHIND_SECONDS
    try:
        wanted = float(text)
    except ValueError:
        wanted = -1.0
    if not 0 <= wanted <= MILLISECONDS_MAX:
        _log.warning(
            "not a number of milliseconds: the default is used",
            variable=VARIABLE,
            value=text,
            at_most=MILLISECONDS_MAX,
        )
        return limits.BEHIND_SECONDS
    return wanted / 1e3
