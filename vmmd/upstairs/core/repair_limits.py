"""How fast the copies of a set may go, and how many of them at once."""

from __future__ import annotations

from dataclasses import dataclass

from vmmd.upstairs.core import limits


@dataclass(frozen=True, slots=True)
class RepairLimits:
    """Of all members that are being filled, together. `bytes_per_second` 0 is no limit."""

    bytes_per_second: int = 0
    copies_in_flight: int = limits.COPIES_IN_FLIGHT

    def share(self, of: int, members: int = 1) -> RepairLimits:
        """What so many `members` get `of` all that are filled: an equal part for each, and at least
        one copy, so that nobody stands still for ever."""
        of = max(members, of)
        rate = self.bytes_per_second
        return RepairLimits(
            max(1, rate * members // of) if rate else 0,
            max(1, self.copies_in_flight * members // of),
        )
