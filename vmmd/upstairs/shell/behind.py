"""How long one of three copies may be behind.

STAIRWELL_COPY_BEHIND_MS in the environment is the longest time in milliseconds, 20 by default; 0
sends everything to all members at once.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from stairlib.runtime.environment import number_from
from vmmd.upstairs.core import limits

VARIABLE: Final = "STAIRWELL_COPY_BEHIND_MS"
MILLISECONDS_MAX: Final = 100.0


@cache
def behind_seconds() -> float:
    """What the environment says, looked at once."""
    return number_from(VARIABLE, limits.BEHIND_SECONDS * 1e3, at_most=MILLISECONDS_MAX) / 1e3
