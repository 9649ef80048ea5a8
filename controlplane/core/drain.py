"""The emptying of a host, or of one address.

A drain says what it empties and since when, and nothing more is stored of it: what is left is what
the recorded construction requests still name there, and what was moved are the replacements that
it began. So it goes on after a crash wherever it was, and there is no second account to be wrong.

Pure. The rules: one volume at a time; the new copy first, since a replacement lets the old member
serve until the new one is whole; a move that did not end well is waited for, never done over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from uuid import UUID

from controlplane.core.fleet import FleetPolicy, Place, default_place
from controlplane.core.records import DiskRecord
from controlplane.core.replacement import Replacement
from controlplane.core.replacement import State as ReplacementState
from stairlib.model.construction import regions

# (disk key, region path, slot)
Key = tuple[UUID, str, int]


class State(StrEnum):
    """Where a drain is."""

    RUNNING = "RUNNING"
    DONE = "DONE"
    CANCELLED = "CANCELLED"

    @property
    def holds(self) -> bool:
        """Whether nothing may be placed on what it empties."""
        return self is not State.CANCELLED


@dataclass(frozen=True, slots=True)
class Drain:
    """One drain. `target` is a host, or one address; times are seconds since the epoch."""

    id: UUID
    target: str
    created_at: float
    updated_at: float
    state: State = State.RUNNING

    @property
    def asked_by(self) -> str:
        """How the replacements it begins are marked."""
        return f"drain {self.id}"

    def covers(self, place: Place) -> bool:
        """Whether a downstairs is among what it empties."""
        return self.target in (place.address, place.host)


@dataclass(frozen=True, slots=True)
class Member:
    """A member that is still there; `waits_for` says why it is not being moved now."""

    disk_key: UUID
    disk: str
    region_path: str
    slot: int
    target: str
    waits_for: str = ""

    @property
    def key(self) -> Key:
        """What names the slot."""
        return self.disk_key, self.region_path, self.slot


@dataclass(frozen=True, slots=True)
class Plan:
    """What a drain does now. `begin` is the member to replace next, if any may be; `left` are all
    that are still there; `over` says that nothing is left and everything moved is whole."""

    begin: Member | None
    left: tuple[Member, ...]
    over: bool


def members_left(
    drain: Drain, disks: Iterable[DiskRecord], places: Mapping[str, Place]
) -> list[Member]:
    """What the recorded requests still name there, in the order of disks, regions and slots."""
    return [
        Member(disk.key, disk.name, path, slot, address)
        for disk in sorted(disks, key=lambda each: each.name)
        for path, region in regions(disk.construction)
        for slot, address in enumerate(region.options.targets)
        if drain.covers(places.get(address) or default_place(address))
    ]


def departing(
    drain: Drain, running: Iterable[Replacement], places: Mapping[str, Place]
) -> list[Member]:
    """Members there that a running replacement of somebody else is moving away: they are recorded
    elsewhere already, and serve until their successors are whole."""
    return [
        Member(each.disk_key, each.disk, each.region_path, each.slot, each.old_target)
        for each in running
        if each.asked_by != drain.asked_by
        and drain.covers(places.get(each.old_target) or default_place(each.old_target))
    ]


def recorded(disks: Iterable[DiskRecord]) -> dict[Key, str]:
    """The address in each slot."""
    return {
        (disk.key, path, slot): address
        for disk in disks
        for path, region in regions(disk.construction)
        for slot, address in enumerate(region.options.targets)
    }


def plan(
    left: Iterable[Member],
    moves: Iterable[Replacement],
    running: Collection[Replacement],
    now: Mapping[Key, str],
    policy: FleetPolicy,
    held: Mapping[Key, str],
) -> Plan:
    """The next step. `moves` are the replacements that this drain has begun, oldest first, and
    `running` all of the fleet that have not ended; `now` is what is recorded in each slot; `held`
    says of members why an attempt to move them did not begin."""
    newest = {(each.disk_key, each.region_path, each.slot): each for each in moves}
    unfinished = {
        key: each
        for key, each in newest.items()
        if not each.state.ended or _unresolved(each, now.get(key))
    }
    shown: list[Member] = []
    begin: Member | None = None
    for member in left:
        why = next(_reasons(member, unfinished, running, policy, held), "")
        if not why and begin is not None:
            why = f"one volume at a time: disk {begin.disk!r} is moved first"
        shown.append(replace(member, waits_for=why))
        if not why:
            begin = shown[-1]
    known = {each.key for each in shown}
    for key, move in unfinished.items():
        # Recorded elsewhere already, and not whole there: the old copy may be needed yet.
        if key not in known and move.state.ended:
            shown.append(
                Member(
                    move.disk_key, move.disk, move.region_path, move.slot, move.old_target,
                    _ended_badly(move),
                )
            )  # fmt: skip
    return Plan(begin, tuple(shown), not shown and not unfinished)


def _unresolved(move: Replacement, target: str | None) -> bool:
    """Whether a move that has ended left its slot as it should not be; `target` is what is recorded
    there now. Another replacement of the slot, or the end of the disk, resolves it."""
    if move.state is ReplacementState.CANCELLED:
        return target == move.old_target
    return move.state is ReplacementState.FAILED and target == move.new_target


def _reasons(
    member: Member,
    unfinished: Mapping[Key, Replacement],
    running: Collection[Replacement],
    policy: FleetPolicy,
    held: Mapping[Key, str],
) -> Iterator[str]:
    """All that a member waits for, what lasts longest first."""
    for each in running:
        if each.disk_key == member.disk_key:
            yield f"replacement {each.id} of its disk is running, in state {each.state}"
    move = unfinished.get(member.key)
    if move is not None and move.state.ended:
        yield _ended_badly(move)
    if policy.maintenance:
        yield "the fleet's maintenance switch is on"
    for move in unfinished.values():
        if not move.state.ended:
            yield f"one volume at a time: replacement {move.id} of disk {move.disk!r} is running"
    if len(running) >= policy.at_once_max:
        number = policy.at_once_max
        yield f"{len(running)} replacements run, and the fleet may have {number} at once"
    if member.key in held:
        yield held[member.key]


def _ended_badly(move: Replacement) -> str:
    if move.state is ReplacementState.CANCELLED:
        return f"replacement {move.id} of it was cancelled; replace it by hand, or drain anew"
    return (
        f"replacement {move.id} is {move.state}: {move.last_error or 'no reason was given'}; retry"
        " it, or replace the slot by hand"
    )
