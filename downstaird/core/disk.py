"""What the region asks of the place where it keeps its files: the one door to the outside.

`downstaird.store.files` opens it on a real directory, `downstaird.store.memory` in memory for
tests and the simulator. Invariants every implementation keeps:

- a write that returned is seen by every later read, whatever thread made it;
- only what was written before a `datasync` that returned is sure to be there after a power
  cut; of the rest any subset of 512-byte sectors may be;
- a file is sure to exist under its name only after `sync_directory` returned;
- every failure is a DataError (reason IO_ERROR or NO_SPACE) that names the file and the offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

Buffer = bytes | bytearray | memoryview


class Appender(Protocol):
    """Writes to a file and syncs it beside the loop, one work at a time (docs/adr/0058)."""

    def begin(self, file: int, front: Buffer, data: Buffer, end: Buffer, offset: int) -> None:
        """Writes these one after the other to the descriptor, and syncs it. They must not change
        meanwhile."""
        ...

    @property
    def outcome(self) -> tuple[int, bool]:
        """(error number, whether it was the sync that failed) of what ended last; 0: all well."""
        ...


class File(Protocol):
    """One open file. Offsets and sizes are bytes. May be used from two threads at once."""

    @property
    def name(self) -> str:
        """Name within the disk."""
        ...

    def size(self) -> int:
        """Bytes from the start to the end, holes included."""
        ...

    def pread(self, size: int, offset: int) -> bytes:
        """Exactly `size` bytes; reading past the end of the file is a DataError."""
        ...

    def sendfile(self, descriptor: int, offset: int, size: int) -> int:
        """Sends up to `size` bytes to a socket that does not block; how many, at least one. What is
        written to the file before they arrive may be sent instead. OSError for the socket,
        BlockingIOError when it takes none now; reading past the end of the file is a
        DataError."""
        ...

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Writes all the buffers, one after the other, or raises."""
        ...

    def write_past_cache(self, data: Buffer, offset: int) -> None:
        """As pwritev of much that nobody is about to read. No sooner durable than that."""
        ...

    def datasync(self) -> None:
        """Returns once everything written so far is durable (size included, where it grew)."""
        ...

    def start_writeback(self) -> None:
        """A hint to begin writing dirty data out; promises nothing and does not wait."""
        ...

    def truncate(self, size: int) -> None:
        """Sets the size; growing makes a hole that reads as zeros."""
        ...

    def punch(self, offset: int, length: int) -> None:
        """Gives the space of a range back; it reads as zeros from now on. The size stays."""
        ...

    def stored_bytes(self) -> int:
        """Bytes taken on the medium, holes not counted."""
        ...

    def close(self) -> None:
        """Releases the file; nothing is made durable."""
        ...


@runtime_checkable
class AppendingFile(File, Protocol):
    """One that can be written and synced by an appender."""

    def begin_append(
        self, front: Buffer, data: Buffer, end: Buffer, offset: int, appender: Appender
    ) -> None:
        """As pwritev of the three, and datasync; `end_append` is called when that has ended."""
        ...

    def end_append(self, appender: Appender) -> None:
        """What it came to. Raises as pwritev and datasync."""
        ...


class Hold(Protocol):
    """A byte that is held."""

    def close(self) -> None:
        """Lets go; a second call does nothing."""
        ...


class Disk(Protocol):
    """A directory of files that one region owns."""

    @property
    def name(self) -> str:
        """For messages: the path."""
        ...

    def prepare(self) -> None:
        """Makes the directory where it is missing."""
        ...

    def lock(self, *, shared: bool) -> None:
        """Keeps other processes out until `close`. StateError REGION_LOCKED when one is in."""
        ...

    def hold(self, name: str, byte: int, *, shared: bool) -> Hold:
        """Keeps others from holding that byte of a file, or from holding it alone; across
        processes, and whoever has `lock`. StateError SNAPSHOT_BUSY when one does."""
        ...

    def exists(self, name: str) -> bool:
        """Whether a file of that name is there."""
        ...

    def open(self, name: str, *, create: bool = False, read_only: bool = False) -> File:
        """Opens a file; with `create`, makes it or empties the one that is there."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Puts `old` under the name `new`, replacing what was there."""
        ...

    def sync_directory(self) -> None:
        """Makes creations and renames so far durable."""
        ...

    def close(self) -> None:
        """Releases the lock. Files are closed by who opened them."""
        ...
