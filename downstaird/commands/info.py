"""`downstaird info`: what a region is and how it was left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from downstaird.core.changes import changes_since
from downstaird.core.engine import Engine
from downstaird.regions import opened
from stairlib.wire.frame import FLAG_DIRTY, FLAG_FAULTED, FLAG_INCOMPLETE


def info(directory: Path, *, output: str, since: tuple[int, int] | None = None) -> int:
    """Prints it, for people or as JSON; with `since`, (generation, flush), also what was written
    after that flush."""
    with opened(directory) as engine:
        facts = _facts(engine)
        if since is not None:
            facts |= _changes(engine, since)
    if output == "json":
        print(json.dumps(facts, indent=2))
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = "none" if value is None else value
        print(f"{name.replace('_', ' '):<{width}}  {shown}")
    return 0


def _changes(engine: Engine, since: tuple[int, int]) -> dict[str, str | int | bool | None]:
    found = changes_since(engine.extent_states(), *since)
    geometry = engine.definition.geometry
    runs = (
        f"{first}-{first + count - 1}" if count > 1 else str(first) for first, count in found.runs
    )
    return {
        "changed_extents": found.extents,
        "changed_bytes_max": found.extents * geometry.blocks_per_extent * geometry.block_size,
        "changed": " ".join(runs) or None,
    }


def _facts(engine: Engine) -> dict[str, str | int | bool | None]:
    definition, ownership, states = engine.definition, engine.ownership, engine.extent_states()
    geometry = definition.geometry
    return {
        "region": str(definition.id),
        "block_size": geometry.block_size,
        "blocks_per_extent": geometry.blocks_per_extent,
        "extent_count": geometry.extent_count,
        "total_bytes": geometry.total_bytes,
        "stored_bytes": engine.stored_bytes(),
        "encrypted": definition.encrypted,
        "cipher": definition.cipher or None,
        "format_version": definition.format_version,
        "owner": str(ownership.owner_id) if ownership.owner_id is not None else None,
        "key_recorded": bool(ownership.key_check),
        "promoted_generation": ownership.generation,
        "newest_generation": int(states.generations.max(initial=0)),
        "newest_flush": int(states.flushes.max(initial=0)),
        "dirty_extents": int(np.count_nonzero(states.flags & FLAG_DIRTY)),
        "incomplete_extents": int(np.count_nonzero(states.flags & FLAG_INCOMPLETE)),
        "faulted_extents": int(np.count_nonzero(states.flags & FLAG_FAULTED)),
    }
