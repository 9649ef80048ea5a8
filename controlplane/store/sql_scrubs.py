"""The statements about scrubs. Each function runs in one transaction."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, insert, select, update

from controlplane.core.leases import Kind
from controlplane.core.records import Role, claims
from controlplane.core.scrub import Scrub, State
from controlplane.store import rows, sql_disks, sql_leases
from controlplane.store.schema import disks, scrubs
from controlplane.store.sealing import Sealer
from controlplane.store.sql_leases import Owner
from controlplane.store.sql_replacements import refuse_running
from stairlib.model.construction import Construction
from stairlib.model.errors import ConflictError, NotFoundError

_ENDED = [state.value for state in State if state.ended]


def lease_key(record: Scrub) -> str:
    """By what its lease is known."""
    return f"{record.disk_key}{sql_leases.SEPARATOR}{record.path}"


def begin(connection: Connection, owner: Owner, record: Scrub) -> int:
    """See `ScrubStore.begin_scrub`; the epoch of the lease."""
    query = select(disks.c.key).where(disks.c.key == str(record.disk_key)).with_for_update()
    if connection.execute(query).first() is None:
        raise NotFoundError("disk", record.disk)
    same = (scrubs.c.disk_key == str(record.disk_key)) & (scrubs.c.path == record.path)
    known = connection.execute(select(scrubs).where(same)).mappings().first()
    if known is None:
        row = rows.scrub_row(record) | sql_leases.columns(connection, owner)
        connection.execute(insert(scrubs).values(row))
        return 1
    if known["state"] not in _ENDED:
        raise ConflictError(
            f"a scrub of disk {record.disk!r} was started meanwhile; look at it",
            reason="SCRUB_RUNNING",
            disk=record.disk,
            path=record.path,
        )
    taken = sql_leases.taken_columns(connection, owner, scrubs)
    change = update(scrubs).where(same).values(rows.scrub_row(record) | taken)
    return int(connection.execute(change.returning(scrubs.c.lease_epoch)).scalar_one())


def save(connection: Connection, owner: Owner, record: Scrub, epoch: int) -> None:
    """See `ScrubStore.save_scrub`."""
    key, values = lease_key(record), rows.scrub_row(record)
    try:
        sql_leases.fenced(connection, owner, Kind.SCRUB, key, epoch, values)
    except NotFoundError:
        text = f"the scrub of disk {record.disk!r} is gone"
        raise NotFoundError("scrub", record.disk, text) from None


def drop_parent(
    connection: Connection, sealer: Sealer, owner: Owner, record: Scrub, original: Construction,
    wanted: Construction, epoch: int,
) -> None:  # fmt: skip
    """See `ScrubStore.drop_parent`."""
    sql_disks.lock_disk(connection, record.disk_key)
    refuse_running(connection, record)
    sql_disks.record_construction(connection, sealer, record.disk_key, original, wanted)
    # A parent's members are shared, and so nobody's, but for those that were not read-only.
    kept = {address for _path, address, _region in claims(wanted)}
    for _path, address, _region in claims(original):
        if address not in kept:
            sql_disks.set_role(connection, address, Role.RETIRED, [record.volume_id])
    save(connection, owner, record, epoch)


def of_disk(connection: Connection, disk_key: UUID) -> list[Scrub]:
    """See `ScrubStore.scrubs`."""
    query = select(scrubs).where(scrubs.c.disk_key == str(disk_key)).order_by(scrubs.c.path)
    return [rows.scrub_of(row) for row in connection.execute(query).mappings()]


def running(connection: Connection) -> list[Scrub]:
    """See `ScrubStore.running_scrubs`."""
    query = select(scrubs).where(scrubs.c.state.not_in(_ENDED)).order_by(scrubs.c.created_at)
    return [rows.scrub_of(row) for row in connection.execute(query).mappings()]
