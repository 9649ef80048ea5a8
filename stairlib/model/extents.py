"""What may be known of one extent of one member, and a text that tells it of all of them.

The text has a letter for each run of extents in the same state, after its length unless that is 1:
`5000c4w7796x`. It is short where states come in runs, as they do, and the same in messages, in JSON
and for people.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from stairlib.model.errors import InvalidRequestError


class ExtentState(IntEnum):
    """The worst comes last, so that the worst of several is their maximum."""

    # Equal to the others', and durable there.
    IN_SYNC = 0
    # Filled by the repair that runs; durable, and in service, when that ends.
    COPIED = 1
    # Written since the member's last flush.
    DIRTY = 2
    # Being filled now.
    COPYING = 3
    # To be filled.
    DIFFERS = 4
    # The member is away, or was not compared yet.
    UNKNOWN = 5


ExtentStates = npt.NDArray[np.uint8]
"""`ExtentState` of each extent, in their order."""

LETTERS: Final = {
    ExtentState.IN_SYNC: "s",
    ExtentState.COPIED: "c",
    ExtentState.DIRTY: "d",
    ExtentState.COPYING: "w",
    ExtentState.DIFFERS: "x",
    ExtentState.UNKNOWN: "u",
}
_STATES: Final = {letter: state for state, letter in LETTERS.items()}
_LETTER_OF: Final = [LETTERS[state] for state in ExtentState]
_RUN: Final = re.compile(r"([1-9][0-9]{0,9})?([a-z])")


def as_text(states: ExtentStates) -> str:
    """The text of a member's extents."""
    if not len(states):
        return ""
    edges = np.flatnonzero(states[1:] != states[:-1]) + 1
    firsts = np.concatenate(([0], edges))
    lengths = np.diff(np.concatenate((firsts, [len(states)])))
    letters = [_LETTER_OF[state] for state in states[firsts].tolist()]
    return "".join(
        letter if length == 1 else f"{length}{letter}"
        for length, letter in zip(lengths.tolist(), letters, strict=True)
    )


def runs(text: str) -> list[tuple[ExtentState, int]]:
    """(state, how many extents) of each run of a text; InvalidRequestError for one that is none."""
    found = []
    at = 0
    while at < len(text):
        run = _RUN.match(text, at)
        state = _STATES.get(run[2]) if run else None
        if run is None or state is None:
            raise InvalidRequestError(f"no run of extents at {text[at : at + 12]!r}")
        found.append((state, int(run[1] or 1)))
        at = run.end()
    return found


def from_text(text: str) -> ExtentStates:
    """The states that a text tells of, one for each extent; errors as `runs`."""
    found = runs(text)
    states = np.array([state for state, _count in found], dtype=np.uint8)
    return np.repeat(states, [count for _state, count in found])
