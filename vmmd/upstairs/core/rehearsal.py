"""Whether the newest copy of an extent can be read at all, found out before others are given up.

A destination's copy is marked before it is filled, and a marked copy serves nobody. So where a copy
is the only one that would be left, and another one is still whole, the destinations are asked to
rehearse first (COPY_CHECK): they compare, fetch what differs, check it against its contexts, and
change nothing. A block that a destination has itself, by its context, is not needed from the
source. One destination for which it goes well is enough: it is filled, and is another source then.

An extent is `spoiled` when its source is damaged for all. `error` is set when a source could not be
asked at all. A member that gives another answer, or is of a release that knows no rehearsals, is
taken for one for which it goes well.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from stairlib.wire.frame import OpKind, OpStatus
from vmmd.upstairs.core import limits
from vmmd.upstairs.core.control_jobs import ControlJob, Outcome
from vmmd.upstairs.core.copies import source_blob
from vmmd.upstairs.core.reconcile_plan import ReconcilePlan
from vmmd.upstairs.core.region_set import RegionSet


class Rehearsal:
    """One of a plan from which equal copies have been taken."""

    def __init__(self, region: RegionSet, plan: ReconcilePlan) -> None:
        self._region = region
        self._plan = plan
        filled = plan.filled()
        self._asked = np.flatnonzero(plan.alone() & (filled & plan.whole).any(axis=0))
        self._well = np.zeros(len(plan.source), dtype=np.bool_)
        self._waiting = deque(
            (row, extent)
            for extent in self._asked.tolist()
            for row in np.flatnonzero(filled[:, extent]).tolist()
        )
        self._jobs: list[ControlJob] = []
        # What a source that was found bad said, by extent.
        self.texts: dict[int, str] = {}
        self._away: dict[int, str] = {}

    @property
    def spoiled(self) -> npt.NDArray[np.int64]:
        """Extents whose source can give to none what it needs."""
        found: npt.NDArray[np.int64] = self._asked[~self._well[self._asked]]
        return found

    @property
    def error(self) -> str:
        """Why nothing is known of an extent."""
        return next((text for extent, text in self._away.items() if not self._well[extent]), "")

    def advance(self) -> bool:
        """Takes answers and asks on. Whether all is known."""
        pending = []
        for job in self._jobs:
            if job.outcome is Outcome.PENDING:
                pending.append(job)
            elif job.outcome is Outcome.FAILED and job.status is OpStatus.SOURCE_DAMAGED:
                self.texts[job.extent] = job.describe()
            elif job.outcome is Outcome.FAILED and job.status is OpStatus.REPAIR_SOURCE:
                self._away[job.extent] = job.describe()
            else:
                self._well[job.extent] = True
        self._jobs = pending
        region, plan = self._region, self._plan
        while self._waiting and len(self._jobs) < limits.COPIES_IN_FLIGHT:
            row, extent = self._waiting.popleft()
            if self._well[extent]:
                continue
            blob = source_blob(region, plan.members[int(plan.source[extent])])
            self._jobs.append(
                region.send_control(
                    plan.members[row], OpKind.COPY_CHECK, offset=extent, length=1, blob=blob
                )
            )
        return not self._jobs
