"""Read-only parents of a recorded request: which a request drops, and the request without one.

Pure. A parent serves the blocks that its volume does not own. A recorded request that has lost its
parent before all of them were copied has lost these blocks, so nothing but the end of a scrub
drops one. The request recorded then raises every generation above the highest one recorded
before, in all regions: so it is a rise of generations and nothing else to `compare`, wherever the
parent was, and `recorded_generation` never falls, though the parent may have had the highest one.
"""

from __future__ import annotations

from dataclasses import replace

from controlplane.core.records import generation, with_generation
from stairlib.model.construction import (
    PARENT,
    U64_MAX,
    Construction,
    VolumeSpec,
    children,
    in_parent,
    join_path,
    walk,
)
from stairlib.model.construction_diff import Outcome, compare
from stairlib.model.errors import NotFoundError, StateError


def parents(construction: Construction) -> list[str]:
    """The paths of the volumes that a scrub can free of their parents, outermost first.

    What is inside a parent is never written, and so keeps the parents it has.
    """
    return [
        path
        for path, node in walk(construction)
        if isinstance(node, VolumeSpec)
        and node.read_only_parent is not None
        and node.sub_volumes
        and not in_parent(path)
    ]


def dropped(original: Construction, wanted: Construction) -> list[str]:
    """The paths of the volumes that have a parent in `original` and none in `wanted`.

    Nodes that stand in one of the two alone are not looked at.
    """
    after = dict(walk(wanted))
    found = []
    for path, node in walk(original):
        other = after.get(path)
        if isinstance(node, VolumeSpec) and isinstance(other, VolumeSpec):
            gone = node.read_only_parent is not None and other.read_only_parent is None
            found += [path] * gone
    return found


def without_parent(construction: Construction, path: str, *, disk: str) -> Construction:
    """The request to record once the parent of the volume at `path` was copied.

    NotFoundError when there is no volume at `path`; StateError (NO_PARENT, IN_PARENT,
    NOTHING_TO_COPY_INTO, NOT_RECORDABLE) when it cannot be freed of a parent. `disk` is the name
    for these messages.
    """
    _check(construction, path, disk)
    if generation(construction) >= U64_MAX:
        raise StateError(
            f"the generation of disk {disk!r} cannot be raised any more",
            reason="NOT_RECORDABLE",
            disk=disk,
            path=path,
        )
    cut = _cut(construction, "", path)
    wanted = with_generation(cut, generation(construction) + 1)
    comparison = compare(construction, wanted)
    if comparison.outcome is not Outcome.GENERATION_ONLY:
        listed = "; ".join(f"{each.field} {each.description}" for each in comparison.violations)
        raise StateError(
            f"the parent of {volume_words(path)} of disk {disk!r} cannot be dropped from the"
            f" recorded request, which could not be replaced by the one without it: {listed}",
            reason="NOT_RECORDABLE",
            disk=disk,
            path=path,
        )
    return wanted


def volume_words(path: str) -> str:
    """The volume at a path, in messages."""
    return f"the volume at {path}" if path else "the outermost volume"


def parent_path(path: str) -> str:
    """The path of the parent of the volume at `path`."""
    return join_path(path, PARENT)


def is_below(region_path: str, parent: str) -> bool:
    """Whether the node at `region_path` is the one at `parent` or inside it."""
    return region_path == parent or region_path.startswith((f"{parent}.", f"{parent}["))


def _check(construction: Construction, path: str, disk: str) -> None:
    """Raises unless there is a volume at `path` whose parent can be copied into it."""
    node = dict(walk(construction)).get(path)
    if not isinstance(node, VolumeSpec) and path:
        having = [each or "the outermost (leave the path out)" for each in parents(construction)]
        raise NotFoundError(
            "volume",
            path,
            f"disk {disk!r} has no volume at {path!r}; its volumes with a parent are: "
            + (", ".join(having) or "none"),
        )
    if not isinstance(node, VolumeSpec) or node.read_only_parent is None:
        reason, text = "NO_PARENT", "has no read-only parent: there is nothing to copy"
    elif in_parent(path):
        reason = "IN_PARENT"
        text = "is part of a read-only parent, which is never written; scrub the volume above it"
    elif not node.sub_volumes:
        reason = "NOTHING_TO_COPY_INTO"
        text = "has no sub-volumes that could take its parent's blocks"
    else:
        return
    raise StateError(
        f"{volume_words(path)} of disk {disk!r} {text}", reason=reason, disk=disk, path=path
    )


def _cut(node: Construction, at: str, path: str) -> Construction:
    """The same node without the parent of the volume at `path`; `at` is the node's own path."""
    if not isinstance(node, VolumeSpec):
        return node
    if at == path:
        return replace(node, read_only_parent=None)
    # A parent is no place to cut, so only sub-volumes are looked at.
    subs = tuple(
        _cut(child, below, path)
        for below, child in children(replace(node, read_only_parent=None), at)
    )
    return replace(node, sub_volumes=subs)
