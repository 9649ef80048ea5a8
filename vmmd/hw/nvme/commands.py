"""The 64-byte submission entry and the commands in flight.

Everything in an entry is the guest's word and is checked where it is used.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import NamedTuple

from vmmd.block.backend import Request
from vmmd.hw.nvme.queue import SubmissionQueue

ENTRY = struct.Struct("<BBHIQQQQIIIIII")
assert ENTRY.size == 64

_PSDT_OR_FUSED = 0xC3


class CommandError(Exception):
    """The command completes with `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status:#x}")
        self.status = status


class Entry(NamedTuple):
    """One submission queue entry. `flags` holds the fuse (low two) and PSDT (high two) bits."""

    opcode: int
    flags: int
    identifier: int
    namespace: int
    reserved: int
    metadata: int
    prp1: int
    prp2: int
    cdw10: int
    cdw11: int
    cdw12: int
    cdw13: int
    cdw14: int
    cdw15: int

    @property
    def start_lba(self) -> int:
        """First block of an I/O command."""
        return self.cdw10 | self.cdw11 << 32

    @property
    def block_count(self) -> int:
        """Blocks of an I/O command (the field is 0-based)."""
        return (self.cdw12 & 0xFFFF) + 1

    @property
    def plain(self) -> bool:
        """Neither part of a fused pair nor with a scatter/gather list: neither is offered."""
        return not self.flags & _PSDT_OR_FUSED


def parse_entries(raw: memoryview) -> list[Entry]:
    """The entries in `raw`, whose length is a multiple of 64."""
    return [Entry._make(fields) for fields in ENTRY.iter_unpack(raw)]


class Phase(enum.Enum):
    """What the requests in flight for a command are doing."""

    TRANSFER = "transfer"
    # The flush after a write with FUA.
    FLUSHING = "flushing"


class Ongoing:
    """A command in flight at the backend; the token of its requests.

    `segments` are the guest's buffers of a READ, as they were found in its memory's version
    `memory`; `entry` is what they are found by. `rest` yields what is still to be submitted when a
    command takes many requests. `status` keeps the first failure.
    """

    __slots__ = (
        "bytes_held",
        "entry",
        "epoch",
        "flush_after",
        "memory",
        "outstanding",
        "phase",
        "queue",
        "rest",
        "segments",
        "status",
    )

    def __init__(
        self, queue: SubmissionQueue | None, entry: Entry | None, epoch: int, memory: int = 0
    ) -> None:
        self.queue = queue
        self.entry = entry
        self.epoch = epoch
        self.memory = memory
        self.outstanding = 0
        self.bytes_held = 0
        self.status = 0
        self.flush_after = False
        self.phase = Phase.TRANSFER
        self.segments: list[memoryview] = []
        self.rest: Iterator[Request] | None = None
