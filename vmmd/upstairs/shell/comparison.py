"""The outcome of comparing the members of a set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vmmd.upstairs.core import events, limits


@dataclass(frozen=True, slots=True)
class ExtentDifference:
    """`digests` by slot; zero where the slot did not answer."""

    extent: int
    digests: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """`bad_blocks` and `blocks_read` are counted only when the data was read too."""

    equal: bool
    extents_compared: int
    members_compared: int
    differences: tuple[ExtentDifference, ...]
    bad_blocks: int = 0
    blocks_read: int = 0


def compared(digests: events.Digests, bad_blocks: int, blocks_read: int) -> VerifyResult:
    """From the digests of each member's extents, and what reading the data found."""
    arrays = list(digests.by_slot.values())
    differs = np.zeros(len(arrays[0]), dtype=np.bool_)
    for array in arrays[1:]:
        differs |= array != arrays[0]
    differences = tuple(
        ExtentDifference(
            extent,
            tuple(
                int(digests.by_slot[slot][extent]) if slot in digests.by_slot else 0
                for slot in range(limits.SLOT_COUNT)
            ),
        )
        for extent in np.flatnonzero(differs).tolist()
    )
    return VerifyResult(
        equal=not differences and not bad_blocks,
        extents_compared=len(arrays[0]),
        members_compared=len(arrays),
        differences=differences,
        bad_blocks=bad_blocks,
        blocks_read=blocks_read,
    )
