"""Comparing the members while the volume is in use.

A flush, and then a digest of every extent's contexts, asked of all active members at the same place
in the order of writes: each daemon handles these at once when it comes to them, so equal members
give equal digests under any load. The members of a read-only set never change: no flush there. A
few extents are asked for at a time, the next when all members
have answered, so that guest requests never queue behind more than one such step.
"""

from __future__ import annotations

import numpy as np

from stairlib.model.errors import DataError, StairwellError, StateError, UnavailableError
from stairlib.wire.frame import OpKind
from vmmd.upstairs.core import limits
from vmmd.upstairs.core.control_jobs import ControlJob, Outcome
from vmmd.upstairs.core.events import Answer, Digests
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.upstairs_states import UpstairsState


class Verification:
    """One comparison, from its start until `over`."""

    def __init__(self, region: RegionSet, key: object) -> None:
        self._region = region
        self._key = key
        self.over = False
        if region.state is not UpstairsState.ACTIVE:
            self._end(
                error=StateError(f"the volume is {region.state.name}: activate it to verify it")
            )
            return
        self._flush = None if region.config.read_only else region.send_flush()
        geometry = region.config.geometry
        self._extents = geometry.extent_count
        self._step = max(1, limits.DIGEST_BLOCKS_PER_OP // geometry.blocks_per_extent)
        self._asked = 0
        self._jobs: list[ControlJob] = []
        # Fixed now: who becomes active later was not compared from the start. Of two members in one
        # slot the new one counts.
        by_slot = {m.slot: m for m in sorted(region.active, key=lambda m: not m.departing)}
        self._members = list(by_slot.values())
        self._parts: dict[int, list[bytes]] = {member.slot: [] for member in self._members}
        self._ask()

    def _ask(self) -> None:
        """The next step, to all members in one place of the order."""
        count = min(self._step, self._extents - self._asked)
        self._jobs = [
            self._region.send_control(
                member, OpKind.EXTENT_DIGEST, offset=self._asked, length=count
            )
            for member in self._members
        ]
        self._asked += count

    def advance(self) -> None:
        """Asks on, and answers once every member has, or is lost."""
        if self.over or any(job.outcome is Outcome.PENDING for job in self._jobs):
            return
        for job in self._jobs:
            if job.outcome is Outcome.FAILED:
                self._end(error=DataError(job.describe(), reason="DIGEST_FAILED"))
                return
            if job.outcome is Outcome.OK:
                self._parts[job.member.slot].append(job.payload)
            else:
                del self._parts[job.member.slot]
        self._jobs = []
        self._members = [m for m in self._members if m.slot in self._parts and m.active]
        if not self._members:
            self._end(error=UnavailableError("every member was lost during the comparison"))
        elif self._asked < self._extents:
            self._ask()
        elif self._flush is None or self._flush.judged:
            self._answer()

    def _answer(self) -> None:
        if self._flush is not None and not self._flush.succeeded:
            self._end(
                error=DataError("the flush before the comparison failed", reason="FLUSH_FAILED")
            )
            return
        self._end(
            value=Digests(
                {
                    member.slot: np.frombuffer(b"".join(self._parts[member.slot]), dtype="<u8")
                    for member in self._members
                }
            )
        )

    def abort(self) -> None:
        """The upstairs is stopping."""
        if not self.over:
            self._end(error=StateError("the volume stopped during the comparison"))

    def _end(self, value: object = None, error: StairwellError | None = None) -> None:
        self.over = True
        self._region.effects.append(Answer(self._key, value, error))
