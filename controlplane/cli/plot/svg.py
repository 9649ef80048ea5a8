"""A story as an SVG document: three panels over one axis of time, phases as bands. Pure.

Written by hand: it is some lines and texts, and needs no library. Colours follow the reader's wish
for light or dark. Nothing in the document refers to anything outside it, and every text is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from controlplane.cli.plot.scale import Scale, from_zero, logarithmic
from controlplane.cli.plot.story import Moment, Story
from controlplane.cli.units import format_rate, format_seconds

WIDTH = 860
LEFT, RIGHT = 86, 20
TOP = 64
PANEL_HEIGHT, PANEL_GAP = 120, 40
BOTTOM = 46
HEIGHT = TOP + 3 * PANEL_HEIGHT + 2 * PANEL_GAP + BOTTOM
# A band narrower than its name has none; the list of phases below the axis has all.
LETTER_WIDTH = 6.2
MIB = 1 << 20

_STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif; }
text { fill: #333; } .title { font-size: 14px; font-weight: 600; } .small { font-size: 11px; fill: #666; }
.grid { stroke: #ddd; } .axis { stroke: #999; } path { fill: none; stroke-width: 1.6; }
.p99 { stroke: #c2410c; } .p50 { stroke: #0369a1; } .guest { stroke: #0369a1; } .repair { stroke: #15803d; }
.limit { stroke: #888; stroke-dasharray: 4 3; } .key-p99 { fill: #c2410c; } .key-p50 { fill: #0369a1; }
.key-limit { fill: #777; } .band { fill: #64748b; fill-opacity: .10; } .band-repair { fill: #15803d; fill-opacity: .12; }
.band-verify { fill: #7c3aed; fill-opacity: .12; } .band-paused { fill: #ca8a04; fill-opacity: .16; }
@media (prefers-color-scheme: dark) { svg { background: #111827; } text { fill: #d1d5db; } .small { fill: #9ca3af; }
.grid { stroke: #374151; } .p99 { stroke: #fb923c; } .p50, .guest { stroke: #38bdf8; } .repair { stroke: #4ade80; }
.key-p99 { fill: #fb923c; } .key-p50 { fill: #38bdf8; } }
"""  # noqa: E501 - a style sheet reads better by rule


@dataclass(frozen=True, slots=True)
class _Panel:
    """One of the three; `lines` are a class and what it draws of a moment (None: a gap)."""

    name: str
    top: float
    scale: Scale
    word: Callable[[float], str]
    lines: tuple[tuple[str, Callable[[Moment], float | None]], ...]


def draw(story: Story) -> str:
    """The document."""
    times = Scale(*_span(story), LEFT, WIDTH - RIGHT)
    panels = _panels(story.moments)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img">'
    )
    parts = [
        opening,
        f"<title>{escape(story.title)}</title>",
        f"<desc>{escape(story.summary)}</desc>",
        f"<style>{_STYLE}</style>",
        _text(LEFT, 22, story.title, "title"),
        _text(LEFT, 40, story.summary, "small"),
        *_bands(story, times),
    ]
    for panel in panels:
        parts += _panel(panel, story.moments, times)
    parts += _time_axis(times)
    phases = ", ".join(f"{one.name} {format_seconds(one.end - one.start)}" for one in story.phases)
    parts.append(_text(LEFT, HEIGHT - 8, f"phases: {phases}" if phases else "", "small"))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _span(story: Story) -> tuple[float, float]:
    """From the first to the last that is shown; never empty."""
    starts = [0.0, *(one.start for one in story.moments)]
    ends = [story.end, *(one.end for one in story.moments)]
    low, high = min(starts), max(ends)
    return low, max(high, low + 1.0)


def _panels(moments: Sequence[Moment]) -> list[_Panel]:
    tops = [TOP + number * (PANEL_HEIGHT + PANEL_GAP) for number in range(3)]
    bottoms = [top + PANEL_HEIGHT for top in tops]
    latencies = [value for one in moments for value in (one.p50, one.p99) if value]
    guest = from_zero((one.guest for one in moments), bottoms[1], tops[1], MIB)
    repair = from_zero((one.repair for one in moments), bottoms[2], tops[2], MIB)
    return [
        _Panel(
            "guest latency",
            tops[0],
            logarithmic(latencies, bottoms[0], tops[0]),
            lambda value: format_seconds(value / 1e3),
            (("p50", lambda one: one.p50), ("p99", lambda one: one.p99)),
        ),
        _Panel(
            "guest throughput", tops[1], guest, format_rate, (("guest", lambda one: one.guest),)
        ),
        _Panel(
            "repair",
            tops[2],
            repair,
            format_rate,
            (("limit", lambda one: one.limit), ("repair", lambda one: one.repair)),
        ),
    ]


def _bands(story: Story, times: Scale) -> list[str]:
    parts = []
    height = HEIGHT - BOTTOM - TOP
    for phase in story.phases:
        left, right = times(phase.start), times(phase.end)
        parts.append(
            f'<rect class="band band-{escape(phase.name)}" x="{left:.1f}" y="{TOP}" '
            f'width="{max(right - left, 0.5):.1f}" height="{height}"/>'
        )
        if right - left >= LETTER_WIDTH * len(phase.name):
            parts.append(_text((left + right) / 2, TOP - 6, phase.name, "small", "middle"))
    return parts


def _panel(panel: _Panel, moments: Sequence[Moment], times: Scale) -> list[str]:
    parts = []
    for tick in panel.scale.ticks(4):
        y = panel.scale(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(LEFT - 6, y + 4, panel.word(tick), "small", "end"))
    parts.append(_text(LEFT + 4, panel.top + 13, panel.name))
    at = LEFT + 4 + LETTER_WIDTH * len(panel.name) + 18
    for name, value in panel.lines:
        parts.append(f'<path class="{name}" d="{_path(panel.scale, times, moments, value)}"/>')
        if len(panel.lines) > 1 and name != "repair":
            parts.append(_text(at, panel.top + 13, name, f"small key-{name}"))
            at += LETTER_WIDTH * len(name) + 14
    return parts


def _path(
    scale: Scale, times: Scale, moments: Sequence[Moment], value: Callable[[Moment], float | None]
) -> str:
    """A line through the middles of the samples; a sample without a value breaks it."""
    words, pen_is_down = [], False
    for one in moments:
        found = value(one)
        if found is None:
            pen_is_down = False
            continue
        x, y = times((one.start + one.end) / 2), scale(found)
        words.append(f"{'L' if pen_is_down else 'M'}{x:.1f} {y:.1f}")
        pen_is_down = True
    return " ".join(words)


def _time_axis(times: Scale) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>']
    for tick in times.ticks(10):
        x = times(tick)
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        )
        parts.append(_text(x, bottom + 17, f"{tick:g} s", "small", "middle"))
    return parts


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    shown = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{shown} text-anchor="{anchor}">{escape(text)}</text>'
