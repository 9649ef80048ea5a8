"""Extent copies into one member: a few in flight, another source when one fails.

Used by live repair and by reconciliation. Who may be the source of an extent is the caller's rule,
asked anew for every attempt, because sources come and go meanwhile.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stairlib.wire.frame import OpKind, OpStatus
from vmmd.upstairs.core import limits
from vmmd.upstairs.core.control_jobs import ControlJob, Outcome
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.slot import Member

# (extent, mask of members that failed as its source) to a member, or None when there is none.
ChooseSource = Callable[[int, int], Member | None]


@dataclass(slots=True)
class _Copy:
    """One extent on its way."""

    extent: int
    source: Member
    job: ControlJob
    tried: int
    attempts: int


class ExtentCopies:
    """All copies into `target`. `error` is set once and ends it."""

    def __init__(
        self, region: RegionSet, target: Member, extents: Iterable[int], choose: ChooseSource
    ) -> None:
        self._region = region
        self._target = target
        self._choose = choose
        geometry = region.config.geometry
        self._extent_bytes = geometry.blocks_per_extent * geometry.block_size
        self._waiting: deque[tuple[int, int, int]] = deque((extent, 0, 0) for extent in extents)
        self._running: list[_Copy] = []
        self.extents_total = len(self._waiting)
        self.extents_done = 0
        self.bytes_copied = 0
        self.started_at = region.now
        self.error = ""
        self.traceparent = ""
        # None is begun meanwhile; those under way stand still by their rate.
        self.held = False

    @property
    def finished(self) -> bool:
        """Every extent was copied."""
        return self.extents_done == self.extents_total

    def advance(self) -> None:
        """Takes what has been answered and asks for more."""
        running, self._running = self._running, []
        for copy in running:
            self._settle(copy)
        if self.held:
            return
        while not self.error and self._waiting and len(self._running) < limits.COPIES_IN_FLIGHT:
            extent, tried, attempts = self._waiting.popleft()
            # With every source tried, begin again with the first: the attempts are what is bounded.
            source = self._choose(extent, tried) or self._choose(extent, 0)
            if source is None:
                self.error = f"no member can be the source of extent {extent}"
                return
            self._running.append(_Copy(extent, source, self._send(extent, source), tried, attempts))

    def _settle(self, copy: _Copy) -> None:
        job = copy.job
        if job.outcome is Outcome.PENDING:
            self._running.append(copy)
        elif job.outcome is Outcome.OK:
            self.extents_done += 1
            self.bytes_copied += min(job.number, self._extent_bytes)
        elif job.status is OpStatus.REPAIR_SOURCE and job.outcome is Outcome.FAILED:
            attempts = copy.attempts + 1
            if attempts >= limits.COPY_ATTEMPTS_MAX:
                self.error = job.describe()
            else:
                self._waiting.appendleft((copy.extent, copy.tried | copy.source.bit, attempts))
        else:
            self.error = self.error or job.describe()

    def _send(self, extent: int, source: Member) -> ControlJob:
        config = self._region.config
        blob = {
            "address": source.address,
            "upstairs_id": config.upstairs_id,
            "session_id": config.session_id,
            "generation": self._region.generation,
        }
        if self.traceparent:
            blob["traceparent"] = self.traceparent
        return self._region.send_control(
            self._target,
            OpKind.EXTENT_COPY,
            offset=extent,
            length=1,
            blob=json.dumps(blob, separators=(",", ":")).encode(),
        )
