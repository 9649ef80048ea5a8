"""What is known of each extent of each slot's member: made when somebody looks, from what the parts
keep in any case, so that the way of a write knows nothing of it.

A full member has everything but what it has not flushed yet. One that was away for a short time
lacks what was written meanwhile. One that is being filled lacks what its copies have still to
bring; of what is away, or was not compared yet, nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from stairlib.model.extents import ExtentState, ExtentStates
from stairlib.wire.frame import FLAG_DIRTY
from vmmd.upstairs.core.copies import ExtentCopies
from vmmd.upstairs.core.reconcile_plan import ReconcilePlan
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.slot_states import SlotState

_FILLED = frozenset({SlotState.LIVE_REPAIR, SlotState.RECONCILE})


def extent_map(
    region: RegionSet, copies: Mapping[int, ExtentCopies], plan: ReconcilePlan | None
) -> list[ExtentStates]:
    """Of each slot's member, by slot. `copies` by member index; `plan` of a reconciliation that
    runs."""
    written = _Written(region)
    return [_of(member, region, copies.get(member.index), plan, written) for member in region.slots]


def _of(
    member: Member,
    region: RegionSet,
    copies: ExtentCopies | None,
    plan: ReconcilePlan | None,
    written: _Written,
) -> ExtentStates:
    count = region.config.geometry.extent_count
    states = np.full(count, ExtentState.IN_SYNC, dtype=np.uint8)
    if member.state in _FILLED:
        if copies is not None:
            states = copies.states.copy()
        elif plan is not None and member in plan.members:
            states[plan.extents[plan.members.index(member)]] = ExtentState.DIFFERS
        if member.state is SlotState.RECONCILE and member.stamps is not None:
            # From before it was activated, and flushed before it serves.
            dirty = (member.stamps.flags & FLAG_DIRTY) != 0
            states[dirty & (states == ExtentState.IN_SYNC)] = ExtentState.DIRTY
    elif not (member.active or member.held):
        states[:] = ExtentState.UNKNOWN
        return states
    fresh = written.after(member.synced_job)
    fresh &= states == ExtentState.IN_SYNC
    states[fresh] = ExtentState.DIFFERS if member.held else ExtentState.DIRTY
    return states


class _Written:
    """Which extents the log's writes and discards touch: its tables are read once for all
    members."""

    def __init__(self, region: RegionSet) -> None:
        geometry = region.config.geometry
        table = region.log.table()
        self._count = geometry.extent_count
        self._jobs = table["job"].astype(np.int64)
        offsets = table["offset"].astype(np.int64)
        lengths = table["length"].astype(np.int64)
        self._firsts = offsets // geometry.blocks_per_extent
        self._ends = (offsets + lengths - 1) // geometry.blocks_per_extent + 1

    def after(self, job: int) -> npt.NDArray[np.bool_]:
        """Per extent, whether a job after this one touches it."""
        start = int(np.searchsorted(self._jobs, job, side="right"))
        edges = np.bincount(self._firsts[start:], minlength=self._count + 1)
        edges -= np.bincount(self._ends[start:], minlength=self._count + 1)
        touched: npt.NDArray[np.bool_] = np.cumsum(edges[: self._count]) > 0
        return touched
