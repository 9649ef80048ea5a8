"""A trace as a waterfall: who did what, when, for how long, under whom. Pure.

Invariants: every span is shown or counted in a fold; a span whose parent was not collected (the
caller's own, or one that has left a daemon's memory) is a root; a cycle in damaged data ends; a
span without an end is under way and lasts until the last moment that is known; no line is wider
than the terminal, and where that has no more than ASCII nothing else is printed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, OverflowMethod, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from controlplane.cli.units import format_seconds
from stairwell.telemetry.v1.trace_service_pb2 import Span, SpanEvent

BAR_CELLS = 32
# Below this width the bar is short, the instance is left out, and what went wrong has a line of its
# own.
WIDE_COLUMNS = 120
NARROW_BAR_CELLS = 14
# Of service, start, duration and bar.
_NARROW_CELLS = (12, 9, 9, NARROW_BAR_CELLS)
MIN_NAME_CELLS = 20
# What a span that has not ended says of itself.
UNDER_WAY = "under way"
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
    """One line: times in seconds from the trace's start; `folded` spans stand behind it. An event
    of a span is a line too, without a service."""

    depth: int
    name: str
    service: str
    start: float
    seconds: float
    status: str
    folded: int = 0
    is_event: bool = False


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


def rows(spans: Sequence[Span], *, fold: bool = True, events: bool = False) -> list[Row]:
    """The lines of the waterfall, top to bottom."""
    if not spans:
        return []
    origin = min(span.start_time_unix_nano for span in spans)
    spans = [_with_end(span, last_moment(spans)) for span in spans]
    out: list[Row] = []
    # Depth first with an explicit stack: a trace may be deeper than Python's own.
    stack: list[tuple[int, Node | Row]] = [(0, node) for node in reversed(forest(spans))]
    while stack:
        depth, item = stack.pop()
        if isinstance(item, Row):
            out.append(item)
            continue
        out.append(_row(item, depth, origin))
        if events:
            out += [_event_row(event, depth + 1, origin) for event in item.span.events]
        below = _folded(item.children, depth + 1, origin) if fold else list(item.children)
        stack += [(depth + 1, one) for one in reversed(below)]
    return out


def last_moment(spans: Iterable[Span]) -> int:
    """The last one that is known of a trace, in nanoseconds since the epoch."""
    return max(
        max(
            [span.start_time_unix_nano, span.end_time_unix_nano]
            + [event.time_unix_nano for event in span.events]
        )
        for span in spans
    )


def _with_end(span: Span, moment: int) -> Span:
    """The span, or one that is under way as lasting until the moment."""
    if span.end_time_unix_nano:
        return span
    shown = Span()
    shown.CopyFrom(span)
    shown.end_time_unix_nano = moment
    shown.status = UNDER_WAY
    return shown


def _event_row(event: SpanEvent, depth: int, origin: int) -> Row:
    start = (event.time_unix_nano - origin) / 1e9
    told = ", ".join(f"{key}={value}" for key, value in sorted(event.attributes.items()))
    return Row(depth, event.name, "", start, 0.0, told, is_event=True)


def _row(node: Node, depth: int, origin: int) -> Row:
    span = node.span
    start = (span.start_time_unix_nano - origin) / 1e9
    status = span.status if span.status in ("ERROR", UNDER_WAY) else ""
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


def bar(start: float, seconds: float, total: float, cells: int = BAR_CELLS, mark: str = "█") -> str:
    """A bar at its place in the whole trace; the shortest span still shows one cell."""
    if total <= 0:
        return mark
    begin = min(cells - 1, int(cells * start / total))
    length = max(1, round(cells * seconds / total))
    return " " * begin + mark * min(length, cells - begin)


def services(spans: Iterable[Span]) -> list[str]:
    """Names of the services that took part, each once, by their first span."""
    ordered = sorted(spans, key=lambda span: span.start_time_unix_nano)
    return list(dict.fromkeys(span.service for span in ordered))


def waterfall(
    trace_id: str,
    spans: Sequence[Span],
    *,
    fold: bool = True,
    events: bool = False,
    ascii_only: bool = False,
) -> RenderableType:
    """The whole picture: the rows, then who took part. `ascii_only` also where more could be."""
    if not spans:
        return f"trace {trace_id}: no spans are kept of it any more"
    return _Picture(trace_id, spans, rows(spans, fold=fold, events=events), ascii_only)


@dataclass(frozen=True, slots=True)
class _Picture:
    """A waterfall that is as wide as where it is printed."""

    trace_id: str
    spans: Sequence[Span]
    rows: list[Row]
    ascii_only: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console
        total = max(row.start + row.seconds for row in self.rows)
        ascii_only = self.ascii_only or options.ascii_only
        if options.max_width >= WIDE_COLUMNS:
            yield self._table(total, ascii_only=ascii_only)
        else:
            yield from self._lines(options.max_width, total, ascii_only=ascii_only)
        yield ""
        yield Text(self._summary(total, ascii_only=ascii_only), overflow="fold")

    def _table(self, total: float, *, ascii_only: bool) -> Table:
        cut: OverflowMethod = "crop" if ascii_only else "ellipsis"
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("SPAN", no_wrap=True, overflow=cut)
        table.add_column("SERVICE", no_wrap=True, overflow=cut)
        table.add_column("START", justify="right", no_wrap=True, overflow=cut)
        table.add_column("TOOK", justify="right", no_wrap=True, overflow=cut)
        table.add_column("", min_width=BAR_CELLS, no_wrap=True, overflow=cut)
        table.add_column("", overflow="fold")
        for row in self.rows:
            style, marked = _look(row)
            mark = _MARKS[row.is_event][ascii_only]
            table.add_row(
                Text(_printable(_named(row), ascii_only=ascii_only), style=style),
                _printable(row.service, ascii_only=ascii_only),
                *(_printable(moment, ascii_only=ascii_only) for moment in _times(row)),
                Text(bar(row.start, row.seconds, total, BAR_CELLS, mark), style=marked),
                Text(_printable(row.status, ascii_only=ascii_only), style=style),
            )
        return table

    def _lines(self, width: int, total: float, *, ascii_only: bool) -> Iterator[Text]:
        """The rows for a narrow terminal, with what went wrong or happened below each."""
        name_cells = max(MIN_NAME_CELLS, width - sum(_NARROW_CELLS) - len(_NARROW_CELLS))
        heads = ("SPAN", "SERVICE", "START", "TOOK", "")
        yield Text(_columns(name_cells, heads, ascii_only=ascii_only), style="bold")
        for row in self.rows:
            style, marked = _look(row)
            mark = _MARKS[row.is_event][ascii_only]
            cells = (_named(row), row.service.partition(" ")[0], *_times(row), "")
            yield Text.assemble(
                (_columns(name_cells, cells, ascii_only=ascii_only), style),
                (bar(row.start, row.seconds, total, NARROW_BAR_CELLS, mark), marked),
                no_wrap=True,
                overflow="crop",
            )
            indent = "  " * (row.depth + 2)
            told = _printable(row.status, ascii_only=ascii_only)
            for line in textwrap.wrap(told, max(MIN_NAME_CELLS, width - len(indent))):
                yield Text(indent + line, style=style)

    def _summary(self, total: float, *, ascii_only: bool) -> str:
        instances = {(span.service, span.instance) for span in self.spans}
        failed = sum(span.status == "ERROR" for span in self.spans)
        errors = f" ({failed} ERROR)" if failed else ""
        text = (
            f"trace {self.trace_id}: {len(self.spans)} spans{errors}, {format_seconds(total)}, "
            f"{len(instances)} processes; services: {', '.join(services(self.spans))}"
        )
        return _printable(text, ascii_only=ascii_only)


# The mark of a span's bar and of an event's place, and the same in ASCII.
_MARKS = {False: ("█", "#"), True: ("◆", "*")}


def _look(row: Row) -> tuple[str, str]:
    """The styles of a row's words and of its bar."""
    if "ERROR" in row.status:
        return "red", "red"
    if row.is_event:
        return "dim", "yellow"
    return ("dim" if row.folded else ""), "cyan"


def _named(row: Row) -> str:
    return "  " * row.depth + ("- " if row.is_event else "") + row.name


def _times(row: Row) -> tuple[str, str]:
    return format_seconds(row.start), "" if row.is_event else format_seconds(row.seconds)


def _columns(name_cells: int, cells: Sequence[str], *, ascii_only: bool) -> str:
    """The first four columns of a narrow line, each cut to its width, and the gap to the bar."""
    ellipsis = "~" if ascii_only else "…"
    out = []
    for text, width, right in zip(
        cells, (name_cells, *_NARROW_CELLS), (False, False, True, True, False), strict=True
    ):
        plain = _printable(text, ascii_only=ascii_only)
        shown = plain if len(plain) <= width else plain[: width - 1] + ellipsis
        out.append(shown.rjust(width) if right else shown.ljust(width))
    return " ".join(out[:4]) + " "


def _printable(text: str, *, ascii_only: bool) -> str:
    """The text, with nothing outside ASCII where that is all there is."""
    if not ascii_only:
        return text
    return text.replace("µ", "u").encode("ascii", "replace").decode()
