"""From what an operator wants ("slot 2 of that disk") to the construction request that says it.

Pure. The request is made from the recorded one: one target differs, and the generation of its
region is one higher, so that a machine that still has the former request is behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from controlplane.core.records import DiskRecord, region_at, with_target
from controlplane.core.replacement import Replacement
from stairlib.model.construction import (
    GENERATION_MAX,
    Construction,
    RegionSpec,
    VolumeSpec,
    children,
    regions,
)
from stairlib.model.errors import ConflictError, FieldViolation, InvalidRequestError


@dataclass(frozen=True, slots=True)
class Wish:
    """Which member goes: its slot, its address or both; `region_path` None where that is clear.
    An empty `new_target` leaves the choice to the placement rules."""

    slot: int | None = None
    old_target: str = ""
    region_path: str | None = None
    new_target: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """The slot a wish is about."""

    region_path: str
    slot: int
    target: str
    region: RegionSpec


def locate(disk: DiskRecord, wish: Wish) -> Found:
    """The slot; InvalidRequestError when the wish names none, or several."""
    if wish.slot is None and not wish.old_target:
        raise _wrong("slot", "is needed: give the slot, or the member's address in old_target")
    found = list(_named(disk.construction, wish))
    if not found:
        raise _nowhere(disk, wish)
    if len(found) > 1:
        paths = ", ".join(each.region_path or "the region itself" for each in found)
        raise _wrong("region_path", f"is needed: disk {disk.name!r} has that slot in {paths}")
    return found[0]


def wanted(disk: DiskRecord, found: Found, new_target: str) -> Construction:
    """The recorded request with `new_target` in the slot, and its region's generation raised."""
    changed = with_target(disk.construction, found.region_path, found.slot, new_target)
    return _with_region_generation(changed, "", found.region_path, raised(found))


def raised(found: Found) -> int:
    """The generation that the region gets."""
    return min(found.region.generation + 1, GENERATION_MAX)


def is_same(newest: Replacement, wish: Wish) -> bool:
    """Whether a wish that names the new target is the one the newest replacement came from."""
    return (
        wish.new_target == newest.new_target
        and wish.old_target in ("", newest.old_target)
        and wish.slot in (None, newest.slot)
        and (wish.slot is not None or wish.old_target != "")
        and wish.region_path in (None, newest.region_path)
    )


def running(newest: Replacement) -> ConflictError:
    """The refusal of a wish while another replacement of the disk has not ended."""
    return ConflictError(
        f"replacement {newest.id} of disk {newest.disk!r} (slot {newest.slot},"
        f" {newest.old_target} by {newest.new_target}) is running, in state {newest.state}; wait"
        f" for its end, which `stairwell replacement watch {newest.id}` follows",
        reason="REPLACEMENT_RUNNING",
        replacement=str(newest.id),
        state=newest.state,
        disk=newest.disk,
    )


def _named(construction: Construction, wish: Wish) -> Iterator[Found]:
    for path, region in regions(construction):
        if wish.region_path not in (None, path):
            continue
        for slot, target in enumerate(region.options.targets):
            if wish.slot in (None, slot) and wish.old_target in ("", target):
                yield Found(path, slot, target, region)


def _nowhere(disk: DiskRecord, wish: Wish) -> InvalidRequestError:
    paths = [path for path, _region in regions(disk.construction)]
    if wish.region_path is not None and wish.region_path not in paths:
        listed = ", ".join(repr(path) for path in paths) or "none"
        return _wrong(
            "region_path",
            f"{wish.region_path!r} is no region of disk {disk.name!r}; it has {listed}",
        )
    members = ", ".join(
        f"{slot} {target}"
        for path in paths
        if wish.region_path in (None, path)
        for slot, target in enumerate(region_at(disk.construction, path).options.targets)
    )
    if wish.old_target and wish.slot is not None:
        text = f"{wish.old_target} is not in slot {wish.slot} of disk {disk.name!r}"
    elif wish.old_target:
        text = f"{wish.old_target} is no member of disk {disk.name!r}"
    else:
        text = f"disk {disk.name!r} has no slot {wish.slot}"
    field = "old_target" if wish.old_target else "slot"
    return _wrong(field, f"{text}; its members are {members or 'none'}")


def _with_region_generation(
    node: Construction, path: str, region_path: str, generation: int
) -> Construction:
    if isinstance(node, RegionSpec):
        return replace(node, generation=generation) if path == region_path else node
    if not isinstance(node, VolumeSpec):
        return node
    changed = {
        below: _with_region_generation(child, below, region_path, generation)
        for below, child in children(node, path)
    }
    parts = list(changed.values())
    subs = tuple(parts[: len(node.sub_volumes)])
    parent = parts[-1] if node.read_only_parent is not None else None
    return replace(node, sub_volumes=subs, read_only_parent=parent)


def _wrong(field: str, text: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"which member is meant is not clear: {field}: {text}",
        (FieldViolation(field, text, "UNCLEAR_MEMBER"),),
        reason="UNCLEAR_MEMBER",
    )
