"""What is held against the control plane, whichever of its lives speaks: nothing it does happens
twice."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING
from uuid import UUID

from controlplane.core.replacement import Replacement

if TYPE_CHECKING:
    from tests.sim.world import World


class ControlChecks:
    """Looked at where the control plane's calls arrive."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._started: Counter[tuple[str, UUID]] = Counter()

    def started(self, machine: str, record: Replacement) -> None:
        """A machine has begun to replace a member."""
        self._started[machine, record.id] += 1
        if self._started[machine, record.id] > 1:
            self._world.fail(
                f"{machine} began twice to replace {record.old_target} by {record.new_target}"
            )
