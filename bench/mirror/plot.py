"""The ratios as a picture: a dot for the median, a line for the spread, on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bench.mirror.report import CONTROL, FIFO, GCM, OURS, PEER, SIV, TCP, Ratio
from controlplane.cli.plot.scale import Scale

COLOURS = {
    (OURS, PEER): "#1b6ca8",
    (TCP, PEER): "#63a375",
    (OURS, FIFO): "#8e5ea2",
    (GCM, OURS): "#d1603d",
    (SIV, OURS): "#b08900",
    (CONTROL, PEER): "#999999",
}
LEFT, WIDTH, ROW, TOP = 260, 620, 15, 64
LOW, HIGH = 0.1, 16.0
TICKS = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16)
# Where a ratio is, from the left.
place = Scale(LOW, HIGH, LEFT, LEFT + WIDTH, logarithmic=True)


def svg(found: Sequence[Ratio], facts: Mapping[str, Any]) -> str:
    """The whole picture. `facts` stand below it."""
    rows = len(found) + len({one.job for one in found})
    bottom = TOP + rows * ROW
    height = bottom + 40 + 14 * (len(facts) + 1)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 60}" '
            f'height="{height}" font-family="sans-serif" font-size="11">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        (
            f'<text x="{LEFT}" y="20" font-size="14">Ratio of rates, median and spread over the '
            "rounds; ticks: must and aim</text>"
        ),
    ]
    for tick in TICKS:
        at = place(tick)
        colour = "#444" if tick == 1 else "#ddd"
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 14}" y2="{bottom}" stroke="{colour}"/>'
            f'<text x="{at:.1f}" y="{TOP - 20}" text-anchor="middle">{tick:g}</text>'
        )
    y, job = TOP, ""
    for one in found:
        if one.job != job:
            job = one.job
            parts.append(f'<text x="8" y="{y + 4}" font-weight="bold">{escape(job)}</text>')
            y += ROW
        parts += _row(one, y)
        y += ROW
    for number, (name, value) in enumerate(facts.items()):
        text = escape(f"{name}: {value}")
        parts.append(f'<text x="8" y="{bottom + 30 + 14 * number}" fill="#555">{text}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _row(one: Ratio, y: int) -> list[str]:
    colour = COLOURS.get((one.stack, one.versus), "black")
    low, high, middle = place(min(one.values)), place(max(one.values)), place(one.median)
    parts = [
        f'<text x="20" y="{y + 4}">{escape(one.stack)} / {escape(one.versus)}</text>',
        (
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
            'stroke-width="3" stroke-opacity="0.45"/>'
        ),
        f'<circle cx="{middle:.1f}" cy="{y}" r="4" fill="{colour}"/>',
        f'<text x="{LEFT + WIDTH + 8}" y="{y + 4}">{one.median:.2f}</text>',
    ]
    for wanted in (one.must, one.aim):
        if wanted is not None:
            at = place(wanted)
            parts.append(
                f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y - 6}" y2="{y + 6}" stroke="black"/>'
            )
    return parts
