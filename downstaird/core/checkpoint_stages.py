"""In which order a sealed log goes home when snapshots were taken while it was filled.

The log is cut at its snapshots into *stages*. Each stage's blocks go home as they were at its
snapshot, the last one's as they were when the log was sealed. A home that one stage has written
belongs to its snapshot from then on: the next stage that has blocks for it takes another one.

A home that several snapshots and the region itself still share is moved for all of them at once:
those up to the chunk's next remap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from downstaird.core.log_plan import LogPlan
from downstaird.core.overlay import LoggedEpoch
from downstaird.core.snapshot_table import Snapshot, Unsettled


@dataclass(slots=True)
class Stage:
    """Epochs `first` to `stop` (excluded). snapshot: taken at their end; None for the last stage.
    remapped: chunks that got another home in these epochs."""

    first: int
    stop: int
    snapshot: Snapshot | None
    unsettled: Unsettled | None
    remapped: set[int]


@dataclass(slots=True)
class Seal:
    """A sealed log. sequence, chain: what the first record after it has, and is chained to. at:
    the stage being worked off; plan, cursor: how far.

    later: for each snapshot taken since, what was remapped after the one before. remapped: what
    was since the last of these."""

    log: int
    epochs: int
    sequence: int
    chain: int
    stages: list[Stage]
    later: list[Stage] = field(default_factory=list)
    remapped: set[int] = field(default_factory=set)
    at: int = 0
    plan: LogPlan | None = None
    cursor: int = 0

    def sharing(self, chunk: int) -> tuple[list[Unsettled], bool]:
        """Whose home the present stage's home of the chunk is: snapshots, and whether it is the
        region's own as well."""
        found: list[Unsettled] = []
        following = [*self.stages[self.at :], *self.later]
        for index, stage in enumerate(following):
            if index and chunk in stage.remapped:
                return found, False
            if stage.unsettled is not None:
                found.append(stage.unsettled)
        return found, chunk not in self.remapped

    def taken(self, snapshot: Snapshot) -> None:
        """A snapshot was taken after the log had been sealed."""
        remapped, self.remapped = self.remapped, set()
        self.later.append(Stage(0, 0, snapshot, snapshot.unsettled, remapped))


def stages_of(
    epochs: Sequence[LoggedEpoch], snapshots: Sequence[tuple[Snapshot, Unsettled]]
) -> list[Stage]:
    """The stages of a log with these epochs and the snapshots taken while it was filled."""
    found: list[Stage] = []
    first = 0
    for snapshot, unsettled in snapshots:
        stop = first
        while stop < len(epochs) and epochs[stop].start < unsettled.before:
            stop += 1
        found.append(Stage(first, stop, snapshot, unsettled, _remapped(epochs[first:stop])))
        first = stop
    found.append(Stage(first, len(epochs), None, None, _remapped(epochs[first:])))
    return found


def _remapped(epochs: Sequence[LoggedEpoch]) -> set[int]:
    return {chunk for epoch in epochs for chunk in epoch.remapped.tolist()}
