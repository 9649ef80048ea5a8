"""Messages to and from the values of the core."""

from __future__ import annotations

import uuid

import numpy as np

from downstaird.core.engine import FLAG_FAULTED, FLAG_INCOMPLETE
from downstaird.core.promotion import Proposal
from downstaird.region_host import RegionHost
from stairlib.model.errors import FieldViolation, InvalidRequestError
from stairlib.model.geometry import Geometry
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
    )


def region_message(host: RegionHost, version: str) -> region_pb.Region:
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
    )
