"""The statements about places, looks, the policy, faulted members and drains. Each function runs
in one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from uuid import UUID

from sqlalchemy import Connection, delete, insert, select, update

from controlplane.core.drain import Drain, State
from controlplane.core.fleet import (
    FaultedMember,
    FleetEntry,
    FleetPolicy,
    Look,
    Making,
    Place,
    default_place,
)
from controlplane.core.records import DownstairsRecord, Role, targets
from controlplane.core.replacement import Replacement
from controlplane.store import fleet_rows, sql_disks, sql_replacements
from controlplane.store.schema import (
    drains,
    faulted_members,
    fleet,
    fleet_agents,
    fleet_looks,
    fleet_places,
    fleet_policy,
    makings,
    replacements,
)
from controlplane.store.sealing import Sealer
from stairlib.model.errors import NotFoundError, StateError

_POLICY_KEY = 1
DRAINS_MAX = 100


def register(connection: Connection, record: DownstairsRecord, place: Place) -> DownstairsRecord:
    """See `FleetCareStore.register_downstairs`."""
    stored = sql_disks.put_downstairs(connection, record)
    connection.execute(delete(fleet_places).where(fleet_places.c.address == place.address))
    connection.execute(insert(fleet_places).values(fleet_rows.place_row(place)))
    return stored


def deregister(connection: Connection, sealer: Sealer, address: str) -> None:
    """See `FleetCareStore.deregister_downstairs`."""
    known = sql_disks.downstairs(connection, address)
    if known is None:
        raise NotFoundError("downstairs", address)
    for running in sql_replacements.running(connection, sealer):
        if address in (running.old_target, running.new_target):
            raise StateError(
                f"replacement {running.id} of disk {running.disk!r} has to do with {address}; wait"
                " for its end",
                reason="DOWNSTAIRS_IN_USE",
                address=address,
                replacement=str(running.id),
            )
    users = [
        disk.name
        for disk in sql_disks.list_disks(connection, sealer, None, "", 0)
        if any(target == address for _path, target, _region in targets(disk.construction))
    ]
    if known.role is Role.MEMBER or users:
        named = f"disk {users[0]!r} names it" if users else f"volume {known.volume_id} has it"
        raise StateError(
            f"the downstairs at {address} is in use: {named}; replace it first, as with"
            f" `stairwell fleet drain {address}`",
            reason="DOWNSTAIRS_IN_USE",
            address=address,
        )
    for table in (fleet, fleet_places, fleet_looks):
        connection.execute(delete(table).where(table.c.address == address))


def entries(connection: Connection) -> list[FleetEntry]:
    """See `FleetCareStore.fleet`."""
    places = places_by_address(connection)
    looks = {
        row["address"]: fleet_rows.look_of(row)
        for row in connection.execute(select(fleet_looks)).mappings()
    }
    return [
        FleetEntry(
            record,
            places.get(record.address) or default_place(record.address),
            looks.get(record.address),
        )
        for record in sql_disks.list_downstairs(connection)
    ]


def places_by_address(connection: Connection) -> dict[str, Place]:
    """See `FleetCareStore.places`."""
    found = connection.execute(select(fleet_places)).mappings()
    return {row["address"]: fleet_rows.place_of(row) for row in found}


def save_looks(connection: Connection, looks: Iterable[Look]) -> None:
    """See `FleetCareStore.save_looks`."""
    known = set(connection.execute(select(fleet.c.address)).scalars())
    for look in looks:
        if look.address not in known:
            continue
        row = fleet_rows.look_row(look)
        if look.seen_at is None:
            # Nobody answered: when it last did stays known.
            same = select(fleet_looks.c.seen_at).where(fleet_looks.c.address == look.address)
            row["seen_at"] = connection.execute(same).scalar()
        connection.execute(delete(fleet_looks).where(fleet_looks.c.address == look.address))
        connection.execute(insert(fleet_looks).values(row))


def put_agent(connection: Connection, agent: Place) -> None:
    """See `FleetCareStore.put_agent`."""
    connection.execute(delete(fleet_agents).where(fleet_agents.c.address == agent.address))
    connection.execute(insert(fleet_agents).values(fleet_rows.agent_row(agent)))


def forget_agent(connection: Connection, address: str) -> None:
    """See `FleetCareStore.forget_agent`."""
    gone = connection.execute(delete(fleet_agents).where(fleet_agents.c.address == address))
    if not gone.rowcount:
        raise NotFoundError("agent", address)


def agents(connection: Connection) -> list[Place]:
    """See `FleetCareStore.agents`."""
    query = select(fleet_agents).order_by(fleet_agents.c.address)
    return [fleet_rows.agent_of(row) for row in connection.execute(query).mappings()]


def save_making(connection: Connection, making: Making) -> None:
    """See `FleetCareStore.save_making`."""
    forget_making(connection, making.replacement_id)
    connection.execute(insert(makings).values(fleet_rows.making_row(making)))


def forget_making(connection: Connection, replacement_id: UUID) -> None:
    """See `FleetCareStore.forget_making`."""
    connection.execute(delete(makings).where(makings.c.replacement_id == str(replacement_id)))


def list_makings(connection: Connection) -> list[Making]:
    """See `FleetCareStore.makings`."""
    query = select(makings).order_by(makings.c.created_at)
    return [fleet_rows.making_of(row) for row in connection.execute(query).mappings()]


def policy(connection: Connection) -> FleetPolicy:
    """See `FleetCareStore.fleet_policy`."""
    row = connection.execute(select(fleet_policy)).mappings().first()
    return fleet_rows.policy_of(row) if row is not None else FleetPolicy()


def set_policy(connection: Connection, wanted: FleetPolicy) -> None:
    """See `FleetCareStore.set_fleet_policy`."""
    connection.execute(delete(fleet_policy))
    row = {"key": _POLICY_KEY, **fleet_rows.policy_row(wanted)}
    connection.execute(insert(fleet_policy).values(row))


def faulted(connection: Connection) -> list[FaultedMember]:
    """See `FleetCareStore.faulted_members`."""
    query = select(faulted_members).order_by(
        faulted_members.c.since, faulted_members.c.disk, faulted_members.c.region_path,
        faulted_members.c.slot,
    )  # fmt: skip
    return [fleet_rows.faulted_of(row) for row in connection.execute(query).mappings()]


def set_faulted(connection: Connection, members: Iterable[FaultedMember]) -> None:
    """See `FleetCareStore.set_faulted_members`."""
    connection.execute(delete(faulted_members))
    found = [fleet_rows.faulted_row(each) for each in members]
    if found:
        connection.execute(insert(faulted_members), found)


def begin_drain(connection: Connection, drain: Drain) -> Drain:
    """See `FleetCareStore.begin_drain`."""
    known = newest_drain(connection, drain.target)
    if known is not None and known.state is State.RUNNING:
        return known
    if known is not None and known.state is State.DONE:
        # It may have got members since: the same drain goes on.
        known = replace(known, state=State.RUNNING, updated_at=drain.updated_at)
        same = drains.c.id == str(known.id)
        connection.execute(update(drains).where(same).values(fleet_rows.drain_row(known)))
        return known
    connection.execute(insert(drains).values(fleet_rows.drain_row(drain)))
    return drain


def end_drain(connection: Connection, drain: Drain) -> bool:
    """See `FleetCareStore.end_drain`."""
    before = [State.RUNNING.value]
    if drain.state is State.CANCELLED:
        before.append(State.DONE.value)
    changed = connection.execute(
        update(drains)
        .where(drains.c.id == str(drain.id), drains.c.state.in_(before))
        .values(fleet_rows.drain_row(drain))
    )
    return changed.rowcount == 1


def newest_drain(connection: Connection, target: str) -> Drain | None:
    """The newest drain of a target."""
    query = select(drains).where(drains.c.target == target).order_by(drains.c.number.desc())
    row = connection.execute(query.limit(1)).mappings().first()
    return fleet_rows.drain_of(row) if row is not None else None


def drain(connection: Connection, name: str) -> Drain:
    """See `FleetCareStore.drain`."""
    query = select(drains).where(drains.c.id == name.lower())
    row = connection.execute(query).mappings().first()
    found = fleet_rows.drain_of(row) if row is not None else newest_drain(connection, name)
    if found is None:
        raise NotFoundError("drain", name)
    return found


def list_drains(connection: Connection) -> list[Drain]:
    """See `FleetCareStore.list_drains`."""
    query = select(drains).order_by(drains.c.number.desc()).limit(DRAINS_MAX)
    return [fleet_rows.drain_of(row) for row in connection.execute(query).mappings()]


def holding_drains(connection: Connection) -> list[Drain]:
    """See `FleetCareStore.holding_drains`."""
    held = [state.value for state in State if state.holds]
    query = select(drains).where(drains.c.state.in_(held)).order_by(drains.c.number)
    return [fleet_rows.drain_of(row) for row in connection.execute(query).mappings()]


def replacements_asked_by(
    connection: Connection, sealer: Sealer, asked_by: str
) -> list[Replacement]:
    """See `FleetCareStore.replacements_asked_by`."""
    query = select(replacements.c.id).where(replacements.c.asked_by == asked_by)
    found = connection.execute(query.order_by(replacements.c.number)).scalars().all()
    return [sql_replacements.by_id(connection, sealer, UUID(each)) for each in found]


def last_asked_by(
    connection: Connection, sealer: Sealer, asked_by: str, disk_key: UUID
) -> Replacement | None:
    """See `FleetCareStore.last_asked_by`."""
    query = (
        select(replacements.c.id)
        .where(replacements.c.asked_by == asked_by, replacements.c.disk_key == str(disk_key))
        .order_by(replacements.c.number.desc())
        .limit(1)
    )
    found = connection.execute(query).scalar()
    return sql_replacements.by_id(connection, sealer, UUID(found)) if found else None
