"""The pvpanic port as a pure state machine: one byte that says what is taken, and takes news."""

from __future__ import annotations

import enum

from vmmd.hw.pvpanic import bits


class PanicNews(enum.Enum):
    """What a guest says."""

    PANICKED = "panicked"
    CRASH_LOADED = "crash loaded"


class PanicPort:
    """One port. The counters go on over resets. Source: reference propolis.md §13, §17."""

    def __init__(self) -> None:
        self.host_handled = 0
        self.guest_handled = 0

    def read(self) -> int:
        """A guest's read: the events that may be written."""
        return bits.EVENTS

    def write(self, value: int) -> PanicNews | None:
        """A guest's write; None where it says nothing that is known. Of both at once the panic that
        the host is to deal with counts."""
        if value & bits.PANICKED:
            self.host_handled += 1
            return PanicNews.PANICKED
        if value & bits.CRASH_LOADED:
            self.guest_handled += 1
            return PanicNews.CRASH_LOADED
        return None
