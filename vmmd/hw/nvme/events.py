"""Asynchronous events: the requests a guest leaves for them, and what is to be told.

An event of a type is told once; another one of that type waits until the guest has read the log
page the first one named. Source: NVM Express 1.4, section 5.2.
"""

from __future__ import annotations

from vmmd.hw.nvme import bits

# Requests held; Identify tells it 0-based.
ASYNC_EVENTS_MAX = 4

_PAGE_OF = {
    bits.EventType.ERROR: bits.LogPage.ERROR,
    bits.EventType.SMART: bits.LogPage.SMART,
}


class AsyncEvents:
    """Pure bookkeeping: identifiers of held requests go in, (identifier, result) pairs come out."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self._untold: dict[bits.EventType, int] = {}
        self._unread: set[bits.EventType] = set()

    @property
    def full(self) -> bool:
        """Whether no further request is taken."""
        return len(self.held) >= ASYNC_EVENTS_MAX

    def happened(self, kind: bits.EventType, what: int) -> None:
        """Something to tell; lost on purpose while the last one of its kind is unread."""
        if kind not in self._unread:
            self._untold.setdefault(kind, kind | what << 8 | _PAGE_OF[kind] << 16)

    @property
    def ready(self) -> bool:
        """Whether `take` has something."""
        return bool(self._untold and self.held)

    def take(self) -> tuple[int, int]:
        """A held request and the result it completes with."""
        kind = next(iter(self._untold))
        self._unread.add(kind)
        return self.held.pop(0), self._untold.pop(kind)

    def page_read(self, page: int) -> None:
        """The guest has read a log page and lets its events be told again."""
        for kind, named in _PAGE_OF.items():
            if named == page:
                self._unread.discard(kind)
                self._untold.pop(kind, None)
