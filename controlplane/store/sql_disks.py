"""The statements about instances, disks and the fleet. Each function runs in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Select, delete, insert, select, update

from controlplane.core.leases import Kind
from controlplane.core.preflight import in_use
from controlplane.core.records import (
    Desired,
    DiskRecord,
    DownstairsRecord,
    InstanceRecord,
    InstanceState,
    Role,
    claims,
    generation,
)
from controlplane.store import rows, sql_leases
from controlplane.store.schema import disks, fleet, generations, instances, scrubs, spans
from controlplane.store.sealing import Sealer
from controlplane.store.sql_leases import Owner
from stairlib.model.construction import Construction
from stairlib.model.errors import AlreadyExistsError, ConflictError, NotFoundError

# No generation of a volume was handed out yet: one less than the first there is.
_NONE = -1


def add_instance(
    connection: Connection, sealer: Sealer, owner: Owner, instance: InstanceRecord,
    added: Sequence[DiskRecord],
) -> None:  # fmt: skip
    """See `InstanceStore.add_instance`."""
    _refuse_taken(connection, instances.c.name == instance.name, "instance", instance.name)
    _refuse_taken(connection, instances.c.id == str(instance.id), "instance", str(instance.id))
    row = rows.instance_row(instance) | sql_leases.columns(connection, owner)
    connection.execute(insert(instances).values(row))
    for index, disk in enumerate(added):
        _insert_disk(connection, sealer, disk, f"disks[{index}]")


def _insert_disk(connection: Connection, sealer: Sealer, disk: DiskRecord, field: str) -> None:
    _refuse_taken(connection, disks.c.name == disk.name, "disk", disk.name)
    volume = str(disk.volume_id)
    _refuse_taken(connection, disks.c.volume_id == volume, "volume", volume)
    connection.execute(insert(disks).values(rows.disk_row(disk, sealer)))
    add_members(connection, disk, f"{field}.volume_construction_request.")


def add_disk(connection: Connection, sealer: Sealer, disk: DiskRecord) -> None:
    """See `InstanceStore.add_disk`."""
    # Locked: nobody deletes it, or takes the slot, meanwhile.
    owner = select(instances.c.id).where(instances.c.id == str(disk.instance_id))
    if connection.execute(owner.with_for_update()).first() is None:
        raise NotFoundError("instance", disk.instance_name)
    there = disks.c.instance_id == str(disk.instance_id)
    query = select(disks.c.name).where(there, disks.c.slot == disk.slot)
    holder = connection.execute(query).scalar()
    if holder is not None and holder != disk.name:
        raise AlreadyExistsError(
            f"slot {disk.slot} of instance {disk.instance_name!r} is taken by disk {holder!r};"
            " choose another slot",
            reason="SLOT_TAKEN",
            disk=holder,
        )
    _insert_disk(connection, sealer, disk, "disk")


def forget_disk(connection: Connection, sealer: Sealer, disk_key: UUID) -> None:
    """See `InstanceStore.forget_disk`."""
    _give_back(connection, _members(connection, sealer, disks.c.key == str(disk_key)))
    _remove_disks(connection, disks.c.key == str(disk_key))


def remove_disk(connection: Connection, sealer: Sealer, disk_key: UUID) -> None:
    """See `InstanceStore.remove_disk`."""
    _retire(connection, _members(connection, sealer, disks.c.key == str(disk_key)))
    _remove_disks(connection, disks.c.key == str(disk_key))


def _refuse_taken(
    connection: Connection, condition: ColumnElement[bool], kind: str, name: str
) -> None:
    """AlreadyExistsError when a row matches."""
    table = instances if kind == "instance" else disks
    if connection.execute(select(table.c.name).where(condition)).first() is not None:
        raise AlreadyExistsError(
            f"{kind} {name!r} exists already; choose another name, or delete the instance that"
            " has it",
            reason=f"{kind.upper()}_EXISTS",
            kind=kind,
            name=name,
        )


def add_members(connection: Connection, disk: DiskRecord, prefix: str) -> None:
    """Makes the disk's targets members of its volume; StateError when one serves another."""
    for path, address, region in claims(disk.construction):
        known = downstairs(connection, address, lock=True)
        refuse_member(connection, known, disk.volume_id, address, f"{prefix}{path}")
        put_member(
            connection,
            known,
            DownstairsRecord(
                address=address,
                role=Role.MEMBER,
                region_id=known.region_id if known else None,
                volume_id=disk.volume_id,
                geometry=region.geometry,
                encrypted=region.encrypted,
            ),
        )


def refuse_member(
    connection: Connection,
    known: DownstairsRecord | None,
    volume: UUID,
    address: str,
    field: str,
) -> None:
    """StateError when the downstairs is a member of another recorded volume."""
    if known is None or known.role is not Role.MEMBER or known.volume_id in (None, volume):
        return
    query = select(disks.c.name).where(disks.c.volume_id == str(known.volume_id))
    holder = connection.execute(query).scalar()
    raise in_use(address, field, f"it is a member of disk {holder!r} (volume {known.volume_id})")


def put_member(
    connection: Connection, known: DownstairsRecord | None, record: DownstairsRecord
) -> None:
    """Overwrites the row of an address, or adds it where the look, which locked it, found none.

    A row that another control plane added since that look is not overwritten: the unique key
    refuses ours, and the transaction, run again, sees whose it is.
    """
    row = rows.downstairs_row(record)
    if known is None:
        connection.execute(insert(fleet).values(row))
        return
    connection.execute(update(fleet).where(fleet.c.address == record.address).values(row))


def confirm_instance(connection: Connection, instance_id: UUID, handed: Mapping[UUID, int]) -> None:
    """See `InstanceStore.confirm_instance`."""
    connection.execute(
        update(instances).where(instances.c.id == str(instance_id)).values(confirmed=True)
    )
    for volume, number in handed.items():
        known = _handed(connection, volume)
        _put_generation(connection, volume, known, max(number, known))


def forget_instance(connection: Connection, sealer: Sealer, instance_id: UUID) -> None:
    """See `InstanceStore.forget_instance`."""
    _give_back(connection, _members(connection, sealer, _of_instance(instance_id)))
    _remove(connection, instance_id)


def _give_back(connection: Connection, addresses: Sequence[str]) -> None:
    """These downstairs are no members any more, and never were."""
    for address in addresses:
        known = downstairs(connection, address, lock=True)
        assert known is not None
        if known.region_id is not None:
            # Somebody registered it: it was known before, and is a spare again.
            put_member(connection, known, replace(known, role=Role.SPARE, volume_id=None))
        else:
            connection.execute(delete(fleet).where(fleet.c.address == address))


def delete_instance(connection: Connection, sealer: Sealer, instance_id: UUID) -> None:
    """See `InstanceStore.delete_instance`."""
    _retire(connection, _members(connection, sealer, _of_instance(instance_id)))
    _remove(connection, instance_id)


def _retire(connection: Connection, addresses: Sequence[str]) -> None:
    connection.execute(
        update(fleet).where(fleet.c.address.in_(addresses)).values(role=Role.RETIRED.value)
    )


def _of_instance(instance_id: UUID) -> ColumnElement[bool]:
    return disks.c.instance_id == str(instance_id)


def _members(connection: Connection, sealer: Sealer, which: ColumnElement[bool]) -> list[str]:
    """The addresses that are members of these disks' volumes.

    The disks are locked: no replacement gives them another member until they are gone.
    """
    connection.execute(select(disks.c.key).where(which).with_for_update())
    found = connection.execute(_disks().where(which)).mappings()
    volumes = [str(rows.disk_of(row, sealer).volume_id) for row in found]
    query = select(fleet.c.address).where(
        fleet.c.volume_id.in_(volumes), fleet.c.role == Role.MEMBER.value
    )
    return list(connection.execute(query).scalars())


def _remove(connection: Connection, instance_id: UUID) -> None:
    _remove_disks(connection, _of_instance(instance_id))
    connection.execute(delete(instances).where(instances.c.id == str(instance_id)))


def _remove_disks(connection: Connection, which: ColumnElement[bool]) -> None:
    """With their scrubs, and the traces of those."""
    keys = select(disks.c.key).where(which)
    gone = connection.execute(select(scrubs).where(scrubs.c.disk_key.in_(keys))).mappings()
    traces = [rows.scrub_of(row).trace_id for row in gone]
    connection.execute(delete(spans).where(spans.c.trace_id.in_(traces)))
    connection.execute(delete(scrubs).where(scrubs.c.disk_key.in_(keys)))
    connection.execute(delete(disks).where(which))


def instance(connection: Connection, name_or_id: str) -> InstanceRecord:
    """See `InstanceStore.instance`."""
    query = select(instances).where(
        (instances.c.name == name_or_id) | (instances.c.id == name_or_id.lower())
    )
    row = connection.execute(query).mappings().first()
    if row is None:
        raise NotFoundError("instance", name_or_id)
    return rows.instance_of(row)


def list_instances(connection: Connection, after: str, limit: int) -> list[InstanceRecord]:
    """See `InstanceStore.list_instances`."""
    query = select(instances).where(instances.c.name > after).order_by(instances.c.name)
    return [rows.instance_of(row) for row in connection.execute(query.limit(limit)).mappings()]


def set_instance_state(
    connection: Connection, owner: Owner, instance_id: UUID, state: InstanceState, reason: str,
    epoch: int,
) -> InstanceRecord | None:  # fmt: skip
    """See `InstanceStore.set_instance_state`."""
    query = select(instances.c.state, instances.c.reason).where(instances.c.id == str(instance_id))
    row = connection.execute(query.with_for_update()).first()
    if row is None or (row.state, row.reason) == (state.value, reason):
        return None
    values = {
        "state": state.value,
        "reason": reason,
        "state_generation": instances.c.state_generation + 1,
    }
    sql_leases.fenced(connection, owner, Kind.INSTANCE, str(instance_id), epoch, values)
    return instance(connection, str(instance_id))


def set_desired(connection: Connection, instance_id: UUID, desired: Desired) -> None:
    """See `InstanceStore.set_desired`."""
    connection.execute(
        update(instances).where(instances.c.id == str(instance_id)).values(desired=desired.value)
    )


def next_generation(connection: Connection, volume: UUID, at_least: int) -> int:
    """See `InstanceStore.next_generation`."""
    return max(at_least, _handed(connection, volume) + 1)


def hand_out_generation(connection: Connection, volume: UUID, at_least: int) -> int:
    """See `InstanceStore.hand_out_generation`."""
    known = _handed(connection, volume)
    number = max(at_least, known + 1)
    _put_generation(connection, volume, known, number)
    return number


def _handed(connection: Connection, volume: UUID) -> int:
    """The highest generation handed out for a volume, `_NONE` when none was. Its row is locked."""
    query = select(generations.c.generation).where(generations.c.volume_id == str(volume))
    return int(connection.execute(query.with_for_update()).scalar() or _NONE)


def _put_generation(connection: Connection, volume: UUID, known: int, number: int) -> None:
    """Stores it; as in `put_member`, what another added since the look is not overwritten."""
    if known == _NONE:
        row = {"volume_id": str(volume), "generation": str(number)}
        connection.execute(insert(generations).values(row))
        return
    present = update(generations).where(generations.c.volume_id == str(volume))
    connection.execute(present.values(generation=str(number)))


def _disks() -> Select[tuple[object, ...]]:
    return select(disks, instances.c.name.label("instance_name")).join(
        instances, instances.c.id == disks.c.instance_id
    )


def disk(connection: Connection, sealer: Sealer, name_or_id: str) -> DiskRecord:
    """See `DiskStore.disk`."""
    query = _disks().where((disks.c.name == name_or_id) | (disks.c.volume_id == name_or_id.lower()))
    row = connection.execute(query).mappings().first()
    if row is None:
        raise NotFoundError("disk", name_or_id)
    return rows.disk_of(row, sealer)


def list_disks(
    connection: Connection, sealer: Sealer, instance_id: UUID | None, after: str, limit: int
) -> list[DiskRecord]:
    """See `DiskStore.list_disks`; a `limit` of zero means all."""
    query = _disks().where(disks.c.name > after).order_by(disks.c.name)
    if instance_id is not None:
        query = query.where(disks.c.instance_id == str(instance_id))
    if limit:
        query = query.limit(limit)
    return [rows.disk_of(row, sealer) for row in connection.execute(query).mappings()]


def record_construction(
    connection: Connection, sealer: Sealer, disk_key: UUID, expected: Construction,
    wanted: Construction,
) -> None:  # fmt: skip
    """See `DiskStore.record_construction`."""
    require_recorded(connection, sealer, disk_key, expected)
    connection.execute(
        update(disks)
        .where(disks.c.key == str(disk_key))
        .values(rows.recorded_columns(wanted, generation(wanted), sealer))
    )


def require_recorded(
    connection: Connection, sealer: Sealer, disk_key: UUID, expected: Construction
) -> None:
    """ConflictError unless `expected` is what is recorded for the disk.

    The disk is locked: what is found here is so until the transaction ends.
    """
    query = _disks().where(disks.c.key == str(disk_key)).with_for_update(of=disks)
    row = connection.execute(query).mappings().first()
    present = rows.disk_of(row, sealer) if row is not None else None
    if present is None or present.construction != expected:
        raise ConflictError(
            "the recorded construction request of the disk was changed meanwhile; look at it and"
            " send the request again",
            reason="RECORDED_VCR_CHANGED",
            disk=present.name if present else str(disk_key),
        )


def lock_disk(connection: Connection, disk_key: UUID) -> None:
    """Others that decide about the disk wait until this transaction has ended."""
    query = select(disks.c.key).where(disks.c.key == str(disk_key))
    connection.execute(query.with_for_update())


def downstairs(
    connection: Connection, address: str, *, lock: bool = False
) -> DownstairsRecord | None:
    """See `FleetStore.downstairs`; `lock` keeps others from changing it meanwhile."""
    query = select(fleet).where(fleet.c.address == address)
    if lock:
        query = query.with_for_update()
    row = connection.execute(query).mappings().first()
    return rows.downstairs_of(row) if row is not None else None


def list_downstairs(connection: Connection) -> list[DownstairsRecord]:
    """See `FleetStore.list_downstairs`."""
    query = select(fleet).order_by(fleet.c.address)
    return [rows.downstairs_of(row) for row in connection.execute(query).mappings()]


def put_downstairs(connection: Connection, record: DownstairsRecord) -> DownstairsRecord:
    """See `FleetStore.put_downstairs`."""
    known = downstairs(connection, record.address, lock=True)
    if known is not None:
        # A used daemon that serves another region now was made anew: it is a spare.
        used = known.role in (Role.RETIRED, Role.LEFTOVER)
        renewed = used and known.region_id not in (None, record.region_id)
        if not renewed:
            record = replace(record, role=known.role, volume_id=known.volume_id)
    put_member(connection, known, record)
    return record


def note_region(connection: Connection, address: str, region_id: UUID) -> None:
    """See `FleetStore.note_region`."""
    connection.execute(
        update(fleet).where(fleet.c.address == address).values(region_id=str(region_id))
    )


def set_role(connection: Connection, address: str, role: Role, volumes: Iterable[UUID]) -> None:
    """Gives a downstairs another role, if it is of one of the volumes."""
    connection.execute(
        update(fleet)
        .where(fleet.c.address == address, fleet.c.volume_id.in_([str(each) for each in volumes]))
        .values(role=role.value)
    )
