"""The statements about repair limits. Each function runs in one transaction."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, delete, insert, select

from controlplane.core.repair_shares import RepairWish
from controlplane.core.replacement import State
from controlplane.store.schema import repair_limits, replacements

_REPAIRING = (State.APPLY.value, State.REPAIR.value)


def wishes(connection: Connection) -> dict[UUID, RepairWish]:
    """See `RepairLimitStore.repair_wishes`."""
    return {
        UUID(row["volume_id"]): RepairWish(
            bytes_per_second_max=row["bytes_per_second_max"],
            bytes_per_second_min=row["bytes_per_second_min"],
            extents_in_flight_max=row["extents_in_flight_max"],
            adaptive=row["adaptive"],
        )
        for row in connection.execute(select(repair_limits)).mappings()
    }


def save_wish(connection: Connection, volume_id: UUID, wish: RepairWish) -> None:
    """See `RepairLimitStore.save_repair_wish`."""
    connection.execute(delete(repair_limits).where(repair_limits.c.volume_id == str(volume_id)))
    if wish == RepairWish():
        return
    connection.execute(
        insert(repair_limits).values(
            volume_id=str(volume_id),
            bytes_per_second_max=wish.bytes_per_second_max,
            bytes_per_second_min=wish.bytes_per_second_min,
            extents_in_flight_max=wish.extents_in_flight_max,
            adaptive=wish.adaptive,
        )
    )


def left(connection: Connection) -> list[tuple[UUID, int]]:
    """See `RepairLimitStore.repairs_left`."""
    table = replacements.c
    query = select(table.volume_id, table.bytes_total - table.bytes_done).where(
        table.state.in_(_REPAIRING)
    )
    return [
        (UUID(volume), max(0, int(count)))
        for volume, count in connection.execute(query.order_by(table.number))
    ]
