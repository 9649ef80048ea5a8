"""Comparing the members while the volume is in use.

A flush, and then a digest of every extent's contexts, asked of all active members at the same place
in the order of writes: each daemon handles these at once when it comes to them, so equal members
give equal digests under any load.
"""

from __future__ import annotations

import numpy as np

from stairlib.model.errors import DataError, StairwellError, StateError, UnavailableError
from stairlib.wire.frame import OpKind
from vmmd.upstairs.core import limits
from vmmd.upstairs.core.control_jobs import ControlJob, Outcome
from vmmd.upstairs.core.events import Answer, Digests
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.states import UpstairsState


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
        self._flush = region.send_flush()
        geometry = region.config.geometry
        count = geometry.extent_count
        step = max(1, limits.DIGEST_BLOCKS_PER_OP // geometry.blocks_per_extent)
        # Fixed now: who becomes active later would answer at another place in the order.
        self._jobs: dict[int, list[ControlJob]] = {
            member.slot: [
                region.send_control(
                    member, OpKind.EXTENT_DIGEST, offset=at, length=min(step, count - at)
                )
                for at in range(0, count, step)
            ]
            for member in region.active
        }

    def advance(self) -> None:
        """Answers once every member has, or is lost."""
        if self.over or not self._flush.judged:
            return
        outcomes = [job.outcome for jobs in self._jobs.values() for job in jobs]
        if Outcome.PENDING in outcomes:
            return
        if not self._flush.succeeded:
            self._end(
                error=DataError("the flush before the comparison failed", reason="FLUSH_FAILED")
            )
            return
        failed = [j for jobs in self._jobs.values() for j in jobs if j.outcome is Outcome.FAILED]
        if failed:
            self._end(error=DataError(failed[0].describe(), reason="DIGEST_FAILED"))
            return
        digests = {}
        for slot, jobs in self._jobs.items():
            if all(job.outcome is Outcome.OK for job in jobs):
                payload = b"".join(job.payload for job in jobs)
                digests[slot] = np.frombuffer(payload, dtype="<u8")
        if not digests:
            self._end(error=UnavailableError("every member was lost during the comparison"))
        else:
            self._end(value=Digests(digests))

    def abort(self) -> None:
        """The upstairs is stopping."""
        if not self.over:
            self._end(error=StateError("the volume stopped during the comparison"))

    def _end(self, value: object = None, error: StairwellError | None = None) -> None:
        self.over = True
        self._region.effects.append(Answer(self._key, value, error))
