"""What the control plane knows of the fleet beside the roles of its downstairs: where each stands,
how it was when last looked at, what may be done unasked, and which members were found faulted.

Values only; times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from controlplane.core.preflight import RegionFacts
from controlplane.core.records import DownstairsRecord
from controlplane.core.repair_shares import RATE_MAX
from stairlib.model.construction import canonical_address
from stairlib.model.errors import FieldViolation, InvalidRequestError

# Ten minutes: longer than a host takes to restart.
GRACE_SECONDS = 600.0
GRACE_SECONDS_MAX = 30 * 86_400.0
AT_ONCE_MAX = 1000
NAME_LENGTH_MAX = 253


def checked_address(text: str, field: str) -> str:
    """The canonical form; InvalidRequestError when it is no address."""
    try:
        return canonical_address(text)
    except ValueError as error:
        raise InvalidRequestError(
            f"{text!r} is not an address: it {error}",
            (FieldViolation(field, str(error), "BAD_ADDRESS"),),
            reason="BAD_ADDRESS",
        ) from None


class Health(StrEnum):
    """What the last look found, in the words of the API; UNSPECIFIED before the first one."""

    UNSPECIFIED = "UNSPECIFIED"
    ANSWERS = "ANSWERS"
    AWAY = "AWAY"
    WRONG = "WRONG"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a downstairs stands. An empty `failure_domain` means that the host stands for it;
    `reserved_for` is the volume it is set aside for."""

    address: str
    host: str
    failure_domain: str = ""
    agent: str = ""
    reserved_for: UUID | None = None

    @property
    def domain(self) -> str:
        """What fails together with it."""
        return self.failure_domain or self.host


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a downstairs. `trouble` says what is wrong with it; `seen_at` is when it last
    answered; `free_bytes` is None when it did not say."""

    address: str
    at: float
    health: Health
    trouble: str = ""
    seen_at: float | None = None
    stored_bytes: int = 0
    free_bytes: int | None = None
    read_only: bool = False
    region_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class FleetEntry:
    """All that is known of one downstairs."""

    record: DownstairsRecord
    place: Place
    look: Look | None = None


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """What an agent says its host has to give."""

    host: str
    failure_domain: str
    free_bytes: int
    ports_free: int


@dataclass(frozen=True, slots=True)
class Making:
    """A region asked of an agent for a replacement, whose id it has. `address` is empty until the
    agent has said where it will be."""

    replacement_id: UUID
    agent: str
    created_at: float
    address: str = ""


@dataclass(frozen=True, slots=True)
class FleetPolicy:
    """What may be done unasked. `grace_seconds` is how long a member has to be faulted before it is
    replaced, `at_once_max` how many replacements may run in the fleet. All repairs of replacements
    together copy at most `repair_bytes_per_second`; 0 is no limit."""

    automatic: bool = False
    grace_seconds: float = GRACE_SECONDS
    maintenance: bool = False
    at_once_max: int = 1
    repair_bytes_per_second: int = 0


@dataclass(frozen=True, slots=True)
class FaultedMember:
    """A member that does not serve, `since` when; `waits_for` says why it is not replaced now."""

    disk_key: UUID
    disk: str
    region_path: str
    slot: int
    target: str
    since: float
    trouble: str
    waits_for: str = ""


def host_of(address: str) -> str:
    """The host of an address "host:port"; of "[v6]:port" without the brackets."""
    return address.rpartition(":")[0].strip("[]")


def default_place(address: str) -> Place:
    """Where a downstairs stands of which nobody said so."""
    return Place(address, host_of(address))


def looked(record: DownstairsRecord, at: float, facts: RegionFacts | None, trouble: str) -> Look:
    """What a look has found. `facts` is None when nobody answered, which `trouble` explains."""
    if facts is None:
        return Look(record.address, at, Health.AWAY, trouble)
    wrong = ""
    if record.region_id not in (None, facts.region_id):
        wrong = (
            f"it keeps region {facts.region_id}, and {record.region_id} is recorded; if it was made"
            " anew, register it again"
        )
    elif facts.faulted_extents:
        wrong = f"{facts.faulted_extents} extents of its region are damaged"
    return Look(
        address=record.address,
        at=at,
        health=Health.WRONG if wrong else Health.ANSWERS,
        trouble=wrong,
        seen_at=at,
        stored_bytes=facts.stored_bytes,
        free_bytes=facts.free_bytes,
        read_only=facts.read_only,
        region_id=facts.region_id,
    )


def checked_policy(policy: FleetPolicy) -> FleetPolicy:
    """The policy; InvalidRequestError with all that is wrong with it."""
    violations = []
    if not 0 <= policy.grace_seconds <= GRACE_SECONDS_MAX:
        text = f"must be from 0 to {GRACE_SECONDS_MAX:g} seconds, not {policy.grace_seconds:g}"
        violations.append(FieldViolation("grace", text, "OUT_OF_RANGE"))
    if not 1 <= policy.at_once_max <= AT_ONCE_MAX:
        text = f"must be from 1 to {AT_ONCE_MAX}, not {policy.at_once_max}"
        violations.append(FieldViolation("at_once_max", text, "OUT_OF_RANGE"))
    if not 0 <= policy.repair_bytes_per_second <= RATE_MAX:
        text = f"must be from 0 to {RATE_MAX}, not {policy.repair_bytes_per_second}"
        violations.append(FieldViolation("repair_bytes_per_second", text, "OUT_OF_RANGE"))
    _refuse("the fleet's policy", violations)
    return policy


def checked_place(place: Place) -> Place:
    """The place; InvalidRequestError with all that is wrong with it."""
    violations = []
    for name, value in (("host", place.host), ("failure_domain", place.failure_domain)):
        if len(value) > NAME_LENGTH_MAX or not value.isprintable() or value != value.strip():
            text = f"must be at most {NAME_LENGTH_MAX} printable characters, no space around them"
            violations.append(FieldViolation(name, text, "BAD_NAME"))
    if not place.host:
        violations.append(FieldViolation("host", "must not be empty", "BAD_NAME"))
    _refuse("where the downstairs stands", violations)
    return place


def _refuse(what: str, violations: Iterable[FieldViolation]) -> None:
    found = tuple(violations)
    if found:
        listed = "; ".join(f"{each.field}: {each.description}" for each in found)
        raise InvalidRequestError(f"{what}: {listed}", found, reason=found[0].reason)
