"""Every file of a region, damaged in every way: what is expected of each.

refused   the region does not open; the error names the file
whole     nothing is missing
older     as if the last flushes had not been made, by the stamps too: the set brings it up to date
some      extents are faulted; the others are served
all       all extents are faulted
found     served, and the context says of each bad block that it is
"""

from __future__ import annotations

import pytest

from downstaird.core.region import Region
from stairlib.model.context import mismatches
from stairlib.model.errors import DataError, StairwellError
from stairlib.wire.frame import FLAG_FAULTED
from tests.unit.downstaird.core.damaging import (
    BLOCKS,
    LAST,
    ROLES,
    Populated,
    cut,
    emptied,
    flipped,
    foreign,
    missing,
    zeroed,
)
from tests.unit.downstaird.core.region_rig import BLOCK, TUNING

DAMAGES = (emptied, cut, flipped, zeroed, missing, foreign)
# By file, in the order of DAMAGES.
EXPECTED = {
    # Nothing is known without it; another region's is that region's, with owner and tag that
    # differ.
    "region.json": ("refused", "refused", "refused", "refused", "refused", "refused"),
    # Both copies gone: who was fenced off is not known. One copy: the other says the same. Of
    # another region: it bears no tag, so its owner is taken for ours.
    "owner": ("refused", "whole", "whole", "whole", "refused", "whole"),
    "void": ("refused", "whole", "whole", "whole", "refused", "whole"),
    # Without its header the older state and the log that goes with it, which is kept whole for
    # that, say the same. Without the only page of its map nothing can be found.
    "newer state": ("whole", "all", "whole", "whole", "refused", "whole"),
    "older state": ("whole", "whole", "whole", "whole", "refused", "whole"),
    # An end that is missing cannot be told from a power cut; the stamps are those of what is left.
    "log": ("older", "older", "all", "all", "refused", "refused"),
    "free log": ("whole", "whole", "whole", "whole", "refused", "refused"),
    # Of another region: the contexts find it.
    "data": ("all", "some", "found", "found", "refused", "found"),
    "used contexts": ("all", "some", "some", "some", "refused", "all"),
}
CASES = [
    pytest.param(role, damage, outcome, id=f"{role}-{damage.__name__}")
    for role, outcomes in EXPECTED.items()
    for damage, outcome in zip(DAMAGES, outcomes, strict=True)
]


def explained(error: DataError) -> None:
    """A fault says what was found, and where."""
    assert error.reason == "EXTENT_FAULTED", error
    assert error.metadata["file"], error
    assert "offset" in error.metadata, error


def outcome_of(populated: Populated) -> tuple[str, str]:
    """What an opened region is like, in the words above; and the error's file."""
    try:
        region = Region.open(populated.disk, tuning=TUNING)
    except StairwellError as error:
        return "refused", str(error.metadata.get("file", error.metadata.get("path", "")))
    served, bad, refused = {}, 0, set()
    for block in range(BLOCKS):
        try:
            contexts, buffers = region.read(block, 1)
        except DataError as error:
            explained(error)
            refused.add(block)
            continue
        data = b"".join(map(bytes, buffers))
        if mismatches(data, contexts, BLOCK, encrypted=False):
            bad += 1
        else:
            served[block] = data
    states = region.extent_states()
    faulted = {extent for extent in range(4) if states.flags[extent] & FLAG_FAULTED}
    # A block of an extent that was served before its damage was met, and refused after it, counts
    # as refused.
    assert {block // 16 for block in refused} == faulted
    newest = int(states.flushes.max())
    for number in range(newest if faulted else LAST, 0, -1):
        wanted = populated.states[number]
        if all(wanted[at * BLOCK : (at + 1) * BLOCK] == data for at, data in served.items()):
            break
    else:
        raise AssertionError("what is served is the content of no flush")
    if bad:
        return "found", ""
    if faulted:
        return "all" if len(faulted) == 4 else "some", ""
    # What is older must say so.
    assert newest == number
    return "whole" if number == LAST else "older", ""


@pytest.mark.parametrize(("role", "damage", "expected"), CASES)
def test_each_file_damaged_in_each_way(role, damage, expected) -> None:
    populated = Populated.made()
    name = populated.names[role]
    damage(populated, name)
    outcome, file = outcome_of(populated)
    assert outcome == expected
    if outcome == "refused" and role != "region.json":
        assert name in file


def test_every_file_has_its_row() -> None:
    assert set(EXPECTED) == set(ROLES)
    populated = Populated.made()
    files = {name for name in populated.disk._nodes if not name.startswith("contexts")}
    assert files == set(populated.names.values()) - {populated.names["used contexts"]}
