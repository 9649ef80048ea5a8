"""Numbers over time as one line of blocks. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], cells: int) -> str:
    """The newest values at the right, a cell each; where there are more, a cell is the highest of
    its share. Relative to the highest shown; nothing at all is a line at the bottom."""
    assert cells > 0
    shown = gathered(values, cells)
    highest = max(shown, default=0.0)
    if highest <= 0:
        return (_BLOCKS[0] * len(shown)).rjust(cells)
    steps = len(_BLOCKS) - 1
    # What is not nothing is seen: the lowest block is for nothing alone.
    line = [
        _BLOCKS[0] if value <= 0 else _BLOCKS[max(1, round(value / highest * steps))]
        for value in shown
    ]
    return "".join(line).rjust(cells)


def gathered(values: Sequence[float], cells: int) -> list[float]:
    """At most `cells` values: each the highest of as many as need be, the last group whole."""
    group = -(-len(values) // cells) if values else 1
    first = len(values) % group
    groups = [values[:first]] if first else []
    groups += [values[at : at + group] for at in range(first, len(values), group)]
    return [max(each) for each in groups]
