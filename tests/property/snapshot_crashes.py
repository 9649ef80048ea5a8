"""Power cuts under a region with snapshots: a CrashWorld that also takes, deletes and reads them.

After a power cut the snapshots are exactly those of the state that the region is found in, and each
holds, block for block and stamp for stamp, what its flush covered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from downstaird.core import region_snapshots
from downstaird.core.engine import FlushWork
from downstaird.core.region import Region
from downstaird.core.snapshot_reader import open_snapshot
from downstaird.store.memory import MemoryDisk
from stairlib.model.errors import StateError
from tests.property.region_crashes import (
    TUNING,
    CrashWorld,
    ViolationError,
    found_state,
)

# As region_crashes.State, and what each snapshot holds.
State = tuple[Any, Any, tuple[tuple[str, Any], ...]]


class SnapshotWorld(CrashWorld):
    """`held`: by name, blocks and stamps."""

    def __init__(self, seed: int, disk_type: Callable[[], MemoryDisk] = MemoryDisk) -> None:
        self.held: dict[str, Any] = {}
        self.taking = ""
        self.taken = 0
        self.read = 0
        super().__init__(seed, disk_type)

    def state(self) -> Any:
        """With the snapshots."""
        blocks, stamps = super().state()
        held = dict(self.held)
        if self.taking:
            held[self.taking] = (blocks, stamps)
        return blocks, stamps, tuple(sorted(held.items()))

    def run(self, steps: int) -> None:
        """Random steps."""
        for _ in range(steps):
            if self.rng.random() < 0.07 and self.held:
                self.delete()
            elif self.rng.random() < 0.05:
                self.read_snapshots(self.disk, self.region, dict(self.flushed[2]), settle=False)
            else:
                super().run(1)

    def flush(self) -> None:
        """A flush, now and then with a snapshot."""
        if self.rng.random() < 0.3 and len(self.held) < 5:
            self.taking = f"s{self.number + 1}"
        try:
            super().flush()
        finally:
            self.taking = ""

    def begin_flush(self) -> FlushWork:
        """With the snapshot that is being taken."""
        return self.region.begin_flush(self.number, 1, self.taking)

    def carried_through(self, work: Any, finish: Any) -> bool:
        """A flush that is done has taken its snapshot."""
        taking = self.taking
        done = super().carried_through(work, finish)
        if done and taking:
            assert self.in_flight is not None
            self.held[taking] = dict(self.in_flight[2])[taking]
            self.taken += 1
        return done

    def delete(self) -> None:
        """One snapshot, if it is settled."""
        name = self.rng.choice(sorted(self.held))
        try:
            work = self.region.begin_delete_snapshot(name)
        except StateError as error:
            if error.reason != "SNAPSHOT_SETTLING":
                raise
            return
        blocks, stamps, held = self.flushed
        self.in_flight = (blocks, stamps, tuple(each for each in held if each[0] != name))
        if self.carried_through(work, self.region.finish_flush):
            del self.held[name]
            self.flushed = self.in_flight
            self.in_flight = None

    def take_over(self, disk: MemoryDisk, region: Region, found: Any) -> None:
        """With the snapshots that were found."""
        self.held = dict(found[2])
        super().take_over(disk, region, found)

    def checked(self, disk: MemoryDisk, region: Region, allowed: list[Any]) -> Any:
        """What was found, in one of the allowed states, with the same snapshots."""
        names = {facts.name for facts in region.list_snapshots()}
        found = found_state(region)
        for state in allowed:
            if found == state[:2] and names == {name for name, _ in state[2]}:
                break
        else:
            raise ViolationError(f"neither blocks, stamps nor {names} are those of a state")
        if (region.extent_states().flags != 0).any():
            raise ViolationError("an extent is flagged after a power cut")
        if self.rng.random() < 0.5:
            self.read_snapshots(disk, region, dict(state[2]), settle=self.rng.random() < 0.5)
        return state

    def read_snapshots(
        self, disk: MemoryDisk, region: Region, held: dict[str, Any], *, settle: bool
    ) -> None:
        """Each holds what it should. settle: those that were just taken too, by a copy of all."""
        if settle:
            region.close()
            disk = disk.image(lambda _name, _sector: True)
            region = Region.open(disk, tuning=TUNING)
            region_snapshots.settle(region)
        for facts in region.list_snapshots():
            if facts.name not in held or not facts.settled:
                continue
            self.read += 1
            opened = open_snapshot(disk, facts.name, tuning=TUNING)
            found = found_state(opened)
            opened.let_go()
            if found != held[facts.name]:
                wanted = held[facts.name]
                blocks = [
                    i
                    for i, pair in enumerate(zip(found[0], wanted[0], strict=True))
                    if pair[0] != pair[1]
                ]
                raise ViolationError(f"snapshot {facts.name} changed: blocks {blocks}")
            if facts.damaged or (opened.extent_states().flags != 0).any():
                raise ViolationError("a snapshot is damaged after a power cut")
