"""What a device sees of its guest's memory.

Invariant: a device never trusts an address the guest gave; it asks for a view and handles None.
"""

from __future__ import annotations

from typing import Protocol


class GuestMemory(Protocol):
    """Guest-physical memory, byte addressed from 0."""

    def view(self, address: int, length: int) -> memoryview | None:
        """A writable view of `length` bytes at `address`, or None when any of it is not memory.

        The view stays valid for the machine's life and is always the guest's present content.
        """
        ...
