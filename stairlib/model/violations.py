"""A list of problems that stays within a bound and counts what it does not list.

A request may be wrong in as many places as it is long; whoever reads the answer is served by the
first of them and the number of the rest.
"""

from __future__ import annotations

from stairlib.model.errors import FieldViolation

# Listed of one request. A problem takes below 1 KiB on the wire, path and sentence: all of them
# stay well below the 4 MiB of one gRPC message.
VIOLATIONS_MAX = 1000


class ViolationList:
    """Collects problems in the order in which they are noted."""

    __slots__ = ("_listed", "count")

    def __init__(self) -> None:
        self.count = 0
        self._listed: list[FieldViolation] = []

    def refuse(self, field: str, reason: str, description: str) -> None:
        """Note one problem; past the bound it is only counted."""
        self.count += 1
        if self.count <= VIOLATIONS_MAX:
            self._listed.append(FieldViolation(field, description, reason))

    @property
    def full(self) -> bool:
        """Whether further problems are only counted."""
        return self.count >= VIOLATIONS_MAX

    @property
    def listed(self) -> tuple[FieldViolation, ...]:
        """What was noted, at most VIOLATIONS_MAX."""
        return tuple(self._listed)

    @property
    def omitted(self) -> int:
        """How many problems are not in `listed`."""
        return self.count - len(self._listed)


def joined(
    first: tuple[FieldViolation, ...], second: tuple[FieldViolation, ...]
) -> tuple[tuple[FieldViolation, ...], int]:
    """Both lists as one within the bound, and how many of them it leaves out."""
    both = first + second
    return both[:VIOLATIONS_MAX], max(0, len(both) - VIOLATIONS_MAX)
