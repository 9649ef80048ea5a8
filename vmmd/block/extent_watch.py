"""What is known of the extents of a volume's members, for whoever looks.

Nothing is counted along the way of a request: every look is made anew, out of what the upstairs
keeps in any case. Looks of several watchers at about the same time are one, and one that takes
long is made less often.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Final

from stairlib.model.extents import as_text
from vmmd.upstairs.shell.runner import RegionUpstairs

# A look that is younger than this will do.
FRESH_SECONDS: Final = 0.1
INTERVAL_SECONDS: Final = 0.5
# Of the time of the machine's loop that looks at a region may take: a fiftieth.
REST: Final = 50.0


@dataclass(frozen=True, slots=True)
class ExtentColumn:
    """One slot's member; `runs` as `stairlib.model.extents` writes them."""

    slot: int
    address: str
    runs: str


@dataclass(frozen=True, slots=True)
class RegionExtents:
    """The region at `path`, and the columns of its slots."""

    path: str
    extent_count: int
    extent_bytes: int
    columns: tuple[ExtentColumn, ...]

    def since(self, before: RegionExtents | None) -> RegionExtents:
        """The same, without the columns that are as they were."""
        known = before.columns if before is not None else ()
        changed = tuple(column for column in self.columns if column not in known)
        return RegionExtents(self.path, self.extent_count, self.extent_bytes, changed)


@dataclass(frozen=True, slots=True)
class _Look:
    made_at: float
    took: float
    extents: RegionExtents


class ExtentLooks:
    """The newest look at each region."""

    def __init__(self) -> None:
        self._looks: dict[str, _Look] = {}

    def look(self, path: str, region: RegionUpstairs) -> RegionExtents:
        """As fresh as `FRESH_SECONDS` and the time a look takes allow."""
        now = monotonic()
        look = self._looks.get(path)
        if look is None or now - look.made_at >= max(FRESH_SECONDS, REST * look.took):
            found = _look(path, region)
            ended = monotonic()
            look = self._looks[path] = _Look(ended, ended - now, found)
        return look.extents


def _look(path: str, region: RegionUpstairs) -> RegionExtents:
    geometry = region.geometry
    columns = tuple(
        ExtentColumn(slot.slot, slot.address, as_text(states))
        for slot, states in zip(region.status().slots, region.extents(), strict=True)
    )
    extent_bytes = geometry.blocks_per_extent * geometry.block_size
    return RegionExtents(path, geometry.extent_count, extent_bytes, columns)


async def changes(
    look: Callable[[], list[RegionExtents]], interval: float
) -> AsyncGenerator[list[RegionExtents], None]:
    """All there is to see, and then what changed: every region, with the columns that are not as
    they were told last. Ends when there is none left; a look that raises ends it too."""
    told: dict[str, RegionExtents] = {}
    first = True
    while True:
        found = {each.path: each for each in look()}
        news = [each.since(told.get(path)) for path, each in found.items()]
        if first or told.keys() != found.keys() or any(each.columns for each in news):
            yield news
        if not found:
            return
        told, first = found, False
        await asyncio.sleep(max(interval, FRESH_SECONDS))
