"""Which members are replaced unasked, and why the others wait.

Pure: the caller has looked at the volumes and hands over what it saw and when. `observe` keeps the
list of members that do not serve, with the time since when; `decide` says which one is replaced
now, if any, and of each other one what it waits for. The rules:

- only where the policy is automatic, and never while the maintenance switch is on;
- a member has to be away for the whole grace time. One that is coming back is let come back; its
  time is forgotten when it serves again, and not before;
- what cannot be seen is not judged: while a machine does not answer, its members wait;
- never two at once on a volume, nor more than the policy's number in the fleet;
- a slot whose last automatic replacement did not end well is left to the operator: going on by
  itself would use up one spare after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from uuid import UUID

from controlplane.core.fleet import FaultedMember, FleetPolicy
from controlplane.core.replacement import Replacement, State

ASKED_BY = "automatic"

# (disk key, region path, slot)
Key = tuple[UUID, str, int]


class Presence(Enum):
    """How a member looks from its machine."""

    SERVES = "serves"
    RETURNING = "is connected, and is on its way back"
    GONE = "is gone"


@dataclass(frozen=True, slots=True)
class MemberSeen:
    """One slot of a volume. `sourced` says whether another member of its set has what is to be
    copied; `trouble` is the machine's own word."""

    region_path: str
    slot: int
    target: str
    presence: Presence
    trouble: str = ""
    sourced: bool = True


@dataclass(frozen=True, slots=True)
class DiskSeen:
    """One disk. `members` is None while its machine does not answer; `newest` is its newest
    replacement that was not cancelled, `last` the last one that was begun unasked."""

    disk_key: UUID
    disk: str
    members: tuple[MemberSeen, ...] | None
    newest: Replacement | None = None
    last: Replacement | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """`faulted` are all that do not serve, with what each waits for; `begin` is the one of them
    that is to be replaced now."""

    faulted: tuple[FaultedMember, ...]
    begin: FaultedMember | None = None


def observe(
    known: Iterable[FaultedMember], seen: Iterable[DiskSeen], now: float
) -> list[FaultedMember]:
    """The members that do not serve, longest first. Members of disks that are not `seen` are
    forgotten: the disk is gone, or its instance does not run."""
    before = {key_of(each): each for each in known}
    found: list[FaultedMember] = []
    for disk in seen:
        if disk.members is None:
            found += [each for key, each in before.items() if key[0] == disk.disk_key]
            continue
        for member in disk.members:
            old = before.get((disk.disk_key, member.region_path, member.slot))
            if old is not None and old.target != member.target:
                old = None
            if member.presence is Presence.SERVES:
                continue
            if member.presence is Presence.RETURNING and old is None:
                continue
            found.append(
                FaultedMember(
                    disk_key=disk.disk_key,
                    disk=disk.disk,
                    region_path=member.region_path,
                    slot=member.slot,
                    target=member.target,
                    since=old.since if old is not None else now,
                    trouble=member.trouble,
                )
            )
    return sorted(found, key=lambda each: (each.since, each.disk, each.region_path, each.slot))


def decide(
    faulted: Iterable[FaultedMember],
    seen: Iterable[DiskSeen],
    policy: FleetPolicy,
    running: int,
    held: Mapping[Key, str],
    now: float,
) -> Decision:
    """What is done now. `running` is how many replacements run in the fleet, `held` says of
    members why an attempt to replace them did not begin."""
    disks = {each.disk_key: each for each in seen}
    begin: FaultedMember | None = None
    shown: list[FaultedMember] = []
    for member in faulted:
        why = next(_reasons(member, disks[member.disk_key], policy, running, held, now), "")
        if not why and begin is not None:
            same = begin.disk_key == member.disk_key
            why = (
                "another member of its disk is replaced first"
                if same
                else f"disk {begin.disk!r} is seen to first"
            )
        member = replace(member, waits_for=why)
        if not why:
            begin = member
        shown.append(member)
    return Decision(tuple(shown), begin)


def key_of(member: FaultedMember) -> Key:
    """What names a slot."""
    return member.disk_key, member.region_path, member.slot


def _reasons(
    member: FaultedMember,
    disk: DiskSeen,
    policy: FleetPolicy,
    running: int,
    held: Mapping[Key, str],
    now: float,
) -> Iterator[str]:
    """All that it waits for, what lasts longest first."""
    newest = disk.newest
    if not policy.automatic:
        yield "the fleet's policy is not automatic"
    if disk.members is None:
        yield "the machine of its disk does not answer, so nobody knows how it is"
        return
    here = next(
        each
        for each in disk.members
        if (each.region_path, each.slot) == (member.region_path, member.slot)
    )
    if newest is not None and not newest.state.ended:
        yield f"replacement {newest.id} of its disk is running, in state {newest.state}"
    if here.presence is Presence.RETURNING:
        yield "it is connected again and on its way back"
    last = disk.last
    if last is not None and _ended_badly(last, member):
        yield (
            f"replacement {last.id} of this slot was automatic and is {last.state}"
            f"{': ' * bool(last.last_error)}{last.last_error}; an operator has to look"
        )
    if policy.maintenance:
        yield "the fleet's maintenance switch is on"
    if now < member.since + policy.grace_seconds:
        ends = datetime.fromtimestamp(member.since + policy.grace_seconds, UTC)
        yield f"its grace time of {policy.grace_seconds:g} s ends at {ends:%Y-%m-%d %H:%M:%SZ}"
    if not here.sourced:
        yield "no other member of its set is there, so there is nothing to copy from"
    if running >= policy.at_once_max:
        yield f"{running} replacements run, and the fleet may have {policy.at_once_max} at once"
    if key_of(member) in held:
        yield held[key_of(member)]


def _ended_badly(last: Replacement, member: FaultedMember) -> bool:
    """Whether the last automatic replacement was of this very member and was not carried out: the
    one it brought is gone too, or the member it was for is the one that is still gone."""
    if (last.region_path, last.slot) != (member.region_path, member.slot):
        return False
    if last.state not in (State.FAILED, State.CANCELLED):
        return False
    still_gone = last.old_target == member.target and last.created_at >= member.since
    return still_gone or (last.state is State.FAILED and last.new_target == member.target)
