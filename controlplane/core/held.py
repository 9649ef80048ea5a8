"""Why members are not replaced yet, and until when that is not tried again.

Whoever has the care of the fleet keeps one, and notes it down for the others: they show the reasons
too, and the next one to have the care goes on with them. Times are seconds since the epoch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from uuid import UUID

from controlplane.core.automation import Key


class Held:
    """See the module. Keys are members: disk, path of the region, slot."""

    def __init__(self, reasons: Mapping[Key, tuple[str, float]] | None = None) -> None:
        self._reasons = dict(reasons or {})

    def now(self, at: float) -> dict[Key, str]:
        """The reasons that still hold."""
        return {key: why for key, (why, until) in self._reasons.items() if at < until}

    def because(self, key: Key, why: str, until: float) -> None:
        """Holds one."""
        self._reasons[key] = (why, until)

    def forget(self) -> None:
        """Everything may be tried again."""
        self._reasons.clear()

    def notes(self, at: float) -> str:
        """Those that still hold, as text; what does not is forgotten."""
        self._reasons = {key: each for key, each in self._reasons.items() if at < each[1]}
        return json.dumps(
            [[str(disk), path, slot, *each] for (disk, path, slot), each in self._reasons.items()]
        )

    @classmethod
    def from_notes(cls, notes: str) -> Held:
        """What `notes` wrote. ValueError when it is something else."""
        return cls(
            {
                (UUID(disk), str(path), int(slot)): (str(why), float(until))
                for disk, path, slot, why, until in json.loads(notes)
            }
        )
