"""What the session has written since a repair began, so that copied blocks never overwrite newer
ones; and the extents that a repair names."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from downstaird.core.engine import Marks
from downstaird.core.mask_runs import Mask
from stairlib.model.errors import InvalidRequestError, StateError


def in_order(marks: Marks, extent_count: int) -> Marks:
    """Each extent once, in order. InvalidRequestError OUT_OF_RANGE."""
    extents, places = np.unique(marks["extent"], return_index=True)
    if len(extents) and int(extents[-1]) >= extent_count:
        raise InvalidRequestError(
            f"extent {int(extents[-1])} is outside the region's {extent_count} extents",
            reason="OUT_OF_RANGE",
        )
    chosen: Marks = marks[places]
    return chosen


def require_whole(incomplete: int) -> None:
    """StateError REPAIR_INCOMPLETE when so many extents are left."""
    if incomplete:
        raise StateError(
            f"{incomplete} extents are still incomplete: copy them and flush first",
            reason="REPAIR_INCOMPLETE",
            extents=str(incomplete),
        )


def by_extent(blocks_per_extent: int, offset: int, count: int) -> list[tuple[int, int, int, int]]:
    """(extent, first block in it, blocks, blocks before these in the range)."""
    found = []
    done = 0
    while done < count:
        extent, first = divmod(offset + done, blocks_per_extent)
        here = min(count - done, blocks_per_extent - first)
        found.append((extent, first, here, done))
        done += here
    return found


class RepairTracker:
    """One bit per block of the extents under repair; memory is taken when an extent is first
    written."""

    def __init__(self, blocks_per_extent: int) -> None:
        self._blocks = blocks_per_extent
        self._written: dict[int, Mask | None] = {}
        # Which repair this is: what was begun in one is none of another's.
        self.round = 0

    def __bool__(self) -> bool:
        return bool(self._written)

    def begin(self, extents: Iterable[int]) -> None:
        """Forgets all, and starts with these extents, nothing written."""
        self._written = dict.fromkeys(extents)
        self.round += 1

    def tracks(self, extent: int) -> bool:
        """Whether a repair of the extent has begun."""
        return extent in self._written

    def end(self) -> None:
        """Nothing is tracked any more."""
        self._written = {}

    def note(self, extent: int, first: int, count: int) -> None:
        """The session wrote or discarded these blocks (numbers within the extent)."""
        if extent not in self._written:
            return
        mask = self._written[extent]
        if mask is None:
            mask = np.zeros(self._blocks, dtype=np.bool_)
            self._written[extent] = mask
        mask[first : first + count] = True

    def untouched(self, extent: int, first: int, count: int) -> Mask:
        """Which of the blocks a copy may still write."""
        mask = self._written[extent]
        if mask is None:
            return np.ones(count, dtype=np.bool_)
        return ~mask[first : first + count]
