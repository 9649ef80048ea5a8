"""Snapshots of the set: a flush that carries a name, and needs all three members.

Each member keeps, under the name, what it holds after that flush: everything sent before it, and
nothing sent after. Members execute in one order, so the three snapshots are equal. A member that is
away when it is asked for, or is being filled, could not have it; so all three have to be active,
and each has to take it. One that leaves for a short time takes it when the flush is replayed to it.

The flush is judged as any other, whatever becomes of the snapshot. Asked again with a name that is
there, the members refuse: a later flush is another snapshot. Source: reference vcr-and-upstairs.md
§8.1, §8.2 (a snapshot flush needs three).
"""

from __future__ import annotations

from stairlib.model.errors import DataError, StairwellError, StateError
from vmmd.upstairs.core import limits
from vmmd.upstairs.core.events import Answer, SnapshotTaken
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.replay import Mutation
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.upstairs_states import UpstairsState


class SnapshotFlush:
    """One snapshot on its way, until `over`."""

    def __init__(self, region: RegionSet, key: object, name: str) -> None:
        self._region = region
        self._key = key
        self._name = name
        self.over = False
        error = _refusal(region, name)
        if error is not None:
            self._end(error=error)
            return
        self._members: list[Member] = list(region.slots)
        self._number = region.flushes.number
        self._generation = region.generation
        self._record: Mutation = region.send_flush(snapshot=name)

    def advance(self) -> None:
        """Answers once every member has, or owes nothing any more."""
        if self.over or self._record.pending:
            return
        problems = []
        for member in self._members:
            refused = self._record.refused.get(member.index)
            if refused is not None:
                problems.append(f"slot {member.slot} ({member.address}): {refused}")
            elif not self._record.acked & member.bit:
                lost = member.last_error or member.stopped_reason or "it left"
                problems.append(f"slot {member.slot} ({member.address}) did not take it: {lost}")
        if problems:
            self._end(
                error=DataError(
                    f"the snapshot {self._name!r} was not taken by all members: "
                    f"{'; '.join(problems)}; delete it from those that took it, or choose another "
                    "name",
                    reason="SNAPSHOT_FAILED",
                    snapshot=self._name,
                )
            )
        else:
            self._end(SnapshotTaken(self._name, self._generation, self._number))

    def abort(self, reason: str) -> None:
        """The upstairs is stopping."""
        if not self.over:
            text = f"the volume stopped while the snapshot {self._name!r} was being taken: {reason}"
            self._end(error=StateError(text, reason="SNAPSHOT_FAILED", snapshot=self._name))

    def _end(self, value: object = None, error: StairwellError | None = None) -> None:
        self.over = True
        self._region.effects.append(Answer(self._key, value, error))


def _refusal(region: RegionSet, name: str) -> StateError | None:
    if region.config.read_only:
        return StateError(
            "the volume is read-only: what it serves does not change, and its regions may be "
            "copied instead",
            reason="READ_ONLY",
        )
    if region.state is not UpstairsState.ACTIVE:
        return StateError(
            f"the volume is {region.state.name}: activate it to take a snapshot",
            reason="NOT_ACTIVE",
        )
    missing = [
        f"slot {m.slot} ({m.address}) is {m.state.name}" for m in region.slots if not m.active
    ]
    if missing or len(region.slots) != limits.SLOT_COUNT:
        return StateError(
            f"a snapshot needs all three members: {'; '.join(missing)}; wait until that one is "
            "active, or replace it",
            reason="SNAPSHOT_NEEDS_THREE",
            snapshot=name,
        )
    return None
