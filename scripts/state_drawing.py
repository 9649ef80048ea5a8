"""State diagrams of the documents as pictures, for the site, which runs no scripts of others.

The states stand one below the other in the order of their table. A move to the next one is an arrow
down; moves over some states go by lanes beside the column, forward ones on the right and those back
on the left, and moves of one name to one state share a lane.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

_MOVE = re.compile(r"^\s*(\S+) --> (\S+?)(?:: (.+))?$")
_EDGE = "[*]"
WIDE, HIGH, PITCH, LANE, MARGIN = 190, 30, 66, 20, 16
_STYLE = (
    "text{font:12px sans-serif;fill:#1b1f23}.small{font-size:10px;fill:#57606a}"
    ".box{fill:#fff;stroke:#57606a}.ends{stroke-width:3}.way{fill:none;stroke:#57606a}"
)


@dataclass
class _Way:
    """Moves of one name to one state that lies not next: all that share a lane."""

    name: str
    to: int
    sources: list[int] = field(default_factory=list)
    lane: int = 0

    @property
    def span(self) -> tuple[int, int]:
        places = [self.to, *self.sources]
        return min(places), max(places)


def drawn(mermaid: str) -> str:
    """The SVG of a `stateDiagram-v2`."""
    moves = [found.groups() for line in mermaid.splitlines() if (found := _MOVE.match(line))]
    ends = {state for state, to, _name in moves if to == _EDGE}
    # As the table has them; states that nothing leaves stand last.
    named = [*(state for state, _to, _name in moves), *(to for _state, to, _name in moves)]
    states = [state for state in dict.fromkeys(named) if state != _EDGE]
    place = {state: number for number, state in enumerate(states)}
    down: dict[int, list[str]] = {}
    ways: dict[tuple[str, int, bool], _Way] = {}
    for state, to, name in moves:
        if _EDGE in (state, to):
            continue
        here, there = place[state], place[to]
        if there == here + 1:
            down.setdefault(here, []).append(name or "")
        else:
            key = (name or "", there, there > here)
            ways.setdefault(key, _Way(name or "", there)).sources.append(here)
    right = _laned(way for (_name, _to, forward), way in ways.items() if forward)
    left = _laned(way for (_name, _to, forward), way in ways.items() if not forward)
    lanes_left = 1 + max((way.lane for way in left), default=-1)
    lanes_right = 1 + max((way.lane for way in right), default=-1)
    begin = MARGIN + lanes_left * LANE + LANE
    width = begin + WIDE + (lanes_right + 1) * LANE + MARGIN
    height = MARGIN * 2 + PITCH * (len(states) - 1) + HIGH
    parts = [_box(state, place[state], begin, ends=state in ends) for state in states]
    for here, names in down.items():
        parts += _arrow_down(here, [name for name in names if name], begin)
    for way in right:
        parts += _lane(way, begin + WIDE, 1)
    for way in left:
        parts += _lane(way, begin, -1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><style>{_STYLE}</style><defs><marker id="tip" '
        'markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#57606a"/></marker></defs>'
        f'<rect width="{width}" height="{height}" rx="8" fill="#f6f8fa"/>{"".join(parts)}</svg>\n'
    )


def _laned(found: Iterable[_Way]) -> list[_Way]:
    """The ways with their lanes: short ones near the column, none over another."""
    ways = sorted(found, key=lambda way: way.span[1] - way.span[0])
    taken: list[list[tuple[int, int]]] = []
    for way in ways:
        first, last = way.span
        lane = 0
        while lane < len(taken) and any(a <= last and first <= b for a, b in taken[lane]):
            lane += 1
        if lane == len(taken):
            taken.append([])
        taken[lane].append((first, last))
        way.lane = lane
    return ways


def _top(place: int) -> int:
    return MARGIN + place * PITCH


def _box(state: str, place: int, begin: int, *, ends: bool) -> str:
    kind = "box ends" if ends else "box"
    top = _top(place)
    return (
        f'<rect class="{kind}" x="{begin}" y="{top}" width="{WIDE}" height="{HIGH}" rx="5"/>'
        f'<text x="{begin + WIDE // 2}" y="{top + 19}" text-anchor="middle">{escape(state)}</text>'
    )


def _arrow_down(here: int, names: list[str], begin: int) -> list[str]:
    middle, top = begin + WIDE // 2, _top(here) + HIGH
    text = escape(", ".join(names))
    end = _top(here + 1)
    return [
        f'<path class="way" marker-end="url(#tip)" d="M{middle} {top}V{end}"/>',
        f'<text class="small" x="{middle + 6}" y="{(top + end) // 2 + 3}">{text}</text>',
    ]


def _lane(way: _Way, edge: int, side: int) -> list[str]:
    """From the sources along the lane to the state that all of them lead to."""
    at = edge + side * (way.lane + 1) * LANE
    # Apart from the ways of other lanes at the same box.
    shift = 6 + (way.lane * 5) % 20
    target = _top(way.to) + shift
    parts = []
    for source in way.sources:
        begin = _top(source) + shift + 3
        parts.append(
            f'<path class="way" marker-end="url(#tip)" d="M{edge} {begin}H{at}V{target}H{edge}"/>'
        )
    first, last = way.span
    middle = (_top(first) + _top(last) + HIGH) // 2
    # Read downwards, between the lane and the column.
    beside = at - 11 if side > 0 else at + 3
    parts.append(
        f'<text class="small" text-anchor="middle" '
        f'transform="translate({beside} {middle}) rotate(90)">{escape(way.name)}</text>'
    )
    return parts
