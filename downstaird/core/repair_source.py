"""Who may copy from a region, which of its extents, and which of their blocks."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from downstaird.core.engine import ExtentStates, Ownership
from downstaird.core.repair_plan import Run
from stairlib.model.errors import DataError, InvalidRequestError, RefusedError, StateError
from stairlib.wire.frame import FLAG_FAULTED, FLAG_INCOMPLETE


def check_caller(
    ownership: Ownership, upstairs_id: uuid.UUID, generation: int, *, read_only: bool
) -> None:
    """RefusedError OWNER_MISMATCH for another set, StateError GENERATION_MISMATCH for another
    generation than the one promoted last. A read-only region has no owner and serves everybody."""
    if read_only:
        return
    if ownership.owner_id != upstairs_id:
        raise RefusedError(
            f"upstairs {upstairs_id} does not own this region",
            reason="OWNER_MISMATCH",
            requested=str(upstairs_id),
        )
    if ownership.generation != generation:
        raise StateError(
            f"a copy for generation {generation} was asked for, but the region is at "
            f"generation {ownership.generation}",
            reason="GENERATION_MISMATCH",
            requested=str(generation),
            promoted=str(ownership.generation),
        )


def check_extent(states: ExtentStates, extent: int) -> None:
    """InvalidRequestError OUT_OF_RANGE, StateError EXTENT_INCOMPLETE or DataError
    EXTENT_FAULTED."""
    if extent >= len(states.flags):
        raise InvalidRequestError(
            f"there is no extent {extent}: the region has {len(states.flags)}",
            reason="OUT_OF_RANGE",
        )
    flags = int(states.flags[extent])
    if flags & FLAG_FAULTED:
        raise DataError(f"extent {extent} is damaged here", reason="EXTENT_FAULTED")
    if flags & FLAG_INCOMPLETE:
        raise StateError(
            f"extent {extent} is itself under repair here: copy from another member",
            reason="EXTENT_INCOMPLETE",
            extent=str(extent),
        )


def checked_runs(parts: Iterable[Run], blocks: int) -> list[Run]:
    """The same runs, ascending, not empty and within `blocks`. InvalidRequestError OUT_OF_RANGE
    otherwise."""
    found: list[Run] = []
    end = 0
    for part in parts:
        if part.first < end or part.count < 1 or part.first + part.count > blocks:
            raise InvalidRequestError(
                f"blocks {part.first} to {part.first + part.count} are not an ascending part of "
                f"the extent's {blocks} blocks",
                reason="OUT_OF_RANGE",
            )
        end = part.first + part.count
        found.append(part)
    return found
