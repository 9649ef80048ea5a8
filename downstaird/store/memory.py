"""A disk in memory, which remembers what is durable: for tests and the simulator.

Invariants as in downstaird.core.disk. Failures are injected through `MemoryDisk.fail_sync`,
`fail_write` and `capacity`. `image` gives the disk as a power cut could leave it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from downstaird.store.base import Buffer, data_error
from stairlib.model.errors import DataError, StateError

SECTOR_BYTES = 512
_PAGE_BYTES = 4096


@dataclass(slots=True)
class _Node:
    """A file's content: as reads see it, and as of the last sync; and the sectors that differ."""

    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    unsynced: set[int] = field(default_factory=set)

    def grow(self, size: int) -> None:
        """Adds a hole up to `size`. What an earlier, longer file left there on the medium counts as
        unsynced."""
        have = len(self.data)
        if size > have:
            self.data.extend(bytes(size - have))
            stale = min(size, len(self.durable))
            self.unsynced.update(range(have // SECTOR_BYTES, -(-stale // SECTOR_BYTES)))


class MemoryFile:
    """One file of a MemoryDisk."""

    def __init__(self, disk: MemoryDisk, name: str, node: _Node, *, read_only: bool) -> None:
        self._disk = disk
        self._name = name
        self._node = node
        self._read_only = read_only

    @property
    def name(self) -> str:
        """Disk name and file name."""
        return f"{self._disk.name}/{self._name}"

    def size(self) -> int:
        """Bytes, holes included."""
        return len(self._node.data)

    def pread(self, size: int, offset: int) -> bytes:
        """Exactly `size` bytes."""
        data = bytes(self._node.data[offset : offset + size])
        if len(data) != size:
            raise DataError(
                f"{self.name} ends at byte {offset + len(data)}, {size - len(data)} bytes short",
                reason="IO_ERROR",
                file=self.name,
                offset=str(offset),
            )
        return data

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Writes all the buffers, or nothing when a failure is injected."""
        whole = b"".join(buffers)
        self._disk.before_write(self._name, offset, len(whole))
        assert not self._read_only
        node = self._node
        end = offset + len(whole)
        node.grow(end)
        node.data[offset:end] = whole
        node.unsynced.update(range(offset // SECTOR_BYTES, -(-end // SECTOR_BYTES)))
        self._disk.after_write(self._name)

    def datasync(self) -> None:
        """Makes it all durable, or raises when a failure is injected."""
        self._disk.before_sync(self._name)
        node = self._node
        _grow_to(node.durable, len(node.data))
        for sector in node.unsynced:
            at = sector * SECTOR_BYTES
            node.durable[at : at + SECTOR_BYTES] = node.data[at : at + SECTOR_BYTES]
        node.unsynced.clear()

    def start_writeback(self) -> None:
        """Nothing to do."""

    def truncate(self, size: int) -> None:
        """Sets the size."""
        node = self._node
        if size < len(node.data):
            del node.data[size:]
            last = -(-size // SECTOR_BYTES)
            node.unsynced = {sector for sector in node.unsynced if sector < last}
        node.grow(size)

    def punch(self, offset: int, length: int) -> None:
        """Zeros the range."""
        end = min(offset + length, len(self._node.data))
        if end > offset:
            self.pwritev([bytes(end - offset)], offset)

    def stored_bytes(self) -> int:
        """Pages that are not all zero."""
        data = self._node.data
        zero = bytes(_PAGE_BYTES)
        pages = range(0, len(data), _PAGE_BYTES)
        return sum(
            _PAGE_BYTES for at in pages if data[at : at + _PAGE_BYTES] != zero[: len(data) - at]
        )

    def close(self) -> None:
        """Nothing to do."""


def _grow_to(data: bytearray, size: int) -> None:
    if len(data) < size:
        data.extend(bytes(size - len(data)))
    else:
        del data[size:]


class MemoryDisk:
    """A directory in memory.

    fail_sync, fail_write: called with the file's name; true makes that call fail. capacity:
    bytes all files together may have been written, None for no limit.
    """

    def __init__(self, name: str = "memory") -> None:
        self._name = name
        self._nodes: dict[str, _Node] = {}
        self._locked = False
        self.fail_sync: Callable[[str], bool] = lambda _: False
        self.fail_write: Callable[[str], bool] = lambda _: False
        self.capacity: int | None = None
        self.written = 0
        self.syncs: list[str] = []
        # Called after each write and before each sync; a crash tester takes images there.
        self.observer: Callable[[str, str], None] = lambda _action, _name: None

    @property
    def name(self) -> str:
        """As given."""
        return self._name

    def prepare(self) -> None:
        """Nothing to make."""

    def lock(self, *, shared: bool) -> None:
        """Only one user at a time, shared or not."""
        if self._locked and not shared:
            raise StateError(f"the region in {self._name} is in use", reason="REGION_LOCKED")
        self._locked = True

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self._nodes

    def open(self, name: str, *, create: bool = False, read_only: bool = False) -> MemoryFile:
        """Opens, or with `create` makes or empties, a file."""
        if create:
            self._nodes[name] = _Node()
        elif name not in self._nodes:
            missing = OSError(errno.ENOENT, "No such file or directory")
            raise data_error("open", f"{self._name}/{name}", 0, missing)
        return MemoryFile(self, name, self._nodes[name], read_only=read_only)

    def rename(self, old: str, new: str) -> None:
        """Takes effect at once, and is durable: names are not part of what this disk models."""
        self._nodes[new] = self._nodes.pop(old)

    def sync_directory(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Releases the lock."""
        self._locked = False

    def before_write(self, name: str, offset: int, length: int) -> None:
        """Injected failures of a write."""
        if self.fail_write(name):
            raise data_error("write", f"{self._name}/{name}", offset, OSError(errno.EIO, "EIO"))
        if self.capacity is not None and self.written + length > self.capacity:
            error = OSError(errno.ENOSPC, "No space left on device")
            raise data_error("write", f"{self._name}/{name}", offset, error)
        self.written += length

    def after_write(self, name: str) -> None:
        """Tells the observer."""
        self.observer("write", name)

    def before_sync(self, name: str) -> None:
        """Injected failures of a sync; tells the observer."""
        self.observer("sync", name)
        self.syncs.append(name)
        if self.fail_sync(name):
            raise data_error("sync", f"{self._name}/{name}", 0, OSError(errno.EIO, "EIO"))

    def image(self, survives: Callable[[str, int], bool]) -> MemoryDisk:
        """The disk after a power cut: synced sectors, and those unsynced ones for which
        `survives(file, sector)`."""
        other = MemoryDisk(self._name)
        for name, node in self._nodes.items():
            content = bytearray(node.durable)
            for sector in sorted(node.unsynced):
                if survives(name, sector):
                    at = sector * SECTOR_BYTES
                    part = node.data[at : at + SECTOR_BYTES]
                    if len(content) < at + len(part):
                        content.extend(bytes(at + len(part) - len(content)))
                    content[at : at + len(part)] = part
            other._nodes[name] = _Node(content, bytearray(content), set())
        return other
