"""The map of a disk's extents, as people read it on a terminal. Pure.

A line of characters has the extents in their order; where there are more than fit, a character
stands for several and shows the worst of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from controlplane.cli.units import format_bytes
from stairlib.model.extents import ExtentState, ExtentStates, from_text
from stairwell.vmmd.v1.volume_service_pb2 import ExtentColumn, RegionExtents

# Characters of a line, and lines of a member, at most.
WIDTH: Final = 64
LINES_MAX: Final = 8
# (character, colour, words) of each state, told apart without colour too.
_SHOWN: Final = {
    ExtentState.IN_SYNC: ("·", "green", "in sync"),
    ExtentState.COPIED: ("#", "cyan", "copied"),
    ExtentState.DIRTY: ("~", "yellow", "dirty"),
    ExtentState.COPYING: (">", "bold magenta", "being copied"),
    ExtentState.DIFFERS: ("x", "red", "to be copied"),
    ExtentState.UNKNOWN: ("?", "dim", "unknown"),
}


def extent_maps(regions: Iterable[RegionExtents]) -> RenderableType:
    """The regions of a disk, each with its members, and what the characters mean."""
    parts: list[RenderableType] = []
    fold = 1
    for region in regions:
        each = _fold(region.extent_count)
        fold = max(fold, each)
        size = format_bytes(region.extent_bytes)
        parts.append(
            f"{region.path or 'region'}: {region.extent_count} extents of {size}"
            + (f", {each} to a character" if each > 1 else "")
        )
        for column in region.columns:
            parts += _column(column, each)
        parts.append("")
    legend = "  ".join(f"{char} {words}" for char, _style, words in _SHOWN.values())
    return Group(*parts, legend + ("; the worst of several" if fold > 1 else ""))


def _fold(count: int) -> int:
    """How many extents a character stands for."""
    return max(1, -(-count // (WIDTH * LINES_MAX)))


def _column(column: ExtentColumn, fold: int) -> list[RenderableType]:
    states = from_text(column.runs)
    counts = np.bincount(states, minlength=len(ExtentState)).tolist()
    words = ", ".join(f"{counts[s]} {_SHOWN[s][2]}" for s in ExtentState if counts[s])
    shown = _folded(states, fold)
    lines = [_line(shown[at : at + WIDTH]) for at in range(0, len(shown), WIDTH)]
    return [f"slot {column.slot}  {column.address}  {words}", *lines]


def _folded(states: ExtentStates, fold: int) -> ExtentStates:
    """The worst of each so many."""
    if fold == 1 or not len(states):
        return states
    folded: ExtentStates = np.maximum.reduceat(states, np.arange(0, len(states), fold))
    return folded


def _line(states: ExtentStates) -> Text:
    line = Text("  ")
    for state in states.tolist():
        char, style, _words = _SHOWN[ExtentState(state)]
        line.append(char, style)
    return line
