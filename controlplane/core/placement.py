"""Which downstairs takes a slot: one that fits, stands apart from the others, and has least to do.

Pure: the caller has looked at the fleet and hands over what it found. Every downstairs that is not
taken comes back with the reason: nobody has to guess why there is no spare, or why it is this one.

Of those that fit, the order of preference is: one set aside for this volume; room for the whole
region, not only for what it holds now; the failure domain with the fewest members, then the host
with the fewest; the most free space; the address.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

from controlplane.core.fleet import AgentFacts, Health, Place
from controlplane.core.preflight import RegionFacts
from controlplane.core.records import Role
from stairlib.model.cipher import describe_cipher
from stairlib.model.construction import RegionSpec
from stairlib.model.errors import StateError

# Rejections kept and shown. A larger fleet keeps those of the first addresses.
REJECTIONS_MAX = 200
# Reasons that go along with an error for programs; the text has them all.
_METADATA_MAX = 16

# A reason for programs, and the same in words.
Objection = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A downstairs as it is now. `facts` is what it says of its region, None when it did not
    answer, which `trouble` then explains; `volume_id` is the volume it is recorded with."""

    place: Place
    role: Role
    volume_id: UUID | None = None
    facts: RegionFacts | None = None
    health: Health = Health.UNSPECIFIED
    trouble: str = ""
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """A downstairs that is not taken, and why: `reason` for programs, `detail` for people."""

    address: str
    host: str
    failure_domain: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Placement:
    """What came of it. `chosen` is empty when nothing fits; `named` says that the caller named it,
    and `warnings` what the rules have against that; `made_by` is the agent that makes it."""

    chosen: str = ""
    named: bool = False
    warnings: tuple[str, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    made_by: str = ""


@dataclass(frozen=True, slots=True)
class Vacancy:
    """The slot to fill. `region` is the one it is in, `stay` where the members stand that stay,
    `cipher` how their regions are encrypted (empty when not, None when nobody knows),
    `stored_bytes` what the fullest of them holds; `drained` are the hosts and addresses that are
    being emptied."""

    volume_id: UUID
    region: RegionSpec
    leaves: str
    stay: tuple[Place, ...] = ()
    cipher: str | None = None
    stored_bytes: int = 0
    drained: frozenset[str] = frozenset()


def place(vacancy: Vacancy, candidates: Iterable[Candidate], load: Collection[Place]) -> Placement:
    """The choice. `load` is where the members of all volumes stand, one entry for each."""
    rejections: list[Rejection] = []
    fitting: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda each: each.place.address):
        why = next(_objections(vacancy, candidate), None)
        if why is None:
            fitting.append(candidate)
        else:
            rejections.append(_rejection(candidate.place, *why))
    if not fitting:
        return Placement(rejections=tuple(rejections[:REJECTIONS_MAX]))
    domains = Counter(each.domain for each in load)
    hosts = Counter(each.host for each in load)
    ranked = sorted(fitting, key=lambda each: _rank(vacancy, each, domains, hosts))
    best = ranked[0]
    rejections += [
        _rejection(each.place, "NOT_NEEDED", _preferred(vacancy, best, each, domains, hosts))
        for each in ranked[1:]
    ]
    rejections.sort(key=lambda each: each.address)
    return Placement(best.place.address, rejections=tuple(rejections[:REJECTIONS_MAX]))


def maker(
    vacancy: Vacancy, agents: Iterable[tuple[Place, AgentFacts | str]], load: Collection[Place]
) -> Placement:
    """The agent that is to make a region, as `made_by`, by the rules of spares; each agent comes
    with what it says, or with why it does not."""
    rejections: list[Rejection] = []
    fitting: list[tuple[bool, int, int, int, str]] = []
    domains = Counter(each.domain for each in load)
    hosts = Counter(each.host for each in load)
    for here, facts in sorted(agents, key=lambda each: each[0].address):
        why = next(_agent_objections(vacancy, here, facts), None)
        if why is not None:
            rejections.append(_rejection(here, *why))
            continue
        assert isinstance(facts, AgentFacts)
        small = facts.free_bytes < vacancy.region.geometry.total_bytes
        crowd = domains[here.domain], hosts[here.host]
        fitting.append((small, *crowd, -facts.free_bytes, here.address))
    best = min(fitting, default=None)
    return Placement(rejections=tuple(rejections), made_by=best[-1] if best is not None else "")


def _agent_objections(
    vacancy: Vacancy, here: Place, facts: AgentFacts | str
) -> Iterator[Objection]:
    """What speaks against having an agent make a region."""
    yield from _drained(vacancy, here)
    yield from _apart(vacancy, here)
    if isinstance(facts, str):
        yield "AGENT_AWAY", facts
        return
    if vacancy.region.options.read_only:
        yield "READ_ONLY_SET", "a member of a read-only set has to be a clone; clone it by hand"
    if vacancy.cipher is None:
        yield "CIPHER", "no member answers that would say how the regions of the set are encrypted"
    if not facts.ports_free:
        yield "NO_PORTS", "its agent has no port left"
    if facts.free_bytes < vacancy.stored_bytes:
        needed = vacancy.stored_bytes
        yield "NO_SPACE", f"{facts.free_bytes} bytes are free there, and {needed} are needed"


def named(vacancy: Vacancy, candidate: Candidate) -> Placement:
    """The placement of a downstairs that the caller named: whatever the preflight does not refuse
    is left to the caller, and said."""
    warnings = tuple(detail for _reason, detail in _apart(vacancy, candidate.place))
    return Placement(candidate.place.address, named=True, warnings=warnings)


def no_spare(disk: str, region_path: str, slot: int, found: Placement) -> StateError:
    """The refusal when nothing fits, with each candidate and its reason."""
    where = f"slot {slot} of {region_path or 'the region'} of disk {disk!r}"
    what = f"no downstairs of the fleet can take {where}"
    # A line for each: there may be many.
    listed = "".join(f"\n  {each.address}: {each.detail};" for each in found.rejections)
    advice = "register one that fits with `stairwell fleet register HOST:PORT --host HOST`"
    if not listed:
        return StateError(f"{what}: there is no spare; {advice}", reason="NO_SPARE", disk=disk)
    return StateError(
        f"{what}:{listed}\n{advice}",
        reason="NO_SPARE",
        disk=disk,
        slot=str(slot),
        **{f"rejected[{each.address}]": each.reason for each in found.rejections[:_METADATA_MAX]},
    )


def _objections(vacancy: Vacancy, candidate: Candidate) -> Iterator[Objection]:
    """All that speaks against a downstairs, the plainest first, as (reason, words)."""
    here, options = candidate.place, vacancy.region.options
    if here.address == vacancy.leaves:
        yield "LEAVES", "it is the member that is replaced"
    if here.address in options.targets:
        yield "MEMBER_OF_SET", "it is a member of this set"
    if candidate.role is Role.MEMBER:
        yield "IN_USE", f"it is a member of volume {candidate.volume_id}"
    if candidate.role is Role.RETIRED:
        yield "RETIRED", f"it was a member of volume {candidate.volume_id}; create its region anew"
    if candidate.role is Role.LEFTOVER:
        yield "LEFTOVER", "a replacement that was undone wrote to it; create its region anew"
    if here.reserved_for not in (None, vacancy.volume_id):
        yield "RESERVED", f"it is set aside for volume {here.reserved_for}"
    yield from _drained(vacancy, here)
    yield from _apart(vacancy, here)
    yield from _unfit(vacancy, candidate)


def _drained(vacancy: Vacancy, here: Place) -> Iterator[Objection]:
    for name in (here.address, here.host):
        if name in vacancy.drained:
            yield "DRAINED", f"{name} is drained; `stairwell fleet drain-cancel {name}` ends that"


def _apart(vacancy: Vacancy, here: Place) -> Iterator[Objection]:
    """What stands too close: no two members of a set on one host, or in one failure domain."""
    for other in vacancy.stay:
        if other.host == here.host:
            yield "SAME_HOST", f"host {here.host} has a member of the set already: {other.address}"
        elif other.domain == here.domain:
            text = f"failure domain {here.domain} has a member of the set already: {other.address}"
            yield "SAME_FAILURE_DOMAIN", text


def _unfit(vacancy: Vacancy, candidate: Candidate) -> Iterator[Objection]:
    """What is wrong with the region itself, or with the space under it."""
    facts, region = candidate.facts, vacancy.region
    if facts is None:
        yield "AWAY", candidate.trouble or "it does not answer"
        return
    if candidate.health is Health.WRONG:
        yield "WRONG", candidate.trouble
    if facts.geometry != region.geometry:
        text = f"its region has {facts.geometry.describe()}, not {region.geometry.describe()}"
        yield "GEOMETRY", text
    encrypted = region.options.key is not None
    if facts.encrypted != encrypted:
        yield "ENCRYPTION", f"its region is {describe_cipher(facts.cipher)}, unlike the volume"
    elif vacancy.cipher is not None and facts.cipher != vacancy.cipher:
        ours = describe_cipher(vacancy.cipher)
        yield "CIPHER", f"its region is {describe_cipher(facts.cipher)}, the volume's {ours}"
    if facts.read_only != region.options.read_only:
        access = "read-only" if facts.read_only else "read-write"
        yield "ACCESS", f"it serves its region {access}, unlike the set"
    if not region.options.read_only:
        yield from _taken(vacancy, facts)
    elif vacancy.stored_bytes and not facts.written:
        yield "BLANK", "nothing is copied to a member of a read-only set, and its region is empty"
    free = candidate.free_bytes
    if free is not None and not region.options.read_only and free < vacancy.stored_bytes:
        text = f"{free} bytes are free on its file system, and {vacancy.stored_bytes} are needed"
        yield "NO_SPACE", text


def _taken(vacancy: Vacancy, facts: RegionFacts) -> Iterator[Objection]:
    """Whom the region belongs to. Not even this volume's own comes back by itself: what is on it is
    some former state, and whoever left it there may want to look."""
    if facts.owner_id is not None:
        whose = "this volume" if facts.owner_id == vacancy.region.options.id else "volume"
        name = "" if whose == "this volume" else f" {facts.owner_id}"
        yield "TOUCHED", f"its region was used by {whose}{name} before; create it anew"
    elif facts.written:
        yield "TOUCHED", "something was written to its region; create it anew"
    if facts.active_session_id is not None:
        yield "IN_USE", f"session {facts.active_session_id} is using its region now"


def _rank(
    vacancy: Vacancy, candidate: Candidate, domains: Mapping[str, int], hosts: Mapping[str, int]
) -> tuple[bool, bool, int, int, int, str]:
    """The order of preference, smallest first."""
    here = candidate.place
    return (
        here.reserved_for is None,
        not _roomy(vacancy, candidate),
        domains.get(here.domain, 0),
        hosts.get(here.host, 0),
        -(candidate.free_bytes or 0),
        here.address,
    )


def _roomy(vacancy: Vacancy, candidate: Candidate) -> bool:
    free = candidate.free_bytes
    return free is None or free >= vacancy.region.geometry.total_bytes


def _preferred(
    vacancy: Vacancy,
    best: Candidate,
    other: Candidate,
    domains: Mapping[str, int],
    hosts: Mapping[str, int],
) -> str:
    """Why `best` was taken and not `other`, which fits too: the first rule in which they differ."""
    ranks = zip(
        _rank(vacancy, best, domains, hosts), _rank(vacancy, other, domains, hosts), strict=True
    )
    first = next(number for number, (one, two) in enumerate(ranks) if one != two)
    why = (
        "is set aside for this volume",
        "has room for the whole region",
        f"is in a failure domain with fewer members ({best.place.domain})",
        f"is on a host with fewer members ({best.place.host})",
        "has more free space",
        "is as good, and comes first by address",
    )[first]
    return f"it fits, but {best.place.address} {why}"


def _rejection(where: Place, reason: str, detail: str) -> Rejection:
    return Rejection(where.address, where.host, where.failure_domain, reason, detail)
