"""Records to rows and back. Column names are those of `schema`; secrets pass through the sealer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping

from controlplane.core.progress import Progress
from controlplane.core.records import (
    Desired,
    DiskRecord,
    DownstairsRecord,
    InstanceRecord,
    InstanceState,
    Role,
)
from controlplane.core.replacement import Replacement, State, Transition
from controlplane.core.scrub import Scrub
from controlplane.core.scrub import State as ScrubState
from controlplane.store.fleet_rows import placement_of, placement_text
from controlplane.store.sealing import Sealer
from stairlib.model.construction import Construction
from stairlib.model.geometry import Geometry
from stairlib.wire.construction import from_json, to_json

Row = RowMapping


def construction_columns(
    construction: Construction, sealer: Sealer, text: str, sealed: str
) -> dict[str, Any]:
    """The two columns of a construction request, named `text` and `sealed`."""
    whole = to_json(construction)
    shown = to_json(construction, secrets=False)
    return {text: shown, sealed: sealer.seal(whole) if shown != whole else None}


def construction_of(row: Row, sealer: Sealer, text: str, sealed: str) -> Construction:
    """The construction request of two columns."""
    secret = row[sealed]
    return from_json(row[text] if secret is None else sealer.open(secret))


def instance_row(record: InstanceRecord) -> dict[str, Any]:
    """The row of an instance."""
    return {
        "id": str(record.id),
        "name": record.name,
        "state": record.state.value,
        "state_generation": record.state_generation,
        "desired": record.desired.value,
        "reason": record.reason,
        "cpus": record.cpus,
        "memory_mib": record.memory_mib,
        "request_id": record.request_id,
        "confirmed": record.confirmed,
        "created_at": record.created_at,
        "activate_with_two_after": record.activate_with_two_after,
    }


def instance_of(row: Row) -> InstanceRecord:
    """The instance of a row."""
    return InstanceRecord(
        id=UUID(row["id"]),
        name=row["name"],
        state=InstanceState(row["state"]),
        state_generation=row["state_generation"],
        desired=Desired(row["desired"]),
        reason=row["reason"],
        cpus=row["cpus"],
        memory_mib=row["memory_mib"],
        request_id=row["request_id"],
        confirmed=row["confirmed"],
        created_at=row["created_at"],
        activate_with_two_after=row["activate_with_two_after"],
    )


def disk_row(record: DiskRecord, sealer: Sealer) -> dict[str, Any]:
    """The row of a disk."""
    return {
        "key": str(record.key),
        "name": record.name,
        "device": record.device,
        "instance_id": str(record.instance_id),
        "slot": record.slot,
        "read_only": record.read_only,
        "plugged": record.plugged,
        "volume_id": str(record.volume_id),
        **recorded_columns(record.construction, record.recorded_generation, sealer),
    }


def recorded_columns(construction: Construction, generation: int, sealer: Sealer) -> dict[str, Any]:
    """The columns of a disk that change with its recorded request."""
    return {
        "generation": str(generation),
        **construction_columns(construction, sealer, "construction", "construction_sealed"),
    }


def disk_of(row: Row, sealer: Sealer) -> DiskRecord:
    """The disk of a row joined with its instance's name (as `instance_name`)."""
    return DiskRecord(
        key=UUID(row["key"]),
        name=row["name"],
        device=row["device"],
        instance_id=UUID(row["instance_id"]),
        instance_name=row["instance_name"],
        slot=row["slot"],
        read_only=row["read_only"],
        construction=construction_of(row, sealer, "construction", "construction_sealed"),
        plugged=row["plugged"],
    )


def downstairs_row(record: DownstairsRecord) -> dict[str, Any]:
    """The row of a downstairs."""
    geometry = record.geometry
    return {
        "address": record.address,
        "role": record.role.value,
        "region_id": record.region_id and str(record.region_id),
        "volume_id": record.volume_id and str(record.volume_id),
        "block_size": geometry and geometry.block_size,
        "blocks_per_extent": geometry and geometry.blocks_per_extent,
        "extent_count": geometry and geometry.extent_count,
        "encrypted": record.encrypted,
    }


def downstairs_of(row: Row) -> DownstairsRecord:
    """The downstairs of a row."""
    geometry = None
    if row["block_size"] is not None:
        geometry = Geometry(row["block_size"], row["blocks_per_extent"], row["extent_count"])
    return DownstairsRecord(
        address=row["address"],
        role=Role(row["role"]),
        region_id=row["region_id"] and UUID(row["region_id"]),
        volume_id=row["volume_id"] and UUID(row["volume_id"]),
        geometry=geometry,
        encrypted=row["encrypted"],
    )


def replacement_row(record: Replacement, sealer: Sealer) -> dict[str, Any]:
    """The whole row of a replacement."""
    return {
        "id": str(record.id),
        "disk_key": str(record.disk_key),
        "disk": record.disk,
        "instance_id": str(record.instance_id),
        "volume_id": str(record.volume_id),
        "path": record.path,
        "region_path": record.region_path,
        "slot": record.slot,
        "old_target": record.old_target,
        "new_target": record.new_target,
        "from_generation": str(record.from_generation),
        "to_generation": str(record.to_generation),
        "traceparent": record.traceparent,
        "trace_id": record.trace_id,
        "created_at": record.created_at,
        "target_was": record.target_was,
        "asked_by": record.asked_by,
        "placement": placement_text(record.placement),
        **construction_columns(record.original, sealer, "original_construction", "original_sealed"),
        **construction_columns(
            record.replacement, sealer, "replacement_construction", "replacement_sealed"
        ),
        **replacement_state_columns(record),
    }


def replacement_state_columns(record: Replacement) -> dict[str, Any]:
    """The columns that change while a replacement goes on."""
    return {
        "state": record.state.value,
        **progress_columns(record),
        "attempt": record.attempt,
        "next_attempt_at": record.next_attempt_at,
        "blocked_on": record.blocked_on,
        "last_error": record.last_error,
        "failed_in": record.failed_in and record.failed_in.value,
        "bytes_per_second_max": record.bytes_per_second_max,
        "paused_in": record.paused_in and record.paused_in.value,
        "blocked_since": record.blocked_since,
        "restarts": record.restarts,
        "mended": record.mended,
        "mending": record.mending,
    }


PROGRESS_COLUMNS = (
    "updated_at", "bytes_done", "bytes_total", "bytes_copied", "extents_done", "extents_total",
)  # fmt: skip


def progress_columns(record: Replacement) -> dict[str, Any]:
    """The columns that change with each look at a repair."""
    return {
        "updated_at": record.updated_at,
        "bytes_done": record.progress.bytes_done,
        "bytes_total": record.progress.bytes_total,
        "bytes_copied": record.progress.bytes_copied,
        "extents_done": record.progress.extents_done,
        "extents_total": record.progress.extents_total,
    }


def transition_row(record: Replacement, transition: Transition) -> dict[str, Any]:
    """The row of one line of a replacement's log."""
    return {
        "replacement_id": str(record.id),
        "number": transition.number,
        "state": transition.state.value,
        "at": transition.at,
        "event": transition.event,
        "detail": transition.detail,
    }


def transition_of(row: Row) -> Transition:
    """The log line of a row."""
    return Transition(
        number=row["number"],
        state=State(row["state"]),
        at=row["at"],
        event=row["event"],
        detail=row["detail"],
    )


def replacement_of(row: Row, log: Sequence[Row], sealer: Sealer) -> Replacement:
    """The replacement of a row and the rows of its log, in order. Rates are not stored."""
    return Replacement(
        id=UUID(row["id"]),
        disk_key=UUID(row["disk_key"]),
        disk=row["disk"],
        instance_id=UUID(row["instance_id"]),
        volume_id=UUID(row["volume_id"]),
        path=row["path"],
        region_path=row["region_path"],
        slot=row["slot"],
        old_target=row["old_target"],
        new_target=row["new_target"],
        from_generation=int(row["from_generation"]),
        to_generation=int(row["to_generation"]),
        original=construction_of(row, sealer, "original_construction", "original_sealed"),
        replacement=construction_of(row, sealer, "replacement_construction", "replacement_sealed"),
        traceparent=row["traceparent"],
        trace_id=row["trace_id"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        state=State(row["state"]),
        progress=Progress(
            bytes_done=row["bytes_done"],
            bytes_total=row["bytes_total"],
            bytes_copied=row["bytes_copied"],
            extents_done=row["extents_done"],
            extents_total=row["extents_total"],
        ),
        attempt=row["attempt"],
        next_attempt_at=row["next_attempt_at"],
        blocked_on=row["blocked_on"],
        last_error=row["last_error"],
        failed_in=State(row["failed_in"]) if row["failed_in"] else None,
        bytes_per_second_max=row["bytes_per_second_max"],
        paused_in=State(row["paused_in"]) if row["paused_in"] else None,
        blocked_since=row["blocked_since"],
        restarts=row["restarts"],
        mended=row["mended"],
        mending=row["mending"],
        target_was=row["target_was"],
        transitions=tuple(map(transition_of, log)),
        asked_by=row["asked_by"],
        placement=placement_of(row["placement"]),
    )


def scrub_row(record: Scrub) -> dict[str, Any]:
    """The row of a scrub."""
    return {
        "disk_key": str(record.disk_key),
        "path": record.path,
        "disk": record.disk,
        "instance_id": str(record.instance_id),
        "volume_id": str(record.volume_id),
        "state": record.state.value,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "bytes_done": str(record.bytes_done),
        "bytes_total": str(record.bytes_total),
        "bytes_per_second_max": record.bytes_per_second_max,
        "attempt": record.attempt,
        "next_attempt_at": record.next_attempt_at,
        "blocked_on": record.blocked_on,
        "last_error": record.last_error,
        "recorded_generation": str(record.recorded_generation),
    }


def scrub_of(row: Row) -> Scrub:
    """The scrub of a row."""
    return Scrub(
        disk_key=UUID(row["disk_key"]),
        disk=row["disk"],
        instance_id=UUID(row["instance_id"]),
        volume_id=UUID(row["volume_id"]),
        path=row["path"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        state=ScrubState(row["state"]),
        bytes_done=int(row["bytes_done"]),
        bytes_total=int(row["bytes_total"]),
        bytes_per_second_max=row["bytes_per_second_max"],
        attempt=row["attempt"],
        next_attempt_at=row["next_attempt_at"],
        blocked_on=row["blocked_on"],
        last_error=row["last_error"],
        recorded_generation=int(row["recorded_generation"]),
    )
