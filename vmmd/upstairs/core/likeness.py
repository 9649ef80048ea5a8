"""Which copies are equal to their sources block for block, although their stamps cannot say so.

A copy with unflushed writes, or in which a write failed, may hold something else than another one
of the same stamp. Mostly it does not: the frames reached all. So the members are asked for digests
of these extents' contexts before anything is marked. A copy that is equal needs no filling: the
next flush stamps it as it does its source, and until then it is as good a copy as that one. Were it
marked, the source would be the only copy while nothing is copied.

Nothing is written meanwhile: no guest is served. A member that gives no digest counts as different.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stairlib.wire.frame import OpKind
from vmmd.upstairs.core import limits
from vmmd.upstairs.core.control_jobs import ControlJob, Outcome
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.slot import Member

_Extents = npt.NDArray[np.int64]


class Likeness:
    """One comparison. `source`: per extent, place in `members`; `doubtful`: per member, the extents
    to compare with it."""

    def __init__(
        self,
        region: RegionSet,
        members: Sequence[Member],
        source: _Extents,
        doubtful: Sequence[_Extents],
    ) -> None:
        self._region = region
        self._members = members
        self._source = source
        self._doubtful = doubtful
        geometry = region.config.geometry
        self._step = max(1, limits.DIGEST_BLOCKS_PER_OP // geometry.blocks_per_extent)
        wanted = np.zeros(geometry.extent_count, dtype=np.bool_)
        for extents in doubtful:
            wanted[extents] = True
        self._ranges = _ranges(np.flatnonzero(wanted), self._step)
        # Per member and extent; and whether it was told.
        shape = (len(members), geometry.extent_count if self._ranges else 0)
        self._digests = np.zeros(shape, dtype=np.uint64)
        self._told = np.zeros(shape, dtype=np.bool_)
        self._jobs: list[tuple[int, ControlJob]] = []

    def advance(self) -> bool:
        """Takes answers and asks on. Whether all is known."""
        if any(job.outcome is Outcome.PENDING for _row, job in self._jobs):
            return False
        for row, job in self._jobs:
            if job.outcome is Outcome.OK:
                there = slice(job.extent, job.extent + job.length)
                self._digests[row, there] = np.frombuffer(job.payload, dtype="<u8")
                self._told[row, there] = True
        self._jobs = []
        count_now = limits.DIGESTS_AT_ONCE
        now, self._ranges = self._ranges[:count_now], self._ranges[count_now:]
        for first, count in now:
            for row, member in enumerate(self._members):
                job = self._region.send_control(
                    member, OpKind.EXTENT_DIGEST, offset=first, length=count
                )
                self._jobs.append((row, job))
        return not self._jobs

    def equal(self, row: int) -> _Extents:
        """Of the member's doubtful extents, those that are as their source's."""
        extents = self._doubtful[row]
        if not len(extents):
            return extents
        source = self._source[extents]
        same = self._digests[row, extents] == self._digests[source, extents]
        same &= self._told[row, extents] & self._told[source, extents]
        found: _Extents = extents[same]
        return found


def _ranges(extents: _Extents, step: int) -> list[tuple[int, int]]:
    """The extents as (first, count), at most `step` at once."""
    if not len(extents):
        return []
    edges = np.flatnonzero(np.diff(extents) != 1) + 1
    found = []
    for run in np.split(extents, edges):
        first, end = int(run[0]), int(run[-1]) + 1
        found += [(at, min(step, end - at)) for at in range(first, end, step)]
    return found
