"""The statements about scrubs. Each function runs in one transaction."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, delete, insert, select, update

from controlplane.core.records import Role, claims
from controlplane.core.scrub import Scrub, State
from controlplane.store import rows, sql_disks
from controlplane.store.schema import disks, replacements, scrubs, spans
from controlplane.store.sealing import Sealer
from controlplane.store.sql_replacements import RUNNING
from stairlib.model.construction import Construction
from stairlib.model.errors import ConflictError, NotFoundError

_ENDED = [state.value for state in State if state.ended]


def begin(connection: Connection, record: Scrub) -> None:
    """See `ScrubStore.begin_scrub`."""
    query = select(disks.c.key).where(disks.c.key == str(record.disk_key))
    if connection.execute(query).first() is None:
        raise NotFoundError("disk", record.disk)
    same = (scrubs.c.disk_key == str(record.disk_key)) & (scrubs.c.path == record.path)
    earlier = connection.execute(select(scrubs).where(same)).mappings().first()
    if earlier is not None:
        old = rows.scrub_of(earlier).trace_id
        connection.execute(delete(spans).where(spans.c.trace_id == old))
    connection.execute(delete(scrubs).where(same))
    connection.execute(insert(scrubs).values(rows.scrub_row(record)))


def save(connection: Connection, record: Scrub) -> None:
    """See `ScrubStore.save_scrub`."""
    same = (scrubs.c.disk_key == str(record.disk_key)) & (scrubs.c.path == record.path)
    changed = connection.execute(update(scrubs).where(same).values(rows.scrub_row(record)))
    if not changed.rowcount:
        raise NotFoundError("scrub", record.disk, f"the scrub of disk {record.disk!r} is gone")


def drop_parent(
    connection: Connection, sealer: Sealer, record: Scrub, original: Construction,
    wanted: Construction,
) -> None:  # fmt: skip
    """See `ScrubStore.drop_parent`."""
    query = select(replacements.c.id, replacements.c.state).where(
        replacements.c.disk_key == str(record.disk_key), RUNNING
    )
    running = connection.execute(query).first()
    if running is not None:
        raise ConflictError(
            f"replacement {running.id} of disk {record.disk!r} is running, in state"
            f" {running.state}; the parent is dropped after its end",
            reason="REPLACEMENT_RUNNING",
            replacement=running.id,
            state=running.state,
            disk=record.disk,
        )
    sql_disks.record_construction(connection, sealer, record.disk_key, original, wanted)
    # A parent's members are shared, and so nobody's, but for those that were not read-only.
    kept = {address for _path, address, _region in claims(wanted)}
    for _path, address, _region in claims(original):
        if address not in kept:
            sql_disks.set_role(connection, address, Role.RETIRED, [record.volume_id])
    save(connection, record)


def of_disk(connection: Connection, disk_key: UUID) -> list[Scrub]:
    """See `ScrubStore.scrubs`."""
    query = select(scrubs).where(scrubs.c.disk_key == str(disk_key)).order_by(scrubs.c.path)
    return [rows.scrub_of(row) for row in connection.execute(query).mappings()]


def running(connection: Connection) -> list[Scrub]:
    """See `ScrubStore.running_scrubs`."""
    query = select(scrubs).where(scrubs.c.state.not_in(_ENDED)).order_by(scrubs.c.created_at)
    return [rows.scrub_of(row) for row in connection.execute(query).mappings()]
