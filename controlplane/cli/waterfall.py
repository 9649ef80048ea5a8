"""A trace as a waterfall: who did what, when, for how long, under whom. Pure.

Invariants: every span is shown or counted in a fold; a span whose parent was not collected (the
caller's own, or one that has left a daemon's memory) is a root; a cycle in damaged data ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controlplane.cli.units import format_seconds
from stairwell.telemetry.v1.trace_service_pb2 import Span

BAR_CELLS = 32
# Siblings of one name and service above this number are folded into one row.
FOLD_ABOVE = 6
# Of a folded group, the slowest ones keep rows of their own.
FOLD_KEEPS = 2


@dataclass(slots=True)
class Node:
    """A span and the spans begun under it, in order of their start."""

    span: Span
    children: list[Node] = field(default_factory=list)

    @property
    def nanoseconds(self) -> int:
        """Its duration; never negative, since clocks of two daemons may disagree."""
        return max(0, self.span.end_time_unix_nano - self.span.start_time_unix_nano)


@dataclass(frozen=True, slots=True)
class Row:
    """One line: times in seconds from the trace's start; `folded` spans stand behind it."""

    depth: int
    name: str
    service: str
    start: float
    seconds: float
    status: str
    folded: int = 0


def forest(spans: Iterable[Span]) -> list[Node]:
    """The spans as trees, roots and children by start; a span sent twice counts once."""
    nodes = {span.span_id: Node(span) for span in spans}
    roots: list[Node] = []
    for node in sorted(nodes.values(), key=lambda one: one.span.start_time_unix_nano):
        above = nodes.get(node.span.parent_span_id)
        if above is None or _is_above(node, above, nodes):
            roots.append(node)
        else:
            above.children.append(node)
    return roots


def _is_above(node: Node, below: Node, nodes: dict[str, Node]) -> bool:
    """Whether `node` is `below` or one of its ancestors, which would make a cycle."""
    seen: set[str] = set()
    walk: Node | None = below
    while walk is not None and walk.span.span_id not in seen:
        if walk is node:
            return True
        seen.add(walk.span.span_id)
        walk = nodes.get(walk.span.parent_span_id)
    return False


def rows(spans: Sequence[Span], *, fold: bool = True) -> list[Row]:
    """The lines of the waterfall, top to bottom."""
    if not spans:
        return []
    origin = min(span.start_time_unix_nano for span in spans)
    out: list[Row] = []
    # Depth first with an explicit stack: a trace may be deeper than Python's own.
    stack: list[tuple[int, Node | Row]] = [(0, node) for node in reversed(forest(spans))]
    while stack:
        depth, item = stack.pop()
        if isinstance(item, Row):
            out.append(item)
            continue
        out.append(_row(item, depth, origin))
        below = _folded(item.children, depth + 1, origin) if fold else list(item.children)
        stack += [(depth + 1, one) for one in reversed(below)]
    return out


def _row(node: Node, depth: int, origin: int) -> Row:
    span = node.span
    start = (span.start_time_unix_nano - origin) / 1e9
    status = span.status if span.status == "ERROR" else ""
    if status and span.status_message:
        status = f"{status}: {span.status_message}"
    return Row(depth, short_name(span.name), _where(span), start, node.nanoseconds / 1e9, status)


def short_name(name: str) -> str:
    """A method without its package: "x.v1.DiskService/GetDisk" → "DiskService/GetDisk"."""
    service, slash, method = name.rpartition("/")
    return f"{service.rpartition('.')[2]}/{method}" if slash else name


def _where(span: Span) -> str:
    return f"{span.service} {span.instance}".rstrip()


def _folded(children: list[Node], depth: int, origin: int) -> list[Node | Row]:
    """The children with large groups of like ones reduced to their slowest and one line."""
    groups: dict[tuple[str, str], list[Node]] = {}
    for node in children:
        groups.setdefault((node.span.name, node.span.service), []).append(node)
    large = {key for key, group in groups.items() if len(group) > FOLD_ABOVE}
    if not large:
        return list(children)
    hidden: dict[tuple[str, str], list[Node]] = {}
    for key in large:
        by_time = sorted(groups[key], key=lambda one: (_failed(one), one.nanoseconds))
        hidden[key] = by_time[:-FOLD_KEEPS]
    folded_ids = {id(node) for group in hidden.values() for node in group}
    kept: list[Node | Row] = []
    for node in children:
        key = (node.span.name, node.span.service)
        if id(node) not in folded_ids:
            kept.append(node)
        elif key in hidden:
            kept.append(_fold_row(hidden.pop(key), depth, origin))
    return kept


def _failed(node: Node) -> bool:
    return node.span.status == "ERROR"


def _fold_row(group: list[Node], depth: int, origin: int) -> Row:
    """One line for many like spans: from the first start to the last end."""
    first = min(node.span.start_time_unix_nano for node in group)
    last = max(node.span.start_time_unix_nano + node.nanoseconds for node in group)
    mean = sum(node.nanoseconds for node in group) / len(group) / 1e9
    failed = sum(map(_failed, group))
    span = group[0].span
    status = f"mean {format_seconds(mean)}" + (f", {failed} ERROR" if failed else "")
    name = f"{len(group)} more {short_name(span.name)}"
    return Row(
        depth, name, span.service, (first - origin) / 1e9, (last - first) / 1e9, status, len(group)
    )


def bar(start: float, seconds: float, total: float, cells: int = BAR_CELLS) -> str:
    """A bar at its place in the whole trace; the shortest span still shows one cell."""
    if total <= 0:
        return "█"
    begin = min(cells - 1, int(cells * start / total))
    length = max(1, round(cells * seconds / total))
    return " " * begin + "█" * min(length, cells - begin)


def services(spans: Iterable[Span]) -> list[str]:
    """Names of the services that took part, each once, by their first span."""
    ordered = sorted(spans, key=lambda span: span.start_time_unix_nano)
    return list(dict.fromkeys(span.service for span in ordered))


def waterfall(trace_id: str, spans: Sequence[Span], *, fold: bool = True) -> RenderableType:
    """The whole picture: the rows, then who took part."""
    if not spans:
        return f"trace {trace_id}: no spans are kept of it any more"
    lines = rows(spans, fold=fold)
    total = max(row.start + row.seconds for row in lines)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("SPAN", no_wrap=True, overflow="ellipsis")
    table.add_column("SERVICE", no_wrap=True, overflow="ellipsis")
    table.add_column("START", justify="right", no_wrap=True)
    table.add_column("TOOK", justify="right", no_wrap=True)
    table.add_column("", min_width=BAR_CELLS, no_wrap=True)
    table.add_column("", overflow="fold")
    for row in lines:
        style = "red" if "ERROR" in row.status else "dim" if row.folded else ""
        table.add_row(
            Text("  " * row.depth + row.name, style=style),
            row.service,
            format_seconds(row.start),
            format_seconds(row.seconds),
            Text(bar(row.start, row.seconds, total), style="red" if style == "red" else "cyan"),
            Text(row.status, style=style),
        )
    instances = {(span.service, span.instance) for span in spans}
    summary = (
        f"trace {trace_id}: {len(spans)} spans, {format_seconds(total)}, "
        f"{len(instances)} processes; services: {', '.join(services(spans))}"
    )
    return Group(table, "", summary)
