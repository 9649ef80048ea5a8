"""Messages to and from the values of the core."""

from __future__ import annotations

import uuid

import numpy as np

from downstaird.core.engine import Ownership, RegionDefinition, SnapshotFacts
from downstaird.core.promotion import Proposal
from downstaird.region_host import RegionHost
from stairlib.model.cipher import CIPHERS, KEY_CHECK_BYTES, describe_cipher
from stairlib.model.errors import FieldViolation, InvalidRequestError
from stairlib.model.geometry import Geometry
from stairlib.wire.frame import FLAG_FAULTED, FLAG_INCOMPLETE
from stairwell.downstairs.v1 import block_service_pb2 as block_pb
from stairwell.downstairs.v1 import region_service_pb2 as region_pb


def uuid_of(text: str, field: str) -> uuid.UUID:
    """InvalidRequestError names the field when it is not a UUID."""
    try:
        return uuid.UUID(text)
    except ValueError:
        raise InvalidRequestError(
            f"{field} {text!r} is not a UUID", (FieldViolation(field, "must be a UUID"),)
        ) from None


def key_check_of(value: bytes, whose: str) -> bytes:
    """InvalidRequestError, which does not show it, unless it is one or empty. All zeros stand for
    none where it is stored."""
    if value and (len(value) != KEY_CHECK_BYTES or not any(value)):
        rule = f"must be {KEY_CHECK_BYTES} bytes, not all of them zero, or empty"
        raise InvalidRequestError(f"{whose}key_check {rule}", (FieldViolation("key_check", rule),))
    return value


def proposal_of(request: block_pb.OpenSessionRequest) -> Proposal:
    """What the caller asks for."""
    geometry = None
    if request.HasField("geometry"):
        asked = request.geometry
        geometry = Geometry(asked.block_size, asked.extent_size, asked.extent_count)
    return Proposal(
        upstairs_id=uuid_of(request.upstairs_id, "upstairs_id"),
        session_id=uuid_of(request.session_id, "session_id"),
        generation=request.generation,
        read_only=request.read_only,
        encrypted=request.encrypted,
        data_versions=tuple(request.data_versions),
        geometry=geometry,
        region_id=uuid_of(request.region_id, "region_id") if request.region_id else None,
        lossy=request.lossy,
        key_check=key_check_of(request.key_check, "") if request.encrypted else b"",
    )


def region_message(
    host: RegionHost, version: str, *, with_key_check: bool = False
) -> region_pb.Region:
    """The region as it is now."""
    definition, ownership = host.engine.definition, host.engine.ownership
    flags = host.engine.extent_states().flags
    writer = host.writer()
    return region_pb.Region(
        id=str(definition.id),
        geometry=region_pb.Geometry(
            block_size=definition.geometry.block_size,
            extent_size=definition.geometry.blocks_per_extent,
            extent_count=definition.geometry.extent_count,
        ),
        encrypted=definition.encrypted,
        read_only=host.read_only,
        promoted_generation=ownership.generation,
        owner_id=str(ownership.owner_id or ""),
        active_session_id=str(writer.session_id) if writer is not None else "",
        format_version=definition.format_version,
        incomplete_extents=int(np.count_nonzero(flags & FLAG_INCOMPLETE)),
        faulted_extents=int(np.count_nonzero(flags & FLAG_FAULTED)),
        stored_bytes=host.engine.stored_bytes(),
        version=version,
        written=not host.blank,
        cipher=definition.cipher,
        key_check=ownership.key_check if with_key_check else b"",
    )


def snapshot_message(facts: SnapshotFacts) -> region_pb.Snapshot:
    """A snapshot as it is listed."""
    return region_pb.Snapshot(
        name=facts.name,
        generation=facts.generation,
        flush_number=facts.flush,
        unique_bytes=facts.unique_bytes,
        total_bytes=facts.total_bytes,
        settled=facts.settled,
        damaged=facts.damaged,
    )


def definition_of(message: region_pb.Region) -> RegionDefinition:
    """What another daemon says its region is. InvalidRequestError when that cannot be."""
    asked = message.geometry
    geometry = Geometry(asked.block_size, asked.extent_size, asked.extent_count)
    problems = geometry.problems()
    if problems:
        raise InvalidRequestError(
            "; ".join(f"the source's {field}: {rule}" for field, rule in problems)
        )
    if message.encrypted and message.cipher not in CIPHERS:
        raise InvalidRequestError(
            f"the source's region is {describe_cipher(message.cipher or 'nothing it names')}, and "
            f"this program knows {', '.join(CIPHERS)}: clone with the release that made it",
            reason="CIPHER_UNKNOWN",
        )
    return RegionDefinition(
        id=uuid_of(message.id, "id"),
        geometry=geometry,
        cipher=message.cipher,
        format_version=message.format_version,
    )


def ownership_of(message: region_pb.Region) -> Ownership:
    """Whom another daemon's region belongs to; of the session nothing is told."""
    owner = uuid_of(message.owner_id, "owner_id") if message.owner_id else None
    check = key_check_of(message.key_check, "the source's ") if message.encrypted else b""
    return Ownership(owner, None, message.promoted_generation, check)
