"""Two construction requests side by side, with what changed marked. Pure.

Both trees are walked together by position, as the judge compares them. A node that differs is shown
with its generation, its targets and every field that changed; what is the same is folded into a
line. Rows carry the numbers of the judge's objections, so that each stands at its place.

Secrets are never shown: of a key only whether there is one, and whether it is another; of a TLS
field nothing when it holds PEM text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import zip_longest

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from controlplane.cli.units import format_bytes
from stairlib.model.construction import (
    Construction,
    FileSpec,
    RegionOptions,
    RegionSpec,
    UrlSpec,
    VolumeSpec,
    join_path,
)

# Rows of one comparison; a person reads none beyond, and the objections are listed in any case.
ROWS_MAX = 400
_INDENT = 2
_PEM_MARK = "-----BEGIN"
_HIDDEN = "(hidden)"
_TLS = ("cert_pem", "key_pem", "root_cert_pem")
_OPTIONS = ("id", "lossy", "flush_timeout", "key", *_TLS, "control", "read_only")


class Change(StrEnum):
    """How the two sides of a row differ."""

    SAME = "same"
    CHANGED = "changed"
    ADDED = "added"
    REMOVED = "removed"


_MARKS = {Change.SAME: " ", Change.CHANGED: "~", Change.ADDED: "+", Change.REMOVED: "-"}
_STYLES = {Change.SAME: ("", ""), Change.CHANGED: ("yellow", "yellow")}
_STYLES |= {Change.ADDED: ("", "green"), Change.REMOVED: ("red", "")}


@dataclass(frozen=True, slots=True)
class Row:
    """One line: `name` and what stands there on either side, None where there is nothing.

    `path` is the field's, `depth` its level, `notes` the numbers of the objections to it, counted
    from 1. `folded` rows stand for more than they show.
    """

    path: str
    depth: int
    name: str
    old: str | None
    new: str | None
    change: Change
    notes: tuple[int, ...] = ()
    folded: bool = False


def rows(
    original: Construction, replacement: Construction, objections: Sequence[str] = ()
) -> list[Row]:
    """The rows of a comparison; `objections` are the field paths that the judge named, in order."""
    found = list(_node("", "", 0, original, replacement, _with_ancestors(objections)))
    places = {row.path: index for index, row in reversed(list(enumerate(found)))}
    for number, path in enumerate(objections, start=1):
        index = places[_nearest(path, places)]
        found[index] = replace(found[index], notes=(*found[index].notes, number))
    return found


def differences(found: Iterable[Row]) -> list[dict[str, str | None]]:
    """What differs, for programs: path, change, old and new as they are shown."""
    return [
        {"path": row.path, "change": row.change.value, "old": row.old, "new": row.new}
        for row in found
        if row.change is not Change.SAME
    ]


def table(found: Sequence[Row], old_name: str, new_name: str) -> Table:
    """The rows as two columns that share the width there is; long values go on below themselves."""
    view = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    view.add_column("", no_wrap=True)
    view.add_column(f"OLD {old_name}", overflow="fold", ratio=1)
    view.add_column(f"NEW {new_name}", overflow="fold", ratio=1)
    view.add_column("", no_wrap=True)
    for row in found[:ROWS_MAX]:
        old_style, new_style = _STYLES[row.change]
        style = "dim" if row.folded else ""
        view.add_row(
            Text(_MARKS[row.change], style=new_style or old_style),
            _cell(row, row.old, old_style or style),
            _cell(row, row.new, new_style or style),
            Text("".join(f"[{number}]" for number in row.notes), style="bold red"),
        )
    if len(found) > ROWS_MAX:
        view.add_row("", Text(f"... and {len(found) - ROWS_MAX} lines more", style="dim"), "", "")
    return view


def _cell(row: Row, value: str | None, style: str) -> Padding | str:
    if value is None:
        return ""
    text = f"{row.name}: {value}" if row.name else value
    return Padding(Text(text, style=style), (0, 0, 0, _INDENT * row.depth))


def _with_ancestors(paths: Iterable[str]) -> frozenset[str]:
    """The paths and every path above them, so that nothing with an objection below is folded."""
    found = {""}
    for path in paths:
        while path not in found:
            found.add(path)
            path = _above(path)
    return frozenset(found) if paths else frozenset()


def _above(path: str) -> str:
    return path[: max(path.rfind("."), path.rfind("["), 0)]


def _nearest(path: str, places: dict[str, int]) -> str:
    """The path itself, or the one above it that has a row; the root always has."""
    while path not in places:
        path = _above(path)
    return path


def _node(
    path: str,
    name: str,
    depth: int,
    old: Construction | None,
    new: Construction | None,
    noted: frozenset[str],
) -> Iterator[Row]:
    """The rows of the nodes at one place, and of what is below them."""
    if old is None or new is None:
        before, after = (None if one is None else _headline(one) for one in (old, new))
        change = Change.ADDED if old is None else Change.REMOVED
        yield Row(path, depth, name, before, after, change)
        return
    if old == new and path not in noted:
        text = f"{_headline(old)}, unchanged"
        yield Row(path, depth, name, text, text, Change.SAME, folded=True)
        return
    # What differs in volumes and regions is said below them; the others are no more than a line.
    inner = type(old) is type(new) and isinstance(old, VolumeSpec | RegionSpec)
    change = Change.SAME if inner or old == new else Change.CHANGED
    yield Row(path, depth, name, _headline(old), _headline(new), change)
    if isinstance(old, VolumeSpec) and isinstance(new, VolumeSpec):
        yield from _volume(path, depth + 1, old, new, noted)
    elif isinstance(old, RegionSpec) and isinstance(new, RegionSpec) and old != new:
        yield from _region(path, depth + 1, old, new)


def _volume(
    path: str, depth: int, old: VolumeSpec, new: VolumeSpec, noted: frozenset[str]
) -> Iterator[Row]:
    yield from _changed(path, "id", depth, str(old.id), str(new.id))
    yield from _changed(path, "block_size", depth, str(old.block_size), str(new.block_size))
    run: list[int] = []
    pairs = list(zip_longest(old.sub_volumes, new.sub_volumes))
    for index, (before, after) in enumerate(pairs):
        at = join_path(path, f"sub_volumes[{index}]")
        if before == after and at not in noted:
            run.append(index)
            continue
        yield from _same_subs(path, depth, run, pairs, noted)
        run = []
        yield from _node(at, f"sub_volumes[{index}]", depth, before, after, noted)
    yield from _same_subs(path, depth, run, pairs, noted)
    if old.read_only_parent is not None or new.read_only_parent is not None:
        at = join_path(path, "read_only_parent")
        yield from _node(
            at, "read_only_parent", depth, old.read_only_parent, new.read_only_parent, noted
        )


def _same_subs(
    path: str,
    depth: int,
    run: Sequence[int],
    pairs: Sequence[tuple[Construction | None, Construction | None]],
    noted: frozenset[str],
) -> Iterator[Row]:
    """Neighbours that are the same: one by its headline, several by their number."""
    if not run:
        return
    name = f"sub_volumes[{run[0]}]"
    if len(run) == 1:
        yield from _node(join_path(path, name), name, depth, *pairs[run[0]], noted)
        return
    text = f"{len(run)} unchanged"
    name = f"sub_volumes[{run[0]}] to [{run[-1]}]"
    at = join_path(path, f"sub_volumes[{run[0]}]")
    yield Row(at, depth, name, text, text, Change.SAME, folded=True)


def _region(path: str, depth: int, old: RegionSpec, new: RegionSpec) -> Iterator[Row]:
    before, after = old.geometry, new.geometry
    for name in ("block_size", "blocks_per_extent", "extent_count"):
        yield from _changed(
            path, name, depth, str(getattr(before, name)), str(getattr(after, name))
        )
    yield _field(path, "gen", depth, str(old.generation), str(new.generation))
    options = join_path(path, "opts")
    for name in _OPTIONS:
        one, other = _option(old.options, name), _option(new.options, name)
        if getattr(old.options, name) != getattr(new.options, name):
            other = "(hidden, another one)" if one == other else other
            yield _field(options, name, depth, one, other)
    for slot, (first, second) in enumerate(zip_longest(old.options.targets, new.options.targets)):
        yield _field(options, f"target[{slot}]", depth, first, second)


def _changed(path: str, name: str, depth: int, old: str, new: str) -> Iterator[Row]:
    if old != new:
        yield _field(path, name, depth, old, new)


def _field(path: str, name: str, depth: int, old: str | None, new: str | None) -> Row:
    if old is None:
        change = Change.ADDED
    elif new is None:
        change = Change.REMOVED
    else:
        change = Change.SAME if old == new else Change.CHANGED
    return Row(join_path(path, name), depth, name, old, new, change)


def _option(options: RegionOptions, name: str) -> str:
    """The value of an option as it may be shown."""
    value = getattr(options, name)
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case _ if name == "key" or _PEM_MARK in str(value):
            return _HIDDEN
        case _:
            return _printable(str(value))


def _printable(text: str) -> str:
    """A text that may hold anything, without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


def _headline(node: Construction) -> str:
    """A node in a few words."""
    match node:
        case VolumeSpec():
            count = len(node.sub_volumes)
            plural = "" if count == 1 else "s"
            return f"volume {str(node.id)[:8]}, {count} sub-volume{plural}"
        case RegionSpec():
            kinds = [format_bytes(node.geometry.total_bytes)]
            kinds += ["encrypted"] if node.encrypted else []
            kinds += ["read only"] if node.options.read_only else []
            return f"region, {', '.join(kinds)}"
        case FileSpec():
            return f"file {_printable(node.path)}"
        case UrlSpec():
            return f"url {_printable(node.url)}"
