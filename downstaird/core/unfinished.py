"""The disk of a region that is still being filled as a whole: it has no definition yet.

The definition is what makes a directory a region. While a clone is under way it lies under another
name, so that nothing takes the directory for a region; one rename, at the end, makes it one. A
power cut before that leaves an unfinished clone, after it a whole region, and never anything else.
"""

from __future__ import annotations

from downstaird.core.disk import Disk, File, Hold
from downstaird.core.region_files import DEFINITION_NAME

UNFINISHED_NAME = DEFINITION_NAME + ".unfinished"


class UnfinishedDisk:
    """A Disk on `disk` whose definition is not there for others."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    @property
    def name(self) -> str:
        """For messages: the path."""
        return self._disk.name

    @property
    def begun(self) -> bool:
        """An earlier run got as far as making the region's files."""
        return self._disk.exists(UNFINISHED_NAME)

    def publish(self) -> None:
        """Makes it a region for everybody, durably. Everything else must be durable already."""
        self._disk.rename(UNFINISHED_NAME, DEFINITION_NAME)
        self._disk.sync_directory()

    def prepare(self) -> None:
        """Makes the directory where it is missing."""
        self._disk.prepare()

    def lock(self, *, shared: bool) -> None:
        """As Disk.lock."""
        self._disk.lock(shared=shared)

    def hold(self, name: str, byte: int, *, shared: bool) -> Hold:
        """As Disk.hold."""
        return self._disk.hold(_mapped(name), byte, shared=shared)

    def exists(self, name: str) -> bool:
        """As Disk.exists; a definition is there when either is, lest a finished region be made
        anew."""
        return self._disk.exists(_mapped(name)) or self._disk.exists(name)

    def open(self, name: str, *, create: bool = False, read_only: bool = False) -> File:
        """As Disk.open."""
        return self._disk.open(_mapped(name), create=create, read_only=read_only)

    def rename(self, old: str, new: str) -> None:
        """As Disk.rename."""
        self._disk.rename(_mapped(old), _mapped(new))

    def sync_directory(self) -> None:
        """As Disk.sync_directory."""
        self._disk.sync_directory()

    def close(self) -> None:
        """As Disk.close."""
        self._disk.close()


def _mapped(name: str) -> str:
    return UNFINISHED_NAME if name == DEFINITION_NAME else name
