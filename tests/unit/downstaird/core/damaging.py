"""A small region with two checkpoints and a log, and ways to damage the files of a MemoryDisk."""

from __future__ import annotations

from dataclasses import dataclass

from downstaird.store.memory import MemoryDisk
from tests.unit.downstaird.core.region_rig import (
    checkpoint,
    content,
    flush,
    new_region,
    read,
    write,
)

BLOCKS = 64
LAST = 6
CHECKPOINTED = 3
SECTOR = 512
# What the files are to the region, whichever of two has the part.
ROLES = (
    "region.json",
    "owner",
    "void",
    "newer state",
    "older state",
    "log",
    "free log",
    "data",
    "used contexts",
)


@dataclass
class Populated:
    """names: file by role. states: the region's content after each flush. counts: offset of what
    counts in the used contexts file."""

    disk: MemoryDisk
    names: dict[str, str]
    states: dict[int, bytes]
    counts: int

    @classmethod
    def made(cls, mark: str = "a") -> Populated:
        """Flush 1 writes everything and goes home; 2 and 3 go home; 4 to 6 are in the log."""
        disk = MemoryDisk()
        region = new_region(disk)
        states = {}
        write(region, 0, content(mark, BLOCKS))
        flush(region, 1)
        states[1] = read(region, 0, BLOCKS)
        checkpoint(region)
        for number in range(2, LAST + 1):
            # Each in two extents: 4 in 0 and 1, 5 in 0 and 0, 6 in 0 and 3.
            write(region, number, content(number, 2))
            write(region, {4: 20, 5: 12, 6: 50}.get(number, 40), content(-number))
            flush(region, number)
            states[number] = read(region, 0, BLOCKS)
            if number == CHECKPOINTED:
                checkpoint(region)
        names = dict(zip(ROLES, ROLES, strict=True)) | {
            "newer state": f"state-{region.state_at}",
            "older state": f"state-{1 - region.state_at}",
            "log": f"log-{region.log.active}",
            "free log": f"log-{1 - region.log.active}",
            "used contexts": f"contexts-{region.chunks.sides[int(region.chunks.durable[7])]}",
        }
        counts = int(region.chunks.durable[7]) * region.chunks.context_files.stride
        region.close()
        return cls(disk, names, states, counts)

    def first(self, name: str) -> int:
        """Offset of the first sector that holds something that counts."""
        return self.counts if name == self.names["used contexts"] else self.used(name)[0]

    def used(self, name: str) -> list[int]:
        """Offsets of the sectors that hold something."""
        file = self.disk.open(name)
        size = file.size()
        sectors = []
        for page in self.disk.stored_pages(name):
            sectors += [
                at
                for at in range(page, min(page + 4096, size), SECTOR)
                if any(file.pread(min(SECTOR, size - at), at))
            ]
        return sectors


def emptied(region: Populated, name: str) -> None:
    """Truncated to nothing."""
    region.disk.open(name).truncate(0)


def cut(region: Populated, name: str) -> None:
    """Truncated in the middle of what it holds."""
    used = region.used(name)
    file = region.disk.open(name)
    end = min(used[-1] + SECTOR, file.size()) if used else file.size()
    file.truncate((end + (used[0] if used else 0)) // 2)


def flipped(region: Populated, name: str) -> None:
    """One bit is another, in the first sector that holds something."""
    region.disk.rot(name, region.first(name) + 20)


def zeroed(region: Populated, name: str) -> None:
    """The first sector that holds something is zeros."""
    at = region.first(name)
    file = region.disk.open(name)
    file.pwritev([bytes(min(SECTOR, file.size() - at))], at)


def missing(region: Populated, name: str) -> None:
    """Gone."""
    region.disk.rename(name, "elsewhere")


def foreign(region: Populated, name: str) -> None:
    """The file of another region, with the same geometry and history."""
    role = next(role for role, own in region.names.items() if own == name)
    other = Populated.made("other")
    source = other.disk.open(other.names[role])
    target = region.disk.open(name, create=True)
    target.truncate(source.size())
    for at in other.used(other.names[role]):
        target.pwritev([source.pread(min(SECTOR, source.size() - at), at)], at)
