"""Places, looks, the policy, faulted members, drains and placements: to rows and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping

from controlplane.core.drain import Drain, State
from controlplane.core.fleet import FaultedMember, FleetPolicy, Health, Look, Making, Place
from controlplane.core.placement import Placement, Rejection

Row = RowMapping


def place_row(place: Place) -> dict[str, Any]:
    """The row of a place."""
    return {
        "address": place.address,
        "host": place.host,
        "failure_domain": place.failure_domain,
        "agent": place.agent,
        "reserved_for": place.reserved_for and str(place.reserved_for),
    }


def place_of(row: Row) -> Place:
    """The place of a row."""
    return Place(
        address=row["address"],
        host=row["host"],
        failure_domain=row["failure_domain"],
        agent=row["agent"],
        reserved_for=row["reserved_for"] and UUID(row["reserved_for"]),
    )


def agent_row(agent: Place) -> dict[str, Any]:
    """The row of an agent: where it listens and stands."""
    return {
        "address": agent.address,
        "host": agent.host,
        "failure_domain": agent.failure_domain,
    }


def agent_of(row: Row) -> Place:
    """The agent of a row."""
    return Place(row["address"], row["host"], row["failure_domain"])


def making_row(making: Making) -> dict[str, Any]:
    """The row of a making."""
    return {
        "replacement_id": str(making.replacement_id),
        "agent": making.agent,
        "address": making.address,
        "created_at": making.created_at,
    }


def making_of(row: Row) -> Making:
    """The making of a row."""
    return Making(UUID(row["replacement_id"]), row["agent"], row["created_at"], row["address"])


def look_row(look: Look) -> dict[str, Any]:
    """The row of a look."""
    return {
        "address": look.address,
        "at": look.at,
        "health": look.health.value,
        "trouble": look.trouble,
        "seen_at": look.seen_at,
        "stored_bytes": look.stored_bytes,
        "free_bytes": look.free_bytes,
        "read_only": look.read_only,
        "region_id": look.region_id and str(look.region_id),
    }


def look_of(row: Row) -> Look:
    """The look of a row."""
    return Look(
        address=row["address"],
        at=row["at"],
        health=Health(row["health"]),
        trouble=row["trouble"],
        seen_at=row["seen_at"],
        stored_bytes=row["stored_bytes"],
        free_bytes=row["free_bytes"],
        read_only=row["read_only"],
        region_id=row["region_id"] and UUID(row["region_id"]),
    )


def policy_row(policy: FleetPolicy) -> dict[str, Any]:
    """The row of the policy, but for its key."""
    return {
        "automatic": policy.automatic,
        "grace_seconds": policy.grace_seconds,
        "maintenance": policy.maintenance,
        "at_once_max": policy.at_once_max,
        "repair_bytes_per_second": policy.repair_bytes_per_second,
    }


def policy_of(row: Row) -> FleetPolicy:
    """The policy of its row."""
    return FleetPolicy(
        automatic=row["automatic"],
        grace_seconds=row["grace_seconds"],
        maintenance=row["maintenance"],
        at_once_max=row["at_once_max"],
        repair_bytes_per_second=row["repair_bytes_per_second"],
    )


def faulted_row(member: FaultedMember) -> dict[str, Any]:
    """The row of a faulted member."""
    return {
        "disk_key": str(member.disk_key),
        "region_path": member.region_path,
        "slot": member.slot,
        "disk": member.disk,
        "target": member.target,
        "since": member.since,
        "trouble": member.trouble,
        "waits_for": member.waits_for,
    }


def faulted_of(row: Row) -> FaultedMember:
    """The faulted member of a row."""
    return FaultedMember(
        disk_key=UUID(row["disk_key"]),
        disk=row["disk"],
        region_path=row["region_path"],
        slot=row["slot"],
        target=row["target"],
        since=row["since"],
        trouble=row["trouble"],
        waits_for=row["waits_for"],
    )


def drain_row(drain: Drain) -> dict[str, Any]:
    """The row of a drain."""
    return {
        "id": str(drain.id),
        "target": drain.target,
        "state": drain.state.value,
        "created_at": drain.created_at,
        "updated_at": drain.updated_at,
    }


def drain_of(row: Row) -> Drain:
    """The drain of a row."""
    return Drain(
        id=UUID(row["id"]),
        target=row["target"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        state=State(row["state"]),
    )


def placement_text(placement: Placement | None) -> str:
    """A placement as JSON; empty for none."""
    return json.dumps(asdict(placement), ensure_ascii=False) if placement is not None else ""


def placement_of(text: str) -> Placement | None:
    """The other way."""
    if not text:
        return None
    found = json.loads(text)
    return Placement(
        chosen=found["chosen"],
        named=found["named"],
        made_by=found["made_by"],
        warnings=tuple(found["warnings"]),
        rejections=tuple(Rejection(**each) for each in found["rejections"]),
    )
