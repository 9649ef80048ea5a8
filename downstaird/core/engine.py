"""What the daemon asks of the storage engine: the region of one directory.

Everything but the `run` of a work is called on the loop's thread and is quick (memory and page
cache). The slow part of a flush or checkpoint, which writes and syncs, runs on a worker thread
between `begin_*` and `finish_*`; reads, writes and discards go on meanwhile. At most one of the two
runs at a time. The bytes of a repair are read and written on further threads, several at a time.

Errors are `stairlib.model.errors` classes: InvalidRequestError OUT_OF_RANGE, DataError
(HASH_MISMATCH, EXTENT_FAULTED, IO_ERROR, NO_SPACE), StateError.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from downstaird.core.disk import Appender
from stairlib.model.context import ContextArray
from stairlib.model.geometry import Geometry

Buffer = bytes | bytearray | memoryview
# Of EXTENT_MARK (stairlib.wire.frame).
Marks = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class RegionDefinition:
    """What a region is for ever: written at creation, checked at each open. `cipher` is a name of
    stairlib.model.cipher; empty when the blocks are not encrypted."""

    id: uuid.UUID
    geometry: Geometry
    cipher: str
    format_version: int

    @property
    def encrypted(self) -> bool:
        """Whether the upstairs encrypts the blocks before they come here."""
        return bool(self.cipher)


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who was promoted last: kept durably, so that an older generation stays fenced over
    restarts. `key_check`: what the key of the owner's volume is recognised by; empty for a region
    that is not encrypted, or whose owner has not named it yet."""

    owner_id: uuid.UUID | None
    session_id: uuid.UUID | None
    generation: int
    key_check: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class ExtentStates:
    """Per extent, in order: stamps of the last flush that found it dirty, and FLAG_* bits.
    Copies."""

    generations: npt.NDArray[np.uint64]
    flushes: npt.NDArray[np.uint64]
    flags: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """A snapshot: what flush it was taken by; bytes of chunks that it has, and that nothing else
    has any more. settled: its map is written out, so that it can be read and deleted. damaged: not
    all of it can be read."""

    name: str
    generation: int
    flush: int
    unique_bytes: int
    total_bytes: int
    settled: bool
    damaged: bool


class FlushWork(Protocol):
    """A flush in progress; made by `begin_flush`."""

    def begin(self, appender: Appender) -> bool:
        """On the loop: has the appender's thread do what `run` does, where that is possible; `end`
        is called when it has ended. False: nothing was begun."""
        ...

    def end(self) -> None:
        """On the loop, after a `begin`: the outcome. Raises as `run`."""
        ...

    def run(self) -> None:
        """Writes and syncs, on any one thread. Raises DataError; what it covered is then poisoned:
        the engine refuses further writes and flushes to the extents concerned until reopened."""
        ...


class CheckpointWork(Protocol):
    """A checkpoint in progress; made by `begin_checkpoint`."""

    def run(self) -> None:
        """Moves flushed blocks home and syncs them, on any one thread."""
        ...


class MergeWork(Protocol):
    """Blocks of a repair on their way to the medium; made by `begin_merge`."""

    def run(self) -> None:
        """Writes them, on any thread, several works at a time. Raises DataError."""
        ...


class ReadWork(Protocol):
    """Blocks that are read beside the loop; made by `begin_read`."""

    @property
    def contexts(self) -> ContextArray:
        """Theirs, shape (count, 4)."""
        ...

    def send(self, descriptor: int, wait: Callable[[], None]) -> None:
        """Off the loop, instead of `run`: sends their bytes to a socket that does not block; `wait`
        returns when it takes more. What arrives may be newer. DataError, and OSError for the
        socket."""
        ...

    def run(self) -> list[Buffer]:
        """Reads them, on any thread, several works at a time: buffers that add up to the blocks.
        Raises DataError."""
        ...


class Engine(Protocol):
    """One open region."""

    @property
    def definition(self) -> RegionDefinition:
        """As created."""
        ...

    @property
    def ownership(self) -> Ownership:
        """Who was promoted last."""
        ...

    def read(self, offset: int, count: int) -> tuple[ContextArray, Sequence[Buffer]]:
        """Contexts, shape (count, 4), and the data as buffers that add up to count blocks.
        Unwritten blocks read as zeros with an all-zero context. Data is not checked here: the
        reader checks it."""
        ...

    def write(self, offset: int, contexts: ContextArray, data: Buffer) -> None:
        """Takes the blocks; readable at once, durable after the next flush. Contexts have been
        checked by the caller. Copies what it keeps."""
        ...

    def write_scattered(self, offsets: Sequence[int], contexts: ContextArray, data: Buffer) -> bool:
        """As a `write` of one block at each offset, in this order, in one go. False: nothing was
        taken, since one of them is to be refused or has to go another way; use `write`."""
        ...

    def write_unwritten(self, offset: int, contexts: ContextArray, data: Buffer) -> None:
        """Takes only the blocks that have no context yet."""
        ...

    def discard(self, offset: int, count: int) -> None:
        """Makes the blocks never-written again; their space is freed some time after the next
        flush."""
        ...

    def contexts(self, offset: int, count: int) -> ContextArray:
        """Contexts alone, shape (count, 4)."""
        ...

    def digest(self, extent: int) -> int:
        """xxh3-64 over the extent's contexts, as stored in memory and on disk together."""
        ...

    def extent_states(self) -> ExtentStates:
        """Stamps and flags of every extent."""
        ...

    def promote(self, ownership: Ownership) -> None:
        """Stores the new owner durably before it returns (one small synced write; the only
        blocking call here)."""
        ...

    def begin_flush(self, number: int, generation: int, snapshot: str = "") -> FlushWork:
        """Freezes what every write and discard so far has changed; extents dirty by then are
        stamped (generation, number) once it has succeeded. Incomplete marks of extents that were
        `repair_extent_copied` are cleared.

        snapshot: a name under which all that the flush covers is kept, durable with the flush; one
        that this very flush has taken already is none again. InvalidRequestError SNAPSHOT_NAME,
        AlreadyExistsError SNAPSHOT_EXISTS, LimitError SNAPSHOT_LIMIT, StateError
        SNAPSHOT_INCOMPLETE: then nothing has begun."""
        ...

    def put_off_flush(self, number: int, generation: int) -> None:
        """A flush whose work the next one does: extents dirty by now, and not written again by
        then, are stamped (generation, number) once that one has succeeded."""
        ...

    def put_off_no_more(self) -> None:
        """The next flush is not the one that was promised: what is dirty gets its stamp alone. A
        stamp tells that everything up to that flush is there, which who comes next may not send."""
        ...

    def list_snapshots(self) -> Iterator[SnapshotFacts]:
        """All of them, oldest first. Each step reads one map: milliseconds."""
        ...

    def begin_delete_snapshot(self, name: str) -> FlushWork:
        """Deletes one; durable when the work is done (run and finish it as a flush). Its space is
        freed by the next checkpoint. NotFoundError SNAPSHOT_NOT_FOUND, StateError
        SNAPSHOT_SETTLING or SNAPSHOT_BUSY."""
        ...

    def finish_flush(self, work: FlushWork, error: Exception | None) -> None:
        """Publishes the outcome of `run`."""
        ...

    def wants_checkpoint(self) -> bool:
        """Whether a checkpoint should begin soon, or has begun and is not at its end."""
        ...

    def has_log(self) -> bool:
        """Whether a checkpoint could begin that would leave the next start less to do."""
        ...

    def begin_checkpoint(self) -> CheckpointWork:
        """Its next step, which is short; flushes may go between two steps, not during one."""
        ...

    def finish_checkpoint(self, work: CheckpointWork, error: Exception | None) -> None:
        """Publishes the outcome of `run`."""
        ...

    def repair_begin(self, marks: Marks) -> FlushWork:
        """Marks the extents incomplete, and starts remembering which of their blocks the session
        writes. Until they are whole, their stamps are those of the marks. The returned work makes
        the marks durable (run and finish it as a flush)."""
        ...

    def repair_merge(self, offset: int, contexts: ContextArray, data: Buffer) -> int:
        """Takes blocks from a repair source: those the session has not written since
        `repair_begin`. A zero context makes the block never-written. Contexts have been checked.
        Returns the bytes applied."""
        ...

    def begin_merge(self, offset: int, contexts: ContextArray, data: Buffer) -> MergeWork | None:
        """As `repair_merge`, with the writing left to a work whose `run` is for a thread beside the
        loop; several may run at once. None: use `repair_merge`, as the blocks are not whole chunks
        that are all wanted."""
        ...

    def finish_merge(self, work: MergeWork, *, keep: bool) -> int:
        """What `run` wrote counts from now on; what the session wrote meanwhile stays. Returns the
        bytes applied. keep False: it failed, or is no longer wanted."""
        ...

    def begin_read(self, offset: int, count: int) -> ReadWork | None:
        """As `read`, with the reading left to a work whose `run` is for a thread beside the loop.
        None: use `read`."""
        ...

    def read_holds(self, work: ReadWork) -> bool:
        """Whether what `run` read is what `read` would have given; if not, use `read`."""
        ...

    def repair_extent_copied(self, extent: int, generation: int, number: int) -> None:
        """The extent is as the source's: its stamp becomes the later of (generation, number) and
        its own since `repair_begin`; the next flush clears its incomplete mark durably."""
        ...

    def repair_end(self) -> None:
        """Stops remembering. StateError while an extent is still marked incomplete."""
        ...

    def stored_bytes(self) -> int:
        """Bytes the region takes on its file system."""
        ...

    def close(self) -> None:
        """Releases files and the directory's lock. Unflushed writes are lost, as after a power
        cut."""
        ...
