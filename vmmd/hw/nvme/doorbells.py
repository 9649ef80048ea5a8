"""Shadow doorbells: two pages of the guest's memory in place of most register writes.

The guest writes each doorbell's value into the first page, and rings the register only when the
value passes the index that the controller left in the second. Slot 2q is the tail of submission
queue q, 2q + 1 the head of completion queue q; the admin queues use their registers. Source: NVM
Express 1.4, section 7.13.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Beside:
    """What a controller needs where its guest runs beside it, on other processors.

    `barrier` orders what was stored before it and what is loaded after it, as the others see it.
    `later` calls a function after others had their turn.
    """

    barrier: Callable[[], None]
    later: Callable[[Callable[[], None]], None]


class DoorbellBuffers:
    """The two pages, by their views, which hold 4-byte slots."""

    def __init__(self, shadow: memoryview, events: memoryview, barrier: Callable[[], None]) -> None:
        self.barrier = barrier
        self._shadow = shadow.cast("I")
        self._events = events.cast("I")

    def tail(self, queue: int) -> int:
        """The guest's tail of a submission queue; any number."""
        return int(self._shadow[2 * queue])

    def head(self, queue: int) -> int:
        """The guest's head of a completion queue; any number."""
        return int(self._shadow[2 * queue + 1])

    def ring_past_tail(self, queue: int, tail: int) -> None:
        """The guest rings when its tail leaves `tail`."""
        self._events[2 * queue] = tail

    def ring_past_head(self, queue: int, head: int) -> None:
        """The guest rings when its head leaves `head`."""
        self._events[2 * queue + 1] = head

    def begin_tail(self, queue: int, tail: int) -> None:
        """A submission queue as the controller has it now."""
        self._shadow[2 * queue] = self._events[2 * queue] = tail

    def begin_head(self, queue: int, head: int) -> None:
        """A completion queue as the controller has it now."""
        self._shadow[2 * queue + 1] = self._events[2 * queue + 1] = head
