"""Whether the members of a read-only set hold the same data, told from their extents' stamps.

A read-only set copies nothing, so members that differ stay different: the only question is who may
serve. The rule: a member serves when it has no extent that another member, of all that connected
since the activation, is known to have newer; and none that is not whole. Newer is the higher
(generation, flush), as in reconciliation. What was learned stays when the member that taught it
goes: data that a reader has seen must not go back in time.

Two members may each have something that the other lacks. Then neither serves: only activating the
set read-write once makes them equal.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stairlib.wire.frame import FLAG_DIRTY, FLAG_FAULTED, FLAG_INCOMPLETE
from vmmd.upstairs.core.events import ExtentStamps

_FLAW_TEXTS = (
    (FLAG_FAULTED, "is damaged there"),
    (FLAG_INCOMPLETE, "was being filled there and is not whole"),
    (FLAG_DIRTY, "has writes there that were never flushed"),
)
_WAY_OUT = (
    "copy the region anew from a member that serves ('downstaird clone') and replace it by the "
    "copy, or activate the set read-write once"
)


class Agreement:
    """The newest (generation, flush) of every extent that any member brought so far."""

    def __init__(self, extent_count: int) -> None:
        self._generations = np.zeros(extent_count, dtype=np.uint64)
        self._flushes = np.zeros(extent_count, dtype=np.uint64)
        self.known = False

    def forget(self) -> None:
        """A new activation looks anew."""
        self._generations[:] = 0
        self._flushes[:] = 0
        self.known = False

    def learn(self, stamps: ExtentStamps) -> None:
        """Takes over what is newer in `stamps`."""
        newer = self._newer(stamps)
        self._generations[newer] = stamps.generations[newer]
        self._flushes[newer] = stamps.flushes[newer]
        self.known = True

    def flaw(self, stamps: ExtentStamps) -> str:
        """Why the member can never serve, whatever the others hold; empty when it can."""
        flawed = np.flatnonzero(stamps.flags)
        if not len(flawed):
            return ""
        extent = int(flawed[0])
        flags = int(stamps.flags[extent])
        what = next((text for flag, text in _FLAW_TEXTS if flags & flag), f"has flags {flags}")
        return f"MEMBER_NOT_WHOLE: extent {extent} {what} ({len(flawed)} such extents); {_WAY_OUT}"

    def behind(self, stamps: ExtentStamps) -> str:
        """Which extents are older than known; empty when none is."""
        return self._difference(stamps, self._older(stamps), "MEMBER_OUTDATED", "older")

    def strange(self, stamps: ExtentStamps) -> str:
        """Which extents are newer than known: a copy of what is known has none."""
        return self._difference(stamps, self._newer(stamps), "MEMBER_DIFFERS", "newer")

    def _newer(self, stamps: ExtentStamps) -> npt.NDArray[np.bool_]:
        newer: npt.NDArray[np.bool_] = stamps.generations > self._generations
        newer |= (stamps.generations == self._generations) & (stamps.flushes > self._flushes)
        return newer

    def _older(self, stamps: ExtentStamps) -> npt.NDArray[np.bool_]:
        older: npt.NDArray[np.bool_] = stamps.generations < self._generations
        older |= (stamps.generations == self._generations) & (stamps.flushes < self._flushes)
        return older

    def _difference(
        self, stamps: ExtentStamps, differs: npt.NDArray[np.bool_], code: str, how: str
    ) -> str:
        extents = np.flatnonzero(differs)
        if not len(extents):
            return ""
        extent = int(extents[0])
        here = f"generation {stamps.generations[extent]}, flush {stamps.flushes[extent]}"
        known = f"generation {self._generations[extent]}, flush {self._flushes[extent]}"
        return (
            f"{code}: {len(extents)} extents are {how} than on other members; extent {extent} is "
            f"of {here} there, and of {known} elsewhere; {_WAY_OUT}"
        )
