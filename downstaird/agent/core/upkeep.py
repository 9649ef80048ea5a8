"""How one region's process is kept up, as a table of events and effects.

    none       there is none, and none is wanted
    starting   it runs and has not answered yet
    running    it answered, for its region
    waiting    it ended by itself; another is started after a pause
    stopping   it was told to end

The pause doubles with each end that follows quickly, up to a limit, and begins anew once a process
has run for a while. It never gives up: a region whose disk comes back must serve again.

Pure: `step` gives the next state and what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from stairlib.model.state_table import StateTable

FIRST_PAUSE_SECONDS = 0.5
LAST_PAUSE_SECONDS = 30.0
# One that ran this long died of something new.
STEADY_SECONDS = 60.0


class ProcessState(Enum):
    """Where a region's process is."""

    NONE = "none"
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    STOPPING = "stopping"


class ProcessEvent(Enum):
    """What happens to it."""

    WANTED = "wanted"
    READY = "ready"
    ENDED = "ended"
    PAUSE_OVER = "pause over"
    UNWANTED = "unwanted"


_S, _E = ProcessState, ProcessEvent
PROCESS: StateTable[ProcessState, ProcessEvent] = StateTable(
    "a region's process",
    _S.NONE,
    (
        (_S.NONE, _E.WANTED, _S.STARTING, "the region is there"),
        (_S.NONE, _E.UNWANTED, _S.NONE, "there is none"),
        (_S.STARTING, _E.READY, _S.RUNNING, "it answered"),
        (_S.STARTING, _E.ENDED, _S.WAITING, "it did not come up"),
        (_S.STARTING, _E.UNWANTED, _S.STOPPING, "the region is to go, or the agent stops it"),
        (_S.RUNNING, _E.READY, _S.RUNNING, "it answered"),
        (_S.RUNNING, _E.ENDED, _S.WAITING, "it died"),
        (_S.RUNNING, _E.UNWANTED, _S.STOPPING, "the region is to go, or the agent stops it"),
        (_S.WAITING, _E.PAUSE_OVER, _S.STARTING, "try again"),
        (_S.WAITING, _E.UNWANTED, _S.NONE, "the region is to go, or the agent stops it"),
        (_S.STOPPING, _E.READY, _S.STOPPING, "too late"),
        (_S.STOPPING, _E.UNWANTED, _S.STOPPING, "asked for again"),
        (_S.STOPPING, _E.ENDED, _S.NONE, "as asked"),
    ),
)


@dataclass(frozen=True, slots=True)
class Upkeep:
    """One process. `pause`: seconds until the next start where it ends now. `restarts`: starts
    after the first."""

    state: ProcessState = ProcessState.NONE
    pause: float = FIRST_PAUSE_SECONDS
    restarts: int = 0


def step(upkeep: Upkeep, event: ProcessEvent, seconds: float = 0.0) -> Upkeep:
    """What it becomes. `seconds`: for ENDED, how long the process had been there.
    IllegalMoveError."""
    state = PROCESS.after(upkeep.state, event)
    if event is ProcessEvent.PAUSE_OVER:
        longer = min(upkeep.pause * 2, LAST_PAUSE_SECONDS)
        return replace(upkeep, state=state, pause=longer, restarts=upkeep.restarts + 1)
    if event is ProcessEvent.ENDED and seconds >= STEADY_SECONDS:
        return replace(upkeep, state=state, pause=FIRST_PAUSE_SECONDS)
    return replace(upkeep, state=state)
