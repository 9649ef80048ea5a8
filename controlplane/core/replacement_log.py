"""The log of a replacement: its lines are numbered from 0 and never taken back."""

from __future__ import annotations

from itertools import pairwise

from controlplane.core.replacement import Replacement


def last_number(record: Replacement) -> int:
    """The number of the last line of the log; -1 while there is none."""
    return record.transitions[-1].number if record.transitions else -1


def renews(old: Replacement, new: Replacement) -> bool:
    """Whether `new` tells all that `old` did, and is no older: no line of the log is between them.

    A record that was read from the store may come after what the driver told of it itself.
    """
    return last_number(old) == last_number(new) and old.updated_at <= new.updated_at


def begun_again_at(record: Replacement) -> float | None:
    """When it last went on after an end, as a failed one does that the user has tried again."""
    moments = [
        after.at
        for before, after in pairwise(record.transitions)
        if before.state.ended and not after.state.ended
    ]
    return moments[-1] if moments else None
