"""Where interrupt messages arrive in the built-in guest: data word → handler."""

from __future__ import annotations

from collections.abc import Callable

# The address processors listen at on PCs; here it only has to be no memory.
MESSAGE_ADDRESS = 0xFEE0_0000


class InterruptTable:
    """Hands out message data words and calls their handlers. Unknown messages are counted."""

    def __init__(self) -> None:
        self.spurious = 0
        self._handlers: dict[int, Callable[[], None]] = {}
        self._next = 0x20

    def allocate(self, handler: Callable[[], None]) -> int:
        """A data word whose messages call `handler`. Handlers only note work for later."""
        data = self._next
        self._next += 1
        self._handlers[data] = handler
        return data

    def release(self, data: int) -> None:
        """The word means nothing from now on."""
        self._handlers.pop(data, None)

    def deliver(self, address: int, data: int) -> None:
        """For PciTopology.on_message."""
        handler = self._handlers.get(data) if address == MESSAGE_ADDRESS else None
        if handler is None:
            self.spurious += 1
        else:
            handler()
