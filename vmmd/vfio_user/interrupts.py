"""Interrupts by eventfd: one descriptor for each vector, given by the hypervisor."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from vmmd.vfio_user.core.wire import Irq

_ONE = (1).to_bytes(8, "little")


class EventInterrupts:
    """Satisfies core.conversation.Interrupts.

    A vector that fires while it has no descriptor is raised when it gets one: a hypervisor takes
    all of them back for a moment when a guest begins to use one more. A guest looks for what is not
    there and goes on.
    """

    def __init__(self) -> None:
        self._files: dict[tuple[Irq, int], int] = {}
        self._owed: set[int] = set()

    def use(self, irq: Irq, start: int, files: Sequence[int]) -> None:
        """As Interrupts.use."""
        for vector, file in enumerate(files, start):
            self._close(irq, vector)
            os.set_blocking(file, False)
            self._files[irq, vector] = file
            if irq in (Irq.MSI, Irq.MSIX) and vector in self._owed:
                self._owed.discard(vector)
                self._raise(file)

    def drop(self, irq: Irq, start: int, count: int) -> None:
        """As Interrupts.drop."""
        for vector in range(start, start + count):
            self._close(irq, vector)

    def fire(self, vector: int) -> None:
        """As Interrupts.fire, by whichever kind the hypervisor uses."""
        for irq in (Irq.MSIX, Irq.MSI):
            file = self._files.get((irq, vector))
            if file is not None:
                self._raise(file)
                return
        self._owed.add(vector)

    def forget(self) -> None:
        """What fired before a reset is of no interest after it."""
        self._owed.clear()

    def close(self) -> None:
        """The connection has ended."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()
        self._owed.clear()

    def _close(self, irq: Irq, vector: int) -> None:
        file = self._files.pop((irq, vector), None)
        if file is not None:
            os.close(file)

    def _raise(self, file: int) -> None:
        # Full: it was not read since so many interrupts that one more says nothing. Or no eventfd
        # at all: the peer's loss.
        with contextlib.suppress(OSError):
            os.write(file, _ONE)
