"""Whether a member that was away for a short time still has what it had on its disk.

It is sent what it missed since its last flush, so everything before that has to be there. A region
that was put back to an older copy, or lost what its disk had confirmed, is not: frames on top of it
would make a member that looks like the others and is not equal to them. What tells: per extent the
stamp that the member told last, and the number of the last flush that it acknowledged and that must
have left a stamp. A stamp never goes back, except of an extent that is being filled.
"""

from __future__ import annotations

import numpy as np

from stairlib.wire.frame import FLAG_DIRTY
from vmmd.upstairs.core.control_jobs import Outcome
from vmmd.upstairs.core.events import ExtentStamps
from vmmd.upstairs.core.slot import Member

_NOT_WHOLE = np.uint8(0xFF ^ FLAG_DIRTY)


def told(member: Member) -> ExtentStamps | None:
    """The newest stamps that are known of the member: as its session began, or as it joined when it
    was filled before that. None when it left before it told."""
    stamps = member.stamps
    asked = member.stamps_asked
    if stamps is None or asked is None:
        return stamps
    table = np.frombuffer(asked.payload, dtype="<u8")
    if asked.outcome is not Outcome.OK or len(table) != 3 * len(stamps.generations):
        return None
    columns = table.reshape(-1, 3)
    return ExtentStamps(columns[:, 0], columns[:, 1], columns[:, 2].astype(np.uint8))


def what_is_missing(
    before: ExtentStamps | None, now: ExtentStamps, flushed: tuple[int, int]
) -> str:
    """Why the region can not be gone on with, empty when it can. `before`: as it was told last,
    None when that is not known; `flushed`: (generation, number) of the last flush that must have
    left a stamp."""
    generations, flushes = now.generations, now.flushes
    generation, number = flushed
    newest = int(flushes[generations == generation].max(initial=0))
    if newest < number and not (generations > generation).any():
        return _older(
            f"it had made flush {number} of generation {generation} durable, the newest it has of "
            f"that generation is {newest}"
        )
    if before is None:
        return (
            "MEMBER_UNKNOWN: it had just been filled and left before it told what it had then; it "
            "is compared with the others and repaired where it differs"
        )
    back = generations < before.generations
    back |= (generations == before.generations) & (flushes < before.flushes)
    back &= (before.flags & _NOT_WHOLE) == 0
    extents = np.flatnonzero(back)
    if len(extents):
        first = int(extents[0])
        return _older(
            f"extent {first} was of generation {before.generations[first]}, flush "
            f"{before.flushes[first]}, and is of generation {generations[first]}, flush "
            f"{flushes[first]} ({len(extents)} such extents)"
        )
    unwhole = np.flatnonzero(now.flags & _NOT_WHOLE)
    if len(unwhole):
        return (
            f"MEMBER_NOT_WHOLE: it was whole, and extent {int(unwhole[0])} is not any more "
            f"({len(unwhole)} such extents); it is repaired from the others"
        )
    return ""


def _older(what: str) -> str:
    return (
        f"MEMBER_OUTDATED: the region is older than when the member left: {what}. Was an older "
        "copy of its directory put back, or did its disk lose what it had confirmed? It is "
        "repaired from the others"
    )
