"""Which requests to replace a target of one volume still count, when one may come late.

A control plane that died, or was cut off, can leave a request on its way. By the time it arrives,
a newer one may have been carried out, and the addresses alone do not tell: a member that was
replaced, made blank and taken again is where the late request wants it to be. What tells is that

- the generation of what replaces a region's request never falls, and
- a replacement after which another one of the region was begun is over for good. (So is one that
  was taken back: that the region itself knows, at once with the taking back.)

Kept for the life of a machine's process, which is longer than a call waits. A request without an id
is somebody's by hand: its generation is looked at, and else only the addresses.
"""

from __future__ import annotations

from dataclasses import dataclass

from stairlib.model.errors import ConflictError, StateError


@dataclass(frozen=True, slots=True)
class _Begun:
    """The newest replacement of a region: its id, the generation of the request it led to, and the
    highest one before that."""

    replacement_id: str
    generation: int
    before: int


class ReplacementFence:
    """Of one volume; regions are named by their paths."""

    def __init__(self) -> None:
        self._newest: dict[str, _Begun] = {}
        self._past: set[str] = set()

    def check(self, region_path: str, generation: int, replacement_id: str) -> None:
        """Refuses what has been overtaken: ConflictError REPLACEMENT_OVERTAKEN, StateError
        GENERATION_TOO_LOW."""
        newest = self._newest.get(region_path)
        if replacement_id and replacement_id in self._past:
            since = newest.replacement_id if newest is not None else ""
            raise ConflictError(
                f"replacement {replacement_id} is over: {since or 'another one'} was begun after "
                "it; nothing was changed",
                reason="REPLACEMENT_OVERTAKEN",
                newest=since,
            )
        if newest is not None and generation and generation < newest.generation:
            raise StateError(
                f"the request has generation {generation}, and one with {newest.generation} was "
                "carried out already: ask with the recorded request, or a later one",
                reason="GENERATION_TOO_LOW",
                requested=str(generation),
                required=str(newest.generation),
            )

    def begun(self, region_path: str, generation: int, replacement_id: str) -> None:
        """The region has taken the request on, now or before."""
        before = self._newest.get(region_path)
        if before is not None and before.replacement_id not in ("", replacement_id):
            self._past.add(before.replacement_id)
        floor = before.generation if before is not None else 0
        if before is not None and replacement_id and before.replacement_id == replacement_id:
            floor = before.before
        self._newest[region_path] = _Begun(replacement_id, max(floor, generation), floor)

    def taken_back(self, region_path: str, replacement_id: str) -> None:
        """It is undone: the request from before it counts again, with its generation."""
        newest = self._newest.get(region_path)
        if newest is not None and replacement_id and newest.replacement_id == replacement_id:
            self._newest[region_path] = _Begun("", newest.before, newest.before)
