"""What a session counts."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from operator import add


@dataclass(slots=True)
class Counters:
    """Totals of a session, for its closing log line and for metrics."""

    frames: int = 0
    guest_frames: int = 0  # those that ask for blocks: a repair gives way to them alone
    failed: int = 0
    flushes: int = 0
    copied_bytes: int = 0
    moved_bytes: int = 0  # what copies received, as it comes
    read_blocks: int = 0  # that were asked for
    written_blocks: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(*map(add, astuple(self), astuple(other)))
