"""A disk that writes down, in order, all that is done to it: what power loss is made of.

It stands before any disk (in memory, or a real directory) and passes everything on. Files are
numbered as they are created, so that a rename does not change what an earlier operation was done
to. Hints and reads are not written down: they change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from downstaird.core.disk import Buffer, Disk, File


class Operation(NamedTuple):
    """kind: create, write, truncate, punch, sync, rename, sync-directory, or expect.

    file: number of the file. name: of a file, the new one of a rename. data: what was written.
    size: bytes, or the new size. expected: from here on, what a region may hold (`expect`).
    """

    kind: str
    file: int = -1
    name: str = ""
    offset: int = 0
    data: bytes = b""
    size: int = 0
    expected: Any = None

    def line(self) -> str:
        """For people."""
        if self.kind == "expect":
            return f"expect          {self.expected}"
        where = f"{self.name}" if self.kind != "sync-directory" else ""
        what = {
            "write": f"{self.size} bytes at {self.offset}",
            "punch": f"{self.size} bytes at {self.offset}",
            "truncate": f"to {self.size} bytes",
        }.get(self.kind, "")
        return f"{self.kind:15} {where:12} {what}".rstrip()


@dataclass(slots=True)
class RecordedFile:
    """One open file of a RecordingDisk."""

    inner: File
    disk: RecordingDisk
    number: int
    short_name: str

    @property
    def name(self) -> str:
        """As the disk behind has it."""
        return self.inner.name

    def size(self) -> int:
        """Bytes."""
        return self.inner.size()

    def pread(self, size: int, offset: int) -> bytes:
        """Not written down."""
        return self.inner.pread(size, offset)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Written down with its bytes."""
        data = b"".join(bytes(buffer) for buffer in buffers)
        self.inner.pwritev([data], offset)
        self._note("write", offset=offset, data=data, size=len(data))

    def write_past_cache(self, data: Buffer, offset: int) -> None:
        """As any other write."""
        self.pwritev([data], offset)

    def sendfile(self, descriptor: int, offset: int, size: int) -> int:
        """Not written down."""
        return self.inner.sendfile(descriptor, offset, size)

    def datasync(self) -> None:
        """Written down once it returned."""
        self.inner.datasync()
        self._note("sync")

    def start_writeback(self) -> None:
        """A hint."""
        self.inner.start_writeback()

    def truncate(self, size: int) -> None:
        """Written down."""
        self.inner.truncate(size)
        self._note("truncate", size=size)

    def punch(self, offset: int, length: int) -> None:
        """Written down."""
        self.inner.punch(offset, length)
        self._note("punch", offset=offset, size=length)

    def stored_bytes(self) -> int:
        """Not written down."""
        return self.inner.stored_bytes()

    def close(self) -> None:
        """Makes nothing durable."""
        self.inner.close()

    def _note(self, kind: str, **what: Any) -> None:
        self.disk.note(Operation(kind, self.number, self.short_name, **what))


class RecordingDisk:
    """`log` is what was done. `after` is called behind each operation and may raise: that is a
    daemon that is killed there."""

    def __init__(self, inner: Disk) -> None:
        self.inner = inner
        self.log: list[Operation] = []
        self.after: Callable[[], None] = lambda: None
        self._numbers: dict[str, int] = {}
        self._next = 0

    @property
    def name(self) -> str:
        """As the disk behind has it."""
        return self.inner.name

    def note(self, operation: Operation) -> None:
        """Writes one down."""
        self.log.append(operation)
        self.after()

    def expect(self, expected: object) -> None:
        """From here on a region may hold this."""
        self.log.append(Operation("expect", expected=expected))

    def adopt(self, pages: dict[str, list[int]]) -> None:
        """Files that are there already, whole and durable, begin the log. pages: offsets of all
        that is not a hole, 4096 bytes each."""
        for name, offsets in pages.items():
            number = self._new(name)
            file = self.inner.open(name)
            size = file.size()
            self.log.append(Operation("create", number, name))
            for offset in offsets:
                data = file.pread(min(4096, size - offset), offset)
                self.log.append(Operation("write", number, name, offset, data, len(data)))
            file.close()
            self.log.append(Operation("truncate", number, name, size=size))
            self.log.append(Operation("sync", number, name))
        self.log.append(Operation("sync-directory"))

    def prepare(self) -> None:
        """Passed on."""
        self.inner.prepare()

    def lock(self, *, shared: bool) -> None:
        """Passed on."""
        self.inner.lock(shared=shared)

    def exists(self, name: str) -> bool:
        """Passed on."""
        return self.inner.exists(name)

    def open(self, name: str, *, create: bool = False, read_only: bool = False) -> RecordedFile:
        """A file that is emptied counts as a new one: nothing here empties one that counts."""
        inner = self.inner.open(name, create=create, read_only=read_only)
        if create:
            number = self._new(name)
            self.note(Operation("create", number, name))
        return RecordedFile(inner, self, self._numbers[name], name)

    def rename(self, old: str, new: str) -> None:
        """Written down."""
        self.inner.rename(old, new)
        number = self._numbers[new] = self._numbers.pop(old)
        self.note(Operation("rename", number, new))

    def sync_directory(self) -> None:
        """Written down."""
        self.inner.sync_directory()
        self.note(Operation("sync-directory"))

    def close(self) -> None:
        """Passed on."""
        self.inner.close()

    def _new(self, name: str) -> int:
        number = self._numbers[name] = self._next
        self._next += 1
        return number

    def __getattr__(self, name: str) -> Any:
        """What else a disk can do and leaves nothing on the medium."""
        return getattr(self.inner, name)
