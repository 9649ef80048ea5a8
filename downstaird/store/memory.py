"""A disk in memory, which remembers what is durable: for tests and the simulator.

Invariants as in downstaird.core.disk. Failures are injected through `MemoryDisk.fail_sync`,
`fail_write` and `capacity`. `image` gives the disk as a power cut could leave it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence

from downstaird.store.base import Buffer, busy, data_error
from stairlib.model.errors import DataError, StateError

SECTOR_BYTES = 512
_PAGE_BYTES = 4096


_PAGE_SECTORS = _PAGE_BYTES // SECTOR_BYTES
_NOTHING = bytes(_PAGE_BYTES)


class _Pages:
    """Sparse content: only pages that were written are there. A page is never changed, but takes
    another one's place, so that copies share what is equal."""

    def __init__(self) -> None:
        self.pages: dict[int, bytes] = {}
        self.size = 0

    def copy(self) -> _Pages:
        """A copy of its own."""
        other = _Pages()
        other.pages = self.pages.copy()
        other.size = self.size
        return other

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes, fewer at the end."""
        number, at = divmod(offset, _PAGE_BYTES)
        if at + size <= _PAGE_BYTES and offset + size <= self.size:
            # The usual case: within one page.
            page = self.pages.get(number)
            return bytes(size) if page is None else page[at : at + size]
        end = min(offset + size, self.size)
        parts = []
        while offset < end:
            number, at = divmod(offset, _PAGE_BYTES)
            here = min(end - offset, _PAGE_BYTES - at)
            page = self.pages.get(number)
            parts.append(bytes(here) if page is None else page[at : at + here])
            offset += here
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Grows as needed."""
        length = len(data)
        if offset + length > self.size:
            self.size = offset + length
        number, at = divmod(offset, _PAGE_BYTES)
        after = at + length
        if length > 0 and after < _PAGE_BYTES:
            # The usual case: within one page.
            page = self.pages.get(number, _NOTHING)
            self.pages[number] = b"".join((page[:at], data, page[after:]))
            return
        done = 0
        while done < length:
            number, at = divmod(offset + done, _PAGE_BYTES)
            here = min(length - done, _PAGE_BYTES - at)
            part = data if here == length else data[done : done + here]
            if here < _PAGE_BYTES:
                page = self.pages.get(number, _NOTHING)
                part = b"".join((page[:at], part, page[at + here :]))
            self.pages[number] = part
            done += here

    def cut(self, size: int) -> None:
        """Forgets what is at and after `size`."""
        last, at = divmod(size, _PAGE_BYTES)
        for number in [number for number in self.pages if number > last]:
            del self.pages[number]
        if last in self.pages:
            self.pages[last] = self.pages[last][:at] + bytes(_PAGE_BYTES - at)
        self.size = size


class _Node:
    """A file: content as reads see it, content as of the last sync, and the sectors that differ."""

    def __init__(self, content: _Pages | None = None) -> None:
        self.now = content or _Pages()
        self.durable = self.now.copy()
        self.unsynced: set[int] = set()
        # A failed sync has let go of sectors that differ all the same.
        self.forgot = False

    def mark(self, start: int, end: int) -> None:
        """These bytes differ from what is durable."""
        self.unsynced.update(range(start // SECTOR_BYTES, -(-end // SECTOR_BYTES)))

    def resize(self, size: int) -> None:
        """Cuts off, or adds a hole. What an earlier, longer file left there on the medium counts as
        unsynced."""
        if size < self.now.size:
            self.now.cut(size)
            last = -(-size // SECTOR_BYTES)
            self.unsynced = {sector for sector in self.unsynced if sector < last}
        elif size > self.now.size:
            self.mark(self.now.size, min(size, self.durable.size))
            self.now.size = size

    def sync(self) -> None:
        """Makes everything durable."""
        if not self.unsynced and self.durable.size == self.now.size:
            return
        if self.durable.size > self.now.size:
            self.durable.cut(self.now.size)
        self.durable.size = self.now.size
        if self.forgot:
            self.keep(self.unsynced, self.durable)
        else:
            pages, durable = self.now.pages, self.durable.pages
            for number in {sector // _PAGE_SECTORS for sector in self.unsynced}:
                durable[number] = pages.get(number, _NOTHING)
        self.unsynced.clear()

    def forget(self) -> None:
        """After a failed sync, as Linux does: reads go on seeing what was written, and no later
        sync makes it durable."""
        self.forgot = True
        self.unsynced.clear()

    def keep(self, sectors: Iterable[int], target: _Pages) -> None:
        """Copies sectors of the present content to `target`."""
        first = after = -1
        for sector in sorted(sectors):
            if sector != after:
                self._keep_run(first, after, target)
                first = sector
            after = sector + 1
        self._keep_run(first, after, target)

    def _keep_run(self, first: int, after: int, target: _Pages) -> None:
        if first >= 0:
            at = first * SECTOR_BYTES
            target.write(at, self.now.read(at, (after - first) * SECTOR_BYTES))


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
        return self._node.now.size

    def pread(self, size: int, offset: int) -> bytes:
        """Exactly `size` bytes."""
        data = self._node.now.read(offset, size)
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
        if offset > node.now.size:
            node.resize(offset)
        node.now.write(offset, whole)
        node.mark(offset, end)
        self._disk.after_write(self._name)

    def datasync(self) -> None:
        """Makes it all durable, or raises when a failure is injected."""
        try:
            self._disk.before_sync(self._name)
        except DataError:
            self._node.forget()
            raise
        if not self._disk.lie_about_sync(self._name):
            self._node.sync()

    def write_past_cache(self, data: Buffer, offset: int) -> None:
        """There is no cache."""
        self.pwritev([data], offset)

    def sendfile(self, descriptor: int, offset: int, size: int) -> int:
        """One write."""
        return os.write(descriptor, self.pread(size, offset))

    def start_writeback(self) -> None:
        """Nothing to do."""

    def truncate(self, size: int) -> None:
        """Sets the size."""
        self._node.resize(size)

    def punch(self, offset: int, length: int) -> None:
        """Zeros the range."""
        end = min(offset + length, self._node.now.size)
        if end > offset:
            self.pwritev([bytes(end - offset)], offset)

    def stored_bytes(self) -> int:
        """Pages that are not all zero."""
        return sum(_PAGE_BYTES for page in self._node.now.pages.values() if any(page))

    def close(self) -> None:
        """Nothing to do."""


class MemoryHold:
    """A byte of a file that is held."""

    def __init__(self, holds: list[tuple[str, int, bool]], what: tuple[str, int, bool]) -> None:
        self._holds = holds
        self._what = what
        holds.append(what)

    def close(self) -> None:
        """Lets go."""
        if self._what in self._holds:
            self._holds.remove(self._what)


class MemoryDisk:
    """A directory in memory.

    fail_sync, fail_write, lie_about_sync: called with the file's name; true makes that call
    fail, or makes the sync return without having made anything durable. capacity: bytes all
    files together may have been written, None for no limit.
    """

    def __init__(self, name: str = "memory") -> None:
        self._name = name
        self._nodes: dict[str, _Node] = {}
        self._locked = False
        self._holds: list[tuple[str, int, bool]] = []
        self.fail_sync: Callable[[str], bool] = lambda _: False
        self.fail_write: Callable[[str], bool] = lambda _: False
        self.lie_about_sync: Callable[[str], bool] = lambda _: False
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

    def hold(self, name: str, byte: int, *, shared: bool) -> MemoryHold:
        """Several may share it."""
        for held, place, with_others in self._holds:
            if (held, place) == (name, byte) and not (shared and with_others):
                raise busy(f"{self._name}/{name}")
        return MemoryHold(self._holds, (name, byte, shared))

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

    def stored_pages(self, name: str) -> list[int]:
        """The offsets of the pages of a file that were ever written; each is 4096 bytes."""
        return [number * _PAGE_BYTES for number in sorted(self._nodes[name].now.pages)]

    def names(self) -> list[str]:
        """Of all files."""
        return sorted(self._nodes)

    def rot(self, name: str, offset: int) -> None:
        """Flips a bit of the byte at `offset`, on the medium and as reads see it."""
        node = self._nodes[name]
        for content in (node.now, node.durable):
            if offset < content.size:
                content.write(offset, bytes([content.read(offset, 1)[0] ^ 1]))

    def page(self, name: str, offset: int) -> bytes:
        """The page of the byte at `offset`, as reads see it."""
        return self._nodes[name].now.read(offset - offset % _PAGE_BYTES, _PAGE_BYTES)

    def stop_rotting(self, name: str, offset: int, page: bytes) -> None:
        """Flips the bit back where the byte's page is still `page`, as it was after `rot`."""
        node = self._nodes[name]
        start = offset - offset % _PAGE_BYTES
        for content in (node.now, node.durable):
            if content.read(start, _PAGE_BYTES) == page:
                content.write(offset, bytes([content.read(offset, 1)[0] ^ 1]))

    def medium(self) -> MemoryDisk:
        """The disk after a power cut that nothing unsynced outlived."""
        other = MemoryDisk(self._name)
        other._nodes = {name: _Node(node.durable.copy()) for name, node in self._nodes.items()}
        return other

    def image(self, survives: Callable[[str, int], bool]) -> MemoryDisk:
        """The disk after a power cut: synced sectors, and those unsynced ones for which
        `survives(file, sector)`."""
        other = MemoryDisk(self._name)
        for name, node in self._nodes.items():
            content = node.durable.copy()
            if node.unsynced:
                kept = [sector for sector in sorted(node.unsynced) if survives(name, sector)]
                node.keep(kept, content)
            other._nodes[name] = _Node(content)
        return other
