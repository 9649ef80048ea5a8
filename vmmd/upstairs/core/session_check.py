"""Whether what a daemon tells as its session begins is what the set expects of that member.

The daemon has compared as much itself before it granted the session. It is looked at again here,
since a daemon that is broken, or not what it says, must not be taken in for it.
"""

from __future__ import annotations

from vmmd.upstairs.core.cipher_check import cipher_problem
from vmmd.upstairs.core.events import SessionInfo
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.slot import Member

# Flush numbers count up from 1 with each flush: nobody gets there, and what follows still fits a
# frame's field.
_NUMBER_MAX = 1 << 63


def session_problem(region: RegionSet, member: Member, session: SessionInfo) -> tuple[str, str]:
    """The reason, one of `REFUSALS`, and a sentence that begins with it; both empty when the member
    may be taken in."""
    code, text = _found(region, member, session)
    return code, f"{code}: {text}" if code else ""


def _found(region: RegionSet, member: Member, session: SessionInfo) -> tuple[str, str]:
    expected = region.expected_region(member)
    if expected and session.region_id != expected:
        return "REGION_MISMATCH", (
            f"{member.address} serves region {session.region_id}, the member was {expected}: "
            "replace the target, or start the right region"
        )
    for other in region.members:
        if other is not member and other.region_id == session.region_id and other.joined_now:
            return "REGION_TWICE", (
                f"{member.address} serves region {session.region_id}, which is slot "
                f"{other.slot} ({other.address}) already: correct the construction request"
            )
    extents = region.config.geometry.extent_count
    stamps = session.stamps
    told = {len(stamps.generations), len(stamps.flushes), len(stamps.flags)}
    if told != {extents}:
        return "STAMPS_MALFORMED", (
            f"{' and '.join(map(str, sorted(told)))} extents were told, {extents} are expected"
        )
    highest = max(int(stamps.flushes.max(initial=0)), int(stamps.generations.max(initial=0)))
    if highest >= _NUMBER_MAX:
        return "STAMPS_MALFORMED", f"no extent can have the generation or flush number {highest}"
    return cipher_problem(region, member, session)
