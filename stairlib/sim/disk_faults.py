"""What a simulated disk does wrong: syncs that fail, a file system that is full, sectors that are
lost or rot.

A `DiskFaults` decides; the disk in memory asks it. It knows which files may be hit by bit rot, and
keeps a record of what it damaged, so that a checker can tell a fault from a bug.
"""

from __future__ import annotations

from collections.abc import Callable

from stairlib.sim.chance import Chance

# How much of what was not synced a power cut leaves: nothing, all, and what lies between.
SURVIVAL = (0.0, 0.1, 0.5, 0.9, 1.0)


class DiskFaults:
    """The faults of one disk. `sync_failures` counts down: so many syncs from now will fail."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self.sync_failures = 0
        self.rotten = 0

    def fail_sync(self, _name: str) -> bool:
        """Whether this sync fails."""
        if self.sync_failures:
            self.sync_failures -= 1
            return True
        return False

    def after_power_cut(self) -> Callable[[str, int], bool]:
        """Which unsynced sectors are there after a power cut. Often only one file's writes got out,
        which is what hurts where an order matters."""
        chance = self._chance
        share = chance.choice(SURVIVAL)
        only = chance.choice(("", "", "log", "data", "contexts", "state"))

        def survives(name: str, _sector: int) -> bool:
            if only and not name.startswith(only):
                return False
            return chance.random() < share

        return survives

    def clear(self) -> None:
        """Works from now on. What rotted stays rotten."""
        self.sync_failures = 0
