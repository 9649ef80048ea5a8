"""How fast the copies of a set may go, and how many of them at once."""

from __future__ import annotations

from dataclasses import dataclass

from vmmd.upstairs.core import limits


@dataclass(frozen=True, slots=True)
class RepairLimits:
    """Of all members that are being filled, together. `bytes_per_second` 0 is no limit."""

    bytes_per_second: int = 0
    copies_in_flight: int = limits.COPIES_IN_FLIGHT

    def share(self, members: int) -> RepairLimits:
        """What each of so many members gets: an equal part, and at least one copy, so that none
        stands still for ever."""
        members = max(1, members)
        rate = self.bytes_per_second
        return RepairLimits(
            max(1, rate // members) if rate else 0, max(1, self.copies_in_flight // members)
        )
