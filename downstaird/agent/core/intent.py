"""What a host is to have: one record per region, and the rules by which records come and change.

Invariants: an id is used once; no two regions that are not gone share a port; the regions that are
not gone stay within the budget. An `Intent` never changes: each function gives the next one, or the
same one where there is nothing to change, so that a caller can store it before it counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from uuid import UUID

from downstaird.agent.core.region_states import REGION, RegionEvent, RegionState
from downstaird.agent.core.snapshot_wishes import (
    KEPT,
    Wishes,
    WishEvent,
    WishState,
    asked,
    unasked,
    wish_named,
    wished,
)
from downstaird.core.snapshot_entry import SNAPSHOTS_MAX
from stairlib.model.errors import (
    AlreadyExistsError,
    FieldViolation,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    StateError,
)
from stairlib.model.geometry import Geometry

# gRPC, and the data connection on the port after it.
PORTS_EACH = 2
PORT_MAX = 65535
# Records of regions that are gone: enough that no id comes back by mistake, within one small file.
DESTROYED_KEPT = 4096
REASON_CHARACTERS = 1024
# Twice what a region can have: as many may be on their way out.
SNAPSHOTS_ASKED_MAX = 2 * SNAPSHOTS_MAX
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Wanted:
    """A region as asked for. `cipher` empty: not encrypted. `source` empty: it begins blank; else
    "host:port" of the region that it is a copy of."""

    id: UUID
    geometry: Geometry
    cipher: str = ""
    source: str = ""

    @property
    def read_only(self) -> bool:
        """Copies are: they serve as parents, and as members of read-only sets."""
        return bool(self.source)


@dataclass(frozen=True, slots=True)
class Record:
    """One region. `port` is its gRPC port, 0 once it is gone. `reason`: why it failed. `number`:
    the how many-th that was asked for. `snapshots`: those asked of the agent, in that order."""

    wanted: Wanted
    state: RegionState
    port: int
    number: int
    reason: str = ""
    snapshots: Wishes = ()

    @property
    def id(self) -> UUID:
        """The region's id."""
        return self.wanted.id

    @property
    def present(self) -> bool:
        """Whether it takes a port, and a place in the budget."""
        return self.state is not RegionState.DESTROYED


@dataclass(frozen=True, slots=True)
class PortRange:
    """The ports that regions may have, both ends included; each takes PORTS_EACH of them."""

    first: int
    last: int

    @property
    def places(self) -> int:
        """How many regions there are ports for."""
        return (self.last - self.first + 1) // PORTS_EACH

    def ports(self) -> range:
        """The gRPC port of each place."""
        return range(self.first, self.first + self.places * PORTS_EACH, PORTS_EACH)


def port_range(text: str) -> PortRange:
    """From "A-B"; InvalidRequestError."""
    first, dash, last = text.partition("-")
    if not (dash and text.isascii() and first.isdigit() and last.isdigit()):
        raise _wrong_ports(f"{text!r} is not a range of ports, as in 8810-8909")
    ports = PortRange(int(first[:6]), int(last[:6]))
    if not 1 <= ports.first <= ports.last <= PORT_MAX:
        raise _wrong_ports(f"{text} must rise, and keep 1 to {PORT_MAX}")
    if not ports.places:
        raise _wrong_ports(f"{text} is one port; each region takes {PORTS_EACH}")
    return ports


def _wrong_ports(text: str) -> InvalidRequestError:
    return InvalidRequestError(f"--ports {text}", (FieldViolation("--ports", text),))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a host gives. `capacity`: bytes that its regions may come to when full, 0 for any."""

    ports: PortRange
    capacity: int = 0


@dataclass(frozen=True, slots=True)
class Intent:
    """All records by id; `asked`: how many regions were ever asked for; `last_port`: given last."""

    records: Mapping[UUID, Record] = field(default_factory=lambda: MappingProxyType({}))
    asked: int = 0
    last_port: int = 0

    @property
    def provisioned(self) -> int:
        """Bytes that the regions which are not gone come to when full."""
        return sum(each.wanted.geometry.total_bytes for each in self.present())

    def present(self) -> list[Record]:
        """The records of regions that are not gone."""
        return [record for record in self.records.values() if record.present]

    def one(self, region: UUID) -> Record:
        """The record; NotFoundError."""
        found = self.records.get(region)
        if found is None:
            raise NotFoundError(
                "region",
                str(region),
                f"this agent has no region {region}: ask the one that made it, or ListRegions",
            )
        return found

    def with_record(self, record: Record) -> Intent:
        """The same with a record put in or changed, and no more of the gone ones than are kept."""
        records = {**self.records, record.id: record}
        gone = [each for each in records.values() if not each.present]
        for each in sorted(gone, key=lambda one: one.number)[: len(gone) - DESTROYED_KEPT]:
            del records[each.id]
        return replace(self, records=MappingProxyType(records))


def free_ports(intent: Intent, ports: PortRange) -> Iterator[int]:
    """Ports that no region has, the one given longest ago first: a request that still names a
    region which is gone meets nobody for as long as may be."""
    used = {record.port for record in intent.present()}
    places = ports.ports()
    after = [port for port in places if port > intent.last_port]
    for port in (*after, *(port for port in places if port <= intent.last_port)):
        # Another range may have been in force before, whose places were one port off.
        if not any(port + step in used for step in range(1 - PORTS_EACH, PORTS_EACH)):
            yield port


def already_there(intent: Intent, wanted: Wanted) -> Record | None:
    """The record of a region that was asked for just so before; None when the id is new.
    AlreadyExistsError, StateError REGION_DESTROYED."""
    record = intent.records.get(wanted.id)
    if record is None:
        return None
    differing = _differing(record.wanted, wanted)
    if differing:
        name, there, asked = differing
        raise AlreadyExistsError(
            f"region {wanted.id} exists with {name} {there}, not {asked}: ask for it as it is, or "
            "for another id",
            reason="REGION_DIFFERS",
            region=str(wanted.id),
            field=name,
        )
    if record.state in (RegionState.TOMBSTONED, RegionState.DESTROYED):
        raise StateError(
            f"region {wanted.id} was destroyed on this host; ids are used once: take a new one",
            reason="REGION_DESTROYED",
            region=str(wanted.id),
        )
    return record


def _differing(there: Wanted, asked: Wanted) -> tuple[str, str, str] | None:
    if there.geometry != asked.geometry:
        return "geometry", there.geometry.describe(), asked.geometry.describe()
    if there.cipher != asked.cipher:
        return "cipher", there.cipher or "none", asked.cipher or "none"
    if there.source != asked.source:
        return "source", there.source or "none", asked.source or "none"
    return None


def check_room(intent: Intent, wanted: Wanted, limits: Limits) -> None:
    """LimitError OVER_CAPACITY when the region does not fit the budget."""
    size, taken = wanted.geometry.total_bytes, intent.provisioned
    if limits.capacity and taken + size > limits.capacity:
        raise LimitError(
            f"region {wanted.id} is {size / _GIB:.2f} GiB, and {taken / _GIB:.2f} of the "
            f"{limits.capacity / _GIB:.2f} GiB that this host gives are taken: choose another "
            "host, destroy a region, or raise --capacity",
            reason="OVER_CAPACITY",
            size_bytes=str(size),
            provisioned_bytes=str(taken),
            capacity_bytes=str(limits.capacity),
        )


def no_ports(limits: Limits) -> LimitError:
    """The refusal where each port is taken."""
    ports = limits.ports
    return LimitError(
        f"no port of {ports.first}-{ports.last} is free for another region (each takes "
        f"{PORTS_EACH}): choose another host, destroy a region, or widen --ports",
        reason="NO_PORTS",
        ports=f"{ports.first}-{ports.last}",
    )


def requested(intent: Intent, wanted: Wanted, port: int) -> Intent:
    """With a record for a region that is new."""
    assert wanted.id not in intent.records
    record = Record(wanted, REGION.first, port, intent.asked + 1)
    return replace(intent, asked=intent.asked + 1, last_port=port).with_record(record)


def moved(intent: Intent, region: UUID, event: RegionEvent, reason: str = "") -> Intent:
    """With the region where the event leads; IllegalMoveError, NotFoundError."""
    record = intent.one(region)
    state = REGION.after(record.state, event)
    if state is record.state:
        return intent
    gone = state is RegionState.DESTROYED
    return intent.with_record(
        replace(
            record,
            state=state,
            port=0 if gone else record.port,
            snapshots=() if gone else record.snapshots,
            reason=reason[:REASON_CHARACTERS] if state is RegionState.FAILED else record.reason,
        )
    )


def destroyed(
    intent: Intent, region: UUID, there: frozenset[str], *, with_snapshots: bool
) -> Intent:
    """With a region to go. `there`: the snapshots it was last seen to have. StateError
    REGION_HAS_SNAPSHOTS for one that has or awaits some, unless `with_snapshots`; NotFoundError."""
    record = intent.one(region)
    wishes = record.snapshots
    going = {wish.name for wish in wishes if wish.state is WishState.DELETING}
    # One that was taken may have been deleted at the region itself since.
    coming = {wish.name for wish in wishes if wish.state in KEPT - {WishState.TAKEN}}
    names = sorted((there - going) | coming)
    if names and not with_snapshots and record.state is RegionState.CREATED:
        raise StateError(
            f"region {region} has snapshots ({', '.join(names[:10])}): delete them first, or say "
            "with_snapshots to destroy them with it",
            reason="REGION_HAS_SNAPSHOTS",
            region=str(region),
            snapshots=str(len(names)),
        )
    return moved(intent, region, RegionEvent.DESTROY_ASKED)


def snapshot_asked(intent: Intent, region: UUID, name: str) -> Intent:
    """With a snapshot of a region wanted. NotFoundError, StateError READ_ONLY, REGION_NOT_CREATED
    or SNAPSHOT_DELETING, LimitError SNAPSHOT_LIMIT."""
    record = _whose_snapshots(intent, region)
    kept = sum(wish.state in KEPT for wish in record.snapshots)
    if wish_named(record.snapshots, name) is None and len(record.snapshots) >= SNAPSHOTS_ASKED_MAX:
        raise LimitError(
            f"{kept} snapshots of region {region} were asked for, and "
            f"{len(record.snapshots) - kept} more failed or are being deleted; "
            f"{SNAPSHOTS_ASKED_MAX} is the most: delete one",
            reason="SNAPSHOT_LIMIT",
            limit=str(SNAPSHOTS_ASKED_MAX),
        )
    return _with_snapshots(intent, record, asked(record.snapshots, name))


def snapshot_unasked(intent: Intent, region: UUID, name: str) -> Intent:
    """With a snapshot of a region to go. NotFoundError, StateError READ_ONLY or
    REGION_NOT_CREATED."""
    record = _whose_snapshots(intent, region)
    return _with_snapshots(intent, record, unasked(record.snapshots, name))


def snapshot_moved(
    intent: Intent,
    region: UUID,
    name: str,
    event: WishEvent,
    *,
    flush: tuple[int, int] = (0, 0),
    reason: str = "",
) -> Intent:
    """With a snapshot where the event leads; the same where the region is to go, or the record was
    let go meanwhile. IllegalMoveError, NotFoundError."""
    record = intent.one(region)
    if record.state is not RegionState.CREATED or wish_named(record.snapshots, name) is None:
        return intent
    wishes = wished(record.snapshots, name, event, flush=flush, reason=reason)
    return _with_snapshots(intent, record, wishes)


def _with_snapshots(intent: Intent, record: Record, wishes: Wishes) -> Intent:
    if wishes is record.snapshots:
        return intent
    return intent.with_record(replace(record, snapshots=wishes))


def _whose_snapshots(intent: Intent, region: UUID) -> Record:
    record = intent.one(region)
    if record.state is not RegionState.CREATED:
        raise StateError(
            f"region {region} is {record.state.value}: ask for snapshots when it is created",
            reason="REGION_NOT_CREATED",
            region=str(region),
        )
    if record.wanted.read_only:
        raise StateError(
            f"region {region} is a copy and served read-only: take and delete snapshots of its "
            f"source, {record.wanted.source}",
            reason="READ_ONLY",
            region=str(region),
        )
    return record
