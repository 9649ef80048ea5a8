"""The states a machine publishes, and which may follow which.

    CREATING ──run──> STARTING ──> RUNNING ──reboot──> REBOOTING ──> RUNNING
        │                │            │
        │ stop           │ stop       │ stop
        v                v            v
    STOPPING ─────────────────────────────> STOPPED ──> DESTROYED
    any state before STOPPED ── something broke ──> FAILED
    RUNNING ── the guest's kernel panicked ──> RUNNING, with the reason

STARTING goes straight to STOPPED when stopped: what is half started is dropped, not paused and
halted. A machine never comes back from STOPPED, FAILED or DESTROYED; starting again is a new
machine. Source: reference propolis.md §5.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from stairlib.model.errors import StateError


class MachineState(enum.Enum):
    """What the outside sees."""

    CREATING = "creating"
    STARTING = "starting"
    RUNNING = "running"
    REBOOTING = "rebooting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    DESTROYED = "destroyed"


TRANSITIONS: dict[MachineState, frozenset[MachineState]] = {
    MachineState.CREATING: frozenset(
        {MachineState.STARTING, MachineState.STOPPING, MachineState.FAILED}
    ),
    MachineState.STARTING: frozenset(
        {MachineState.RUNNING, MachineState.STOPPED, MachineState.FAILED}
    ),
    MachineState.RUNNING: frozenset(
        {
            MachineState.RUNNING,
            MachineState.REBOOTING,
            MachineState.STOPPING,
            MachineState.FAILED,
        }
    ),
    MachineState.REBOOTING: frozenset(
        {MachineState.RUNNING, MachineState.STOPPING, MachineState.FAILED}
    ),
    MachineState.STOPPING: frozenset({MachineState.STOPPED, MachineState.FAILED}),
    MachineState.STOPPED: frozenset({MachineState.DESTROYED}),
    MachineState.FAILED: frozenset(),
    MachineState.DESTROYED: frozenset(),
}
# After these nothing is served any more: the watch ends.
ENDED = frozenset({MachineState.FAILED, MachineState.DESTROYED})


@dataclass(frozen=True, slots=True)
class Published:
    """One published state; `generation` rises by one with each, from 1.

    `process_died`: FAILED since the machine's process, or its hypervisor, ended by itself."""

    state: MachineState = MachineState.CREATING
    generation: int = 1
    reason: str = ""
    process_died: bool = False

    def moved(self, to: MachineState, reason: str = "", *, process_died: bool = False) -> Published:
        """The next published state; StateError when it may not follow this one."""
        if to not in TRANSITIONS[self.state]:
            raise StateError(
                f"a machine cannot go from {self.state.value} to {to.value}",
                reason="ILLEGAL_TRANSITION",
            )
        return Published(to, self.generation + 1, reason, process_died)
