"""What happened in a run, one readable line per event.

Two levels: `note` for what a reader of a failure wants in any case (faults, states, outcomes), kept
as the last few hundred lines; `detail` for every frame and call, kept only when the run is traced.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from stairlib.sim.schedule import Schedule

LINES_KEPT = 400


class Trace:
    """`sink` gets each line as it comes; `detailed` says whether `detail` is worth calling."""

    def __init__(self, schedule: Schedule, sink: Callable[[str], None] | None = None) -> None:
        self._schedule = schedule
        self._sink = sink
        self.detailed = sink is not None
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)

    def note(self, who: str, text: str) -> None:
        """One line: the time in seconds, who, and what."""
        line = f"{self._schedule.now:11.5f}  {who:<9} {text}"
        self.lines.append(line)
        if self._sink is not None:
            self._sink(line)

    def detail(self, who: str, text: str) -> None:
        """A line for a traced run only."""
        if self.detailed:
            self.note(who, text)
