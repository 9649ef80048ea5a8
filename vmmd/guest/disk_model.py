"""What each block of a disk may hold, as far as the guest that writes it can know.

Per block: `newest`, the version of the last write begun, and `settled`, that of the last one that
succeeded. Nothing in flight and nothing failed: they are equal, and the block holds exactly that
version. Otherwise it may hold any version between the two. `may_be_zero` says that a discard was
begun since the last successful write: the block may also read as zeros. Version 0 means never
written by this guest: such a block may hold anything.

Pure. Callers do not let two writes to a block overlap in time (`busy` says whether they would).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vmmd.guest.pattern import Pattern, Versions, all_zero


@dataclass(frozen=True, slots=True)
class ReadExpectation:
    """Taken when a read begins: the oldest versions its blocks may still have."""

    first: int
    oldest: Versions
    may_be_zero: npt.NDArray[np.bool_]


class DiskModel:
    """The model of a disk of `block_count` blocks; about ten bytes a block."""

    def __init__(self, block_size: int, block_count: int, seed: int) -> None:
        self.block_size = block_size
        self.block_count = block_count
        self._pattern = Pattern(block_size, seed)
        self._newest: Versions = np.zeros(block_count, dtype=np.uint32)
        self._settled: Versions = np.zeros(block_count, dtype=np.uint32)
        self._may_be_zero = np.zeros(block_count, dtype=np.bool_)
        self._busy = np.zeros(block_count, dtype=np.bool_)

    def busy(self, first: int, count: int) -> bool:
        """Whether a write or discard of any of these blocks is in flight."""
        return bool(self._busy[first : first + count].any())

    def claim(self, first: int, count: int) -> None:
        """Makes the blocks busy, before a write or discard of them is begun."""
        blocks = slice(first, first + count)
        assert not self._busy[blocks].any()
        self._busy[blocks] = True

    def disclaim(self, first: int, count: int) -> None:
        """The blocks were claimed, but nothing was begun."""
        self._busy[first : first + count] = False

    def begin_write(self, first: int, count: int, buffer: memoryview) -> None:
        """Gives the claimed blocks their next version and puts its content into `buffer`."""
        blocks = slice(first, first + count)
        assert self._busy[blocks].all()
        self._newest[blocks] += np.uint32(1)
        self._pattern.fill(buffer, first, self._newest[blocks])

    def end_write(self, first: int, count: int, *, succeeded: bool) -> None:
        """The write begun last is over; after a failure the blocks hold the old or the new."""
        blocks = slice(first, first + count)
        self._busy[blocks] = False
        if succeeded:
            self._settled[blocks] = self._newest[blocks]
            self._may_be_zero[blocks] = False

    def begin_discard(self, first: int, count: int) -> None:
        """From now on the claimed blocks may read as zeros."""
        blocks = slice(first, first + count)
        assert self._busy[blocks].all()
        self._may_be_zero[blocks] = True

    def end_discard(self, first: int, count: int) -> None:
        """The discard is over; whether it did anything is unknown either way."""
        self._busy[first : first + count] = False

    def begin_read(self, first: int, count: int) -> ReadExpectation:
        """What the blocks hold at least while a read that begins now goes on."""
        blocks = slice(first, first + count)
        return ReadExpectation(
            first, self._settled[blocks].copy(), self._may_be_zero[blocks].copy()
        )

    def mismatches(self, expected: ReadExpectation, buffer: memoryview) -> list[int]:
        """The blocks whose content in `buffer` cannot have been there since the read began."""
        count = len(expected.oldest)
        blocks = slice(expected.first, expected.first + count)
        newest = self._newest[blocks]
        good = self._pattern.matching(buffer, expected.first, newest)
        if good.all():
            return []
        # Never settled: what was there before the first write is not known.
        good |= expected.oldest == 0
        may_be_zero = expected.may_be_zero | self._may_be_zero[blocks]
        if may_be_zero.any():
            good |= may_be_zero & all_zero(buffer, count)
        return [
            expected.first + int(index)
            for index in np.flatnonzero(~good)
            if not self._older_version(expected, buffer, int(index), int(newest[index]))
        ]

    def written_blocks(self) -> npt.NDArray[np.int64]:
        """The numbers of all blocks whose content is known, ascending."""
        return np.flatnonzero(self._settled)

    def written_runs(self, longest: int) -> list[tuple[int, int]]:
        """(first, count) of runs of known blocks, none longer than `longest`."""
        numbers = self.written_blocks()
        if not len(numbers):
            return []
        breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
        starts = numbers[np.concatenate(([0], breaks))].tolist()
        ends = (numbers[np.concatenate((breaks - 1, [len(numbers) - 1]))] + 1).tolist()
        return [
            (first, min(longest, end - first))
            for start, end in zip(starts, ends, strict=True)
            for first in range(start, end, longest)
        ]

    def _older_version(
        self, expected: ReadExpectation, buffer: memoryview, index: int, newest: int
    ) -> bool:
        block = buffer[index * self.block_size : (index + 1) * self.block_size]
        for version in range(newest - 1, int(expected.oldest[index]) - 1, -1):
            versions = np.array([version], dtype=np.uint32)
            if self._pattern.matching(block, expected.first + index, versions)[0]:
                return True
        return False
