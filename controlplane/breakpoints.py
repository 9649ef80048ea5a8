"""Points at which a test has the control plane die or stand still, by variables of the environment.

`STAIRWELL_DIE_AT=stored:REPAIR` has the process kill itself (SIGKILL: nothing is cleaned up) when
the move to REPAIR has just been stored; `effect:VERIFY_MEMBERS` when that effect is about to be
sent. `STAIRWELL_STOP_AT` names such points with commas between; the process stops itself (SIGSTOP)
the first time it is at each, and somebody else is killed meanwhile. Without the variables nothing
happens. What has to hold: whoever starts what was killed, the replacement ends the same.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

VARIABLE = "STAIRWELL_DIE_AT"
STOP_VARIABLE = "STAIRWELL_STOP_AT"

Reached = Callable[[str], None]


def unreached(_point: str) -> None:
    """Does nothing."""


def from_environment() -> Reached:
    """What is to be called with the name of each point."""
    wanted = os.environ.get(VARIABLE, "")
    stops = set(filter(None, os.environ.get(STOP_VARIABLE, "").split(",")))
    if not wanted and not stops:
        return unreached

    def reached(point: str) -> None:
        if point == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        if point in stops:
            stops.remove(point)
            os.kill(os.getpid(), signal.SIGSTOP)

    return reached
