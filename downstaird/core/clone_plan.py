"""What may be cloned into what: the decisions of `downstaird clone`, without I/O.

A clone is a new region with another region's data, stamps, owner and key check, and an id of its
own: as a member of its source's set it is as good as the original. No other set can take it for
writing: it belongs to somebody else, or to nobody and is not blank, and its stamps would mean
nothing there.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

from downstaird.core.engine import ExtentStates, Ownership, RegionDefinition
from downstaird.core.region_files import version_for, versions_of
from stairlib.model.errors import StateError

# Extents copied between two flushes: what an interrupted clone has to compare, not copy, again.
STEP_BYTES = 256 << 20
STEP_EXTENTS_MAX = 256


@dataclass(frozen=True, slots=True)
class Expected:
    """What the caller says the region is like; None where anything will do."""

    block_size: int | None = None
    extent_size: int | None = None
    extent_count: int | None = None
    encrypted: bool | None = None


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What the source says of its region. `incomplete` and `faulted` count extents."""

    definition: RegionDefinition
    ownership: Ownership
    read_only: bool
    incomplete: int
    faulted: int


def clone_definition(
    address: str, facts: SourceFacts, region_id: uuid.UUID, expected: Expected
) -> RegionDefinition:
    """What the clone is to be: as its source, but for the id, and in the newest format. StateError
    FORMAT_VERSION, REGION_INCOMPATIBLE, SAME_REGION, SOURCE_NOT_READ_ONLY or SOURCE_NOT_WHOLE."""
    source = facts.definition
    version = version_for(source.cipher)
    if source.format_version not in versions_of(source.cipher):
        raise StateError(
            f"the region at {address} has format version {source.format_version}, this program "
            f"makes version {version} of it: clone with the release that made the source",
            reason="FORMAT_VERSION",
            source=str(source.format_version),
            wanted=str(version),
        )
    _check_expected(address, source, expected)
    if source.id == region_id:
        raise StateError(
            f"the region at {address} is {region_id} itself: give the clone a UUID of its own",
            reason="SAME_REGION",
        )
    if not facts.read_only:
        raise StateError(
            f"the region at {address} is served for writing and may change while it is copied: "
            "restart that daemon with --mode ro",
            reason="SOURCE_NOT_READ_ONLY",
        )
    if facts.incomplete or facts.faulted:
        raise StateError(
            f"the region at {address} is not whole: {facts.incomplete} of its extents are "
            f"incomplete, {facts.faulted} damaged; clone another member, or activate the set "
            "read-write once so that it is repaired",
            reason="SOURCE_NOT_WHOLE",
        )
    return replace(source, id=region_id, format_version=version)


def _check_expected(address: str, source: RegionDefinition, expected: Expected) -> None:
    geometry = source.geometry
    for field, wanted, found in (
        ("block_size", expected.block_size, geometry.block_size),
        ("extent_size", expected.extent_size, geometry.blocks_per_extent),
        ("extent_count", expected.extent_count, geometry.extent_count),
        ("encrypted", expected.encrypted, source.encrypted),
    ):
        if wanted is not None and wanted != found:
            raise StateError(
                f"{field} differs: {_shown(wanted)} was asked for, the region at {address} has "
                f"{_shown(found)}; a "
                f"clone is like its source: leave the flag out, or name another source",
                reason="REGION_INCOMPATIBLE",
                field=field,
                wanted=_shown(wanted),
                source=_shown(found),
            )


def _shown(value: int) -> str:
    """A number, or yes or no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def extent_steps(definition: RegionDefinition) -> list[range]:
    """All extents in steps that end with a flush each."""
    geometry = definition.geometry
    step = min(STEP_EXTENTS_MAX, max(4, STEP_BYTES // geometry.extent_bytes))
    return [
        range(first, min(first + step, geometry.extent_count))
        for first in range(0, geometry.extent_count, step)
    ]


def check_unchanged(
    address: str, extent: int, copied: tuple[int, int], now: tuple[int, int]
) -> None:
    """StateError SOURCE_CHANGED unless the source's stamp is what it was when it was copied."""
    if copied != now:
        raise StateError(
            f"extent {extent} of the region at {address} has changed since it was copied (it was of"
            f" generation {copied[0]}, flush {copied[1]}, and is of {now[0]}, {now[1]}): somebody "
            "served it for writing meanwhile; keep it read-only and run the clone again",
            reason="SOURCE_CHANGED",
            extent=str(extent),
        )


def is_copy(states: ExtentStates, stamps: dict[int, tuple[int, int]]) -> bool:
    """Whether every extent is whole and bears the stamp that was copied."""
    found = zip(states.generations.tolist(), states.flushes.tolist(), strict=True)
    return not states.flags.any() and list(found) == [
        stamps.get(extent) for extent in range(len(states.flags))
    ]
