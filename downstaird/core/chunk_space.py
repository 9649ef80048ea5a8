"""Which physical chunks are free, and how they are handed out.

Physical chunks are numbered from 1; 0 in a map means never written. Free ones below the end are
kept as sorted runs, so that chunks handed out together lie together; used ones before new ones,
as writing over space that is already allocated is measured to be up to three times quicker than
growing.
"""

from __future__ import annotations

from bisect import bisect_right, insort

import numpy as np
import numpy.typing as npt

# One entry of the durable map has 31 bits for the physical chunk.
PHYSICAL_MAX = (1 << 31) - 1
# How many free runs are looked at for one that holds a whole write; bounds the time of a hand-out.
_RUNS_TRIED_MAX = 64


class ChunkSpace:
    """The allocator. Its runs never touch each other and never reach `end`."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, int]] = []
        self.end = 1

    @classmethod
    def around(cls, used: npt.NDArray[np.uint32]) -> ChunkSpace:
        """Everything below the highest used chunk that is not in `used` (zeros ignored) is free."""
        space = cls()
        # One mark a chunk: sorting them takes a hundred times as long, and the memory of a daemon.
        there = np.zeros(int(used.max(initial=0)) + 1, dtype=np.bool_)
        there[used] = True
        there[0] = True
        edges = (np.flatnonzero(there[1:] != there[:-1]) + 1).tolist()
        space._runs = [
            (start, stop - start) for start, stop in zip(edges[::2], edges[1::2], strict=True)
        ]
        space.end = len(there)
        return space

    def free_count(self) -> int:
        """Free chunks below `end`."""
        return sum(length for _, length in self._runs)

    def take(self, count: int) -> list[int]:
        """`count` chunks, ascending where they can be: one free run that holds them, else free
        pieces, else new."""
        assert count > 0
        for at, (start, length) in enumerate(self._runs[:_RUNS_TRIED_MAX]):
            if length >= count:
                self._shorten(at, start, length, count)
                return list(range(start, start + count))
        taken: list[int] = []
        while self._runs and len(taken) < count:
            start, length = self._runs[0]
            here = min(length, count - len(taken))
            self._shorten(0, start, length, here)
            taken += range(start, start + here)
        rest = count - len(taken)
        taken += range(self.end, self.end + rest)
        self.end += rest
        assert self.end <= PHYSICAL_MAX
        return taken

    def _shorten(self, at: int, start: int, length: int, taken: int) -> None:
        if taken == length:
            del self._runs[at]
        else:
            self._runs[at] = (start + taken, length - taken)

    def release(self, physical: int) -> None:
        """Gives one chunk back."""
        assert 0 < physical < self.end
        runs = self._runs
        at = bisect_right(runs, (physical, PHYSICAL_MAX))
        start, length = physical, 1
        if at < len(runs) and runs[at][0] == physical + 1:
            length += runs[at][1]
            del runs[at]
        if at > 0:
            before, before_length = runs[at - 1]
            assert before + before_length <= physical, "a chunk was released twice"
            if before + before_length == physical:
                start = before
                length += before_length
                del runs[at - 1]
        insort(runs, (start, length))
