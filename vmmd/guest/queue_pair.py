"""A submission and a completion queue as a guest sees them.

Commands put in during one turn of the loop are rung with one doorbell, and completions are reaped
once per turn: an interrupt only notes that there is something. Invariant: command identifiers are
unique among those in flight (callers own one each), and there are fewer of them than entries.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

from vmmd.guest.memory import GuestRam
from vmmd.hw.nvme.commands import ENTRY

ENTRY_BYTES = 64
COMPLETION_BYTES = 16
_COMPLETION = struct.Struct("<IIHHHH")

# (identifier, status, result dword) of one completion.
OnComplete = Callable[[int, int, int], None]


class QueuePair:
    """Queue `identifier` of `entries` entries; `write_doorbell(index, value)` rings the device."""

    def __init__(
        self,
        identifier: int,
        entries: int,
        memory: GuestRam,
        write_doorbell: Callable[[int, int], None],
        on_complete: OnComplete,
    ) -> None:
        self.identifier = identifier
        self.entries = entries
        self._memory = memory
        self.submission_address = memory.allocate(entries * ENTRY_BYTES)
        self.completion_address = memory.allocate(entries * COMPLETION_BYTES)
        submission = memory.view(self.submission_address, entries * ENTRY_BYTES)
        completion = memory.view(self.completion_address, entries * COMPLETION_BYTES)
        assert submission is not None
        assert completion is not None
        self._submission = submission
        self._completion = completion
        self._write_doorbell = write_doorbell
        self._on_complete = on_complete
        self._tail = 0
        self._head = 0
        self._phase = 1
        self._ring_due = False
        self._reap_due = False
        self._closed = False
        self._loop = asyncio.get_running_loop()

    def put(
        self,
        opcode: int,
        identifier: int,
        *,
        namespace: int = 0,
        prp1: int = 0,
        prp2: int = 0,
        cdw10: int = 0,
        cdw11: int = 0,
        cdw12: int = 0,
    ) -> None:
        """Writes an entry; the doorbell follows at the end of this turn."""
        fields = (opcode, 0, identifier, namespace, 0, 0, prp1, prp2)
        words = (cdw10, cdw11, cdw12, 0, 0, 0)
        ENTRY.pack_into(self._submission, self._tail * ENTRY_BYTES, *fields, *words)
        self._tail = (self._tail + 1) % self.entries
        if not self._ring_due:
            self._ring_due = True
            self._loop.call_soon(self._ring)

    def interrupt(self) -> None:
        """The device says there are completions."""
        if not self._reap_due:
            self._reap_due = True
            self._loop.call_soon(self._reap)

    def close(self) -> None:
        """Nothing is rung or reaped any more; gives the memory back."""
        self._closed = True
        self._memory.free(self.submission_address, self.entries * ENTRY_BYTES)
        self._memory.free(self.completion_address, self.entries * COMPLETION_BYTES)

    def _ring(self) -> None:
        self._ring_due = False
        if not self._closed:
            self._write_doorbell(2 * self.identifier, self._tail)

    def _reap(self) -> None:
        self._reap_due = False
        if self._closed:
            return
        reaped = False
        while True:
            fields = _COMPLETION.unpack_from(self._completion, self._head * COMPLETION_BYTES)
            result, _, _sq_head, _sq_id, identifier, word = fields
            if word & 1 != self._phase:
                break
            reaped = True
            self._head += 1
            if self._head == self.entries:
                self._head = 0
                self._phase ^= 1
            self._on_complete(identifier, word >> 1, result)
        if reaped and not self._closed:
            self._write_doorbell(2 * self.identifier + 1, self._head)
