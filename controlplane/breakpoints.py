"""Points at which a test has the control plane die, by a variable of the environment.

`STAIRWELL_DIE_AT=stored:REPAIR` has the process kill itself (SIGKILL: nothing is cleaned up) when
the move to REPAIR has just been stored; `effect:VERIFY_MEMBERS` when that effect is about to be
sent. Without the variable nothing happens. What has to hold: whoever starts the control plane
next, the replacement ends the same.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

VARIABLE = "STAIRWELL_DIE_AT"

Reached = Callable[[str], None]


def unreached(_point: str) -> None:
    """Does nothing."""


def from_environment() -> Reached:
    """What is to be called with the name of each point."""
    wanted = os.environ.get(VARIABLE, "")
    if not wanted:
        return unreached

    def die(point: str) -> None:
        if point == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return die
