"""What changed in a region since a flush, by the stamps of its extents: no block is read."""

from __future__ import annotations

from dataclasses import dataclass

from downstaird.core.engine import ExtentStates
from downstaird.core.mask_runs import true_runs
from stairlib.wire.frame import FLAG_DIRTY, FLAG_FAULTED, FLAG_INCOMPLETE

# Whatever their stamps say, what these extents hold is not of that flush, or not known to be.
_UNSETTLED = FLAG_DIRTY | FLAG_FAULTED | FLAG_INCOMPLETE


@dataclass(frozen=True, slots=True)
class Changes:
    """`runs`: (first extent, extents), ascending. `generation` and `flush`: the newest stamp there
    is, to ask with the next time."""

    runs: tuple[tuple[int, int], ...]
    generation: int
    flush: int

    @property
    def extents(self) -> int:
        """How many changed."""
        return sum(count for _first, count in self.runs)


def changes_since(states: ExtentStates, generation: int, flush: int) -> Changes:
    """The extents that were written after that flush of that generation, were not flushed since
    they were written, or are in need of repair. All that were ever written for (0, 0)."""
    later = states.generations > generation
    later |= (states.generations == generation) & (states.flushes > flush)
    later |= (states.flags & _UNSETTLED) != 0
    newest = max(
        zip(states.generations.tolist(), states.flushes.tolist(), strict=True), default=(0, 0)
    )
    return Changes(
        tuple((start, stop - start) for start, stop in true_runs(later)), newest[0], newest[1]
    )
