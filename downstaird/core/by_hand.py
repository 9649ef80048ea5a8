"""Checks of block access outside any session."""

from __future__ import annotations

from downstaird.core.engine import Engine, RegionDefinition
from stairlib.model.context import ContextArray, plain_contexts
from stairlib.model.errors import FieldViolation, InvalidRequestError, StateError
from stairlib.model.geometry import Geometry

# Below what a gRPC client takes in one message by default.
BYTES_MAX = 2 << 20


def next_flush(engine: Engine) -> int:
    """A flush number that neither an extent nor a snapshot has."""
    taken = max((facts.flush for facts in engine.list_snapshots()), default=0)
    return max(taken, int(engine.extent_states().flushes.max(initial=0))) + 1


def check_read(geometry: Geometry, block: int, count: int) -> None:
    """InvalidRequestError OUT_OF_RANGE past the end, or for more than 2 MiB."""
    limit = BYTES_MAX // geometry.block_size
    if not 1 <= count <= limit:
        raise _wrong("count", f"must be from 1 to {limit} blocks, not {count}")
    if block + count > geometry.block_count:
        raise _wrong("block", f"the region ends at block {geometry.block_count}")


def contexts_for(definition: RegionDefinition, block: int, data: bytes) -> ContextArray:
    """Contexts for plain data to be written at `block`. Refuses encrypted regions: the daemon has
    no key."""
    geometry = definition.geometry
    if definition.encrypted:
        raise StateError(
            "the region holds encrypted blocks, and only its upstairs has the key: write through "
            "the volume's machine",
            reason="REGION_ENCRYPTED",
        )
    if not data or len(data) % geometry.block_size:
        raise _wrong(
            "data", f"must be whole blocks of {geometry.block_size} bytes, not {len(data)}"
        )
    check_read(geometry, block, len(data) // geometry.block_size)
    return plain_contexts(data, geometry.block_size)


def _wrong(field: str, rule: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{field} {rule}", (FieldViolation(field, rule, "OUT_OF_RANGE"),), reason="OUT_OF_RANGE"
    )
