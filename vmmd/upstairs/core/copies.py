"""Extent copies into one member: a few in flight, another source when one fails.

The member obeys the set's limits from its next chunk on, and tells when asked how much it has
received. Used by live repair and by reconciliation. Who may be the source of an extent is the
caller's rule, asked anew for every attempt, because sources come and go meanwhile.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from stairlib.model.extents import ExtentState
from stairlib.wire.frame import OpKind, OpStatus
from vmmd.upstairs.core import limits
from vmmd.upstairs.core.control_jobs import ControlJob, Outcome
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.repair_limits import RepairLimits
from vmmd.upstairs.core.slot import Member

# (extent, mask of members that failed as its source) to a member, or None when there is none.
ChooseSource = Callable[[int, int], Member | None]
_OF_THE_SOURCE = (OpStatus.REPAIR_SOURCE, OpStatus.SOURCE_DAMAGED)


def source_blob(region: RegionSet, source: Member, traceparent: str = "") -> bytes:
    """How a member is told where to copy from, and as whom."""
    config = region.config
    fields = {
        "address": source.address,
        "upstairs_id": config.upstairs_id,
        "session_id": config.session_id,
        "generation": region.generation,
    }
    if traceparent:
        fields["traceparent"] = traceparent
    return json.dumps(fields, separators=(",", ":")).encode()


@dataclass(slots=True)
class _Copy:
    """One extent on its way."""

    extent: int
    source: Member
    job: ControlJob
    tried: int
    attempts: int
    # Every source so far was damaged; none was merely away.
    damaged: bool


class ExtentCopies:
    """All copies into `target`. `error` is set once and ends it; `damaged` with it is the extent of
    which every source has a bad block."""

    def __init__(
        self,
        region: RegionSet,
        target: Member,
        extents: Iterable[int],
        choose: ChooseSource,
        members: int = 1,
        *,
        held: bool = False,
    ) -> None:
        """`members` are filled at the same time as this one, itself included. While it is `held`
        nothing is copied."""
        self._region = region
        self._target = target
        self._choose = choose
        geometry = region.config.geometry
        self._extent_bytes = geometry.blocks_per_extent * geometry.block_size
        # Extent, who was tried, how often, and whether all of these were damaged.
        self._waiting: deque[tuple[int, int, int, bool]] = deque(
            (extent, 0, 0, True) for extent in extents
        )
        # Of every extent of the region, for whoever looks.
        self.states = np.full(geometry.extent_count, ExtentState.IN_SYNC, dtype=np.uint8)
        self.states[[each[0] for each in self._waiting]] = ExtentState.DIFFERS
        self._running: list[_Copy] = []
        self.extents_total = len(self._waiting)
        self.extents_done = 0
        self.bytes_copied = 0
        self.started_at = region.now
        self.error = ""
        self.damaged: int | None = None
        self.traceparent = ""
        self._limits = region.repair_limits.share(members)
        self._look: ControlJob | None = None
        self._looked_at = region.now
        self._base: int | None = None
        self._moved = 0
        self._partly = 0
        # None is begun meanwhile; those under way stand still by their rate.
        self._held = held
        self._ask()

    @property
    def finished(self) -> bool:
        """Every extent was copied."""
        return self.extents_done == self.extents_total

    @property
    def limits(self) -> RepairLimits:
        """What this member was told."""
        return self._limits

    @property
    def bytes_moved(self) -> int:
        """What the member has received or, of extents that are done, had to change."""
        return max(self._moved, self.bytes_copied)

    @property
    def bytes_done(self) -> int:
        """Bytes of the extents that were looked at, with what has come of the others. Never
        falls."""
        inside = min(self._moved - self.bytes_copied, len(self._running) * self._extent_bytes)
        done = self.extents_done * self._extent_bytes
        self._partly = max(self._partly, done, min(done + inside, self.bytes_total))
        return self._partly

    @property
    def bytes_total(self) -> int:
        """Of all extents."""
        return self.extents_total * self._extent_bytes

    def limit(self, limits: RepairLimits) -> None:
        """Obeyed from the next chunk on."""
        if limits != self._limits:
            self._limits = limits
            self._ask()

    def hold(self, held: bool) -> None:
        """Has the copies stand still, or go on."""
        if held != self._held:
            self._held = held
            self._ask()

    @property
    def held(self) -> bool:
        """Whether they stand still."""
        return self._held

    def look(self) -> None:
        """Asks how much has been received, when it is time to."""
        if self._look is not None:
            self._take_look(self._look)
        elif self._region.now - self._looked_at >= limits.REPAIR_LOOK_SECONDS:
            self._ask()

    def _ask(self) -> None:
        if self._target.streams and not self.finished:
            self._looked_at = self._region.now
            rate, copies = self._limits.bytes_per_second, self._limits.copies_in_flight
            if self._held:
                rate = limits.HELD_BYTES_PER_SECOND
            self._look = self._region.send_control(
                self._target, OpKind.REPAIR_LIMIT, number=rate, length=copies
            )

    def _take_look(self, job: ControlJob) -> None:
        if job.outcome is Outcome.PENDING:
            return
        self._look = None
        if job.outcome is Outcome.OK:
            # The session may have copied before. What it says is shown, and nothing is built on it.
            self._base = job.offset if self._base is None else self._base
            self._moved = max(self._moved, min(job.offset - self._base, self.bytes_total))

    def advance(self) -> None:
        """Takes what has been answered and asks for more."""
        running, self._running = self._running, []
        for copy in running:
            self._settle(copy)
        wanted = 0 if self._held else self._limits.copies_in_flight
        while not self.error and self._waiting and len(self._running) < wanted:
            extent, tried, attempts, damaged = self._waiting.popleft()
            # With every source tried, begin again with the first: the attempts are what is bounded.
            source = self._choose(extent, tried) or self._choose(extent, 0)
            if source is None:
                self.error = f"no member can be the source of extent {extent}"
                return
            job = self._send(extent, source)
            self.states[extent] = ExtentState.COPYING
            self._running.append(_Copy(extent, source, job, tried, attempts, damaged))

    def _settle(self, copy: _Copy) -> None:
        job = copy.job
        if job.outcome is Outcome.PENDING:
            self._running.append(copy)
        elif job.outcome is Outcome.OK:
            self.extents_done += 1
            self.states[copy.extent] = ExtentState.COPIED
            self.bytes_copied += min(job.number, self._extent_bytes)
        elif job.status in _OF_THE_SOURCE and job.outcome is Outcome.FAILED:
            attempts = copy.attempts + 1
            damaged = copy.damaged and job.status is OpStatus.SOURCE_DAMAGED
            if attempts < limits.COPY_ATTEMPTS_MAX:
                tried = copy.tried | copy.source.bit
                self._waiting.appendleft((copy.extent, tried, attempts, damaged))
                self.states[copy.extent] = ExtentState.DIFFERS
            elif not self.error:
                self.error = job.describe()
                self.damaged = copy.extent if damaged else None
        else:
            self.error = self.error or job.describe()

    def _send(self, extent: int, source: Member) -> ControlJob:
        blob = source_blob(self._region, source, self.traceparent)
        return self._region.send_control(
            self._target,
            OpKind.EXTENT_COPY,
            offset=extent,
            length=1,
            blob=blob,
        )
