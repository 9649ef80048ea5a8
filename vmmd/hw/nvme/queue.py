"""Submission and completion queues in guest memory.

A completion slot is reserved before a submission entry is taken, so that a completion always has a
place: a completion queue that is full corks its submission queues. Doorbell values come from the
guest; one that cannot be is refused and changes nothing.
"""

from __future__ import annotations

import sys
from array import array

from vmmd.hw.memory import GuestMemory
from vmmd.hw.nvme import bits
from vmmd.hw.nvme.doorbells import DoorbellBuffers

# Entries of one queue. Linux asks for 1024; larger queues only hold commands longer.
QUEUE_ENTRIES_MAX = 4096
ADMIN_ENTRIES_MAX = 4096
QUEUE_ENTRIES_MIN = 2

# Completions are stored as they are in memory.
assert sys.byteorder == "little"
_WORDS_OF_COMPLETION = bits.CQ_ENTRY_BYTES // 8
# In place of memory that is not mapped at present.
_NOWHERE = memoryview(b"")
_NO_WORDS = memoryview(array("Q"))


class CompletionQueue:
    """Completions on their way to the guest. `view` covers exactly the queue's memory, which is at
    `address`."""

    def __init__(
        self,
        identifier: int,
        size: int,
        view: memoryview,
        vector: int,
        interrupts: bool,
        *,
        address: int = 0,
    ) -> None:
        assert size >= QUEUE_ENTRIES_MIN
        assert len(view) == size * bits.CQ_ENTRY_BYTES
        self.identifier = identifier
        self.size = size
        self.vector = vector
        self.interrupts = interrupts
        self.submission_queues = 0
        self._address = address
        self._words = view.cast("Q")
        self._head = 0
        self._tail = 0
        self._phase = 1
        self._reserved = 0

    def look_again(self, memory: GuestMemory) -> bool:
        """Finds its memory anew; False while that is not mapped, and then it must not be used."""
        view = memory.view(self._address, self.size * bits.CQ_ENTRY_BYTES)
        self._words = _NO_WORDS if view is None else view.cast("Q")
        return view is not None

    @property
    def head(self) -> int:
        """Where the guest looks next, as far as it said."""
        return self._head

    @property
    def tail(self) -> int:
        """Where the next completion goes."""
        return self._tail

    @property
    def free(self) -> int:
        """Slots that can still be reserved; one always stays empty."""
        return self.size - 1 - (self._tail - self._head) % self.size - self._reserved

    def reserve(self, count: int) -> None:
        """Keeps `count` slots for commands that are being taken."""
        assert 0 < count <= self.free
        self._reserved += count

    def release(self) -> None:
        """Gives back a reserved slot without a completion: the command is abandoned or held."""
        assert self._reserved > 0
        self._reserved -= 1

    def post(self, queue: SubmissionQueue, identifier: int, status: int, result: int = 0) -> None:
        """Writes a completion into a reserved slot: two stores of 8 bytes, the phase in the second.

        A guest on another processor may be looking, so nothing may show that is not meant: not even
        zeros, as `struct` stores them before what it packs. In every other round that is the phase
        of a completion.
        """
        self.release()
        place = self._tail * _WORDS_OF_COMPLETION
        word = status << 1 | self._phase
        self._words[place] = result
        self._words[place + 1] = queue.head | queue.identifier << 16 | identifier << 32 | word << 48
        self._tail += 1
        if self._tail == self.size:
            self._tail = 0
            self._phase ^= 1

    def catch_up(self, doorbells: DoorbellBuffers) -> bool:
        """Takes the head that the guest left in memory; whether it has moved."""
        before = self._head
        return self.doorbell(doorbells.head(self.identifier)) and self._head != before

    def doorbell(self, value: int) -> bool:
        """The guest has consumed up to `value`; False when it cannot have."""
        if value >= self.size:
            return False
        consumed = (value - self._head) % self.size
        if consumed > (self._tail - self._head) % self.size:
            return False
        self._head = value
        return True


class SubmissionQueue:
    """Commands from the guest. `view` covers exactly the queue's memory, which is at `address`."""

    def __init__(
        self,
        identifier: int,
        size: int,
        view: memoryview,
        completions: CompletionQueue,
        *,
        address: int = 0,
    ) -> None:
        assert size >= QUEUE_ENTRIES_MIN
        assert len(view) == size * bits.SQ_ENTRY_BYTES
        self.identifier = identifier
        self.size = size
        self.head = 0
        self.deleted = False
        self.completions = completions
        self._address = address
        self._view = view
        self._tail = 0
        # What it last said in memory, possible or not.
        self._shadow = 0
        completions.submission_queues += 1

    def look_again(self, memory: GuestMemory) -> bool:
        """As CompletionQueue.look_again."""
        view = memory.view(self._address, self.size * bits.SQ_ENTRY_BYTES)
        self._view = _NOWHERE if view is None else view
        return view is not None

    @property
    def tail(self) -> int:
        """Behind the last entry the guest has told of."""
        return self._tail

    @property
    def pending(self) -> int:
        """Entries the guest has submitted and nobody has taken."""
        return (self._tail - self.head) % self.size

    def doorbell(self, value: int) -> bool:
        """The guest has added entries up to `value`; False when it cannot have."""
        if value >= self.size:
            return False
        self._tail = value
        return True

    def told_in_memory(self, doorbells: DoorbellBuffers) -> bool:
        """Whether the guest has left another tail in memory than the last one looked at."""
        return doorbells.tail(self.identifier) != self._shadow

    def catch_up(self, doorbells: DoorbellBuffers) -> bool:
        """Takes the tail that the guest left in memory; False when it cannot be."""
        self._shadow = doorbells.tail(self.identifier)
        return self.doorbell(self._shadow)

    def take(self, limit: int) -> bytes:
        """Up to `limit` pending entries, copied so that the guest cannot change them under a check.

        Their completion slots are reserved. May be fewer: at most to the end of the ring, and no
        more than there are completion slots. Empty when there is nothing to take.
        """
        count = min(limit, self.pending, self.completions.free, self.size - self.head)
        if count <= 0:
            return b""
        self.completions.reserve(count)
        start = self.head * bits.SQ_ENTRY_BYTES
        raw = bytes(self._view[start : start + count * bits.SQ_ENTRY_BYTES])
        self.head = (self.head + count) % self.size
        return raw

    def delete(self) -> None:
        """Its commands in flight complete nowhere from now on."""
        self.deleted = True
        self.completions.submission_queues -= 1
