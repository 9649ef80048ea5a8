"""The one interface between devices (NVMe, NBD, the built-in guest) and what stores their blocks.

Everything is in blocks of `BackendInfo.block_size` bytes. Requests come and completions go in
batches, on the loop's thread. A backend never raises out of `submit`: what cannot be done completes
with a status.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


class BlockOp(enum.IntEnum):
    """What a request asks."""

    READ = 1
    WRITE = 2
    FLUSH = 3
    DISCARD = 4
    # As READ, and the completion's `owned` tells which of the blocks were ever written; the others
    # are zero.
    READ_OWNED = 5
    # As WRITE, but blocks that were written before keep what they hold.
    WRITE_UNWRITTEN = 6
    # Which blocks may hold anything but zeroes: the completion's `owned` tells, of as many blocks
    # from `offset` on as are cheap to tell of, one at least. What is not known counts as held.
    ALLOCATION = 7


READS = frozenset({BlockOp.READ, BlockOp.READ_OWNED})
# What a completion's `owned` comes with.
TELLS_OWNED = frozenset({BlockOp.READ_OWNED, BlockOp.ALLOCATION})
WRITES = frozenset({BlockOp.WRITE, BlockOp.WRITE_UNWRITTEN})
CHANGES = frozenset({BlockOp.WRITE, BlockOp.WRITE_UNWRITTEN, BlockOp.DISCARD})


class BlockStatus(enum.IntEnum):
    """How a request ended."""

    OK = 0
    FAILED = 1
    READ_ONLY = 2
    UNSUPPORTED = 3
    OUT_OF_RANGE = 4
    # The backend stopped before the request was done; whether it happened is unknown.
    ABORTED = 5
    # Nothing was done, and the same request may be once more members are whole: ask again later.
    # WRITE_UNWRITTEN only.
    BUSY = 6


class Request(NamedTuple):
    """`data` is given for WRITE and WRITE_UNWRITTEN only, one contiguous buffer of length *
    block_size bytes.

    It must stay unchanged until the request completes. `token` comes back with the completion.
    """

    op: BlockOp
    token: object
    offset: int = 0
    length: int = 0
    data: bytes | bytearray | memoryview | None = None


class Completion(NamedTuple):
    """`data` is given for a READ or READ_OWNED that ended OK: length * block_size bytes, valid
    until the callback returns. `owned`, shape (length,), is given for the latter, and for an
    ALLOCATION, whose `data` nobody looks at: there it may be shorter."""

    token: object
    status: BlockStatus
    data: bytes | bytearray | memoryview | None = None
    owned: npt.NDArray[np.bool_] | None = None


Done = Callable[[Sequence[Completion]], None]


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What a device tells its guest."""

    block_size: int
    block_count: int
    read_only: bool
    supports_discard: bool

    @property
    def total_bytes(self) -> int:
        """Size of the whole backend."""
        return self.block_size * self.block_count


class Backend(Protocol):
    """What stores blocks."""

    @property
    def info(self) -> BackendInfo:
        """Known from construction on, before anything is connected."""
        ...

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        """Starts the requests; `done` is called with their completions, in any order and split in
        any way, possibly before this returns. Requests of one batch that overlap are unordered."""
        ...
