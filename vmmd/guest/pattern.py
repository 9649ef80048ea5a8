"""What the guest writes: each block's bytes follow from its number, its version and a seed.

So any block that is read back can be checked without keeping its content. A block is 64-bit words:
a base mixed from number, version and seed, plus a ramp, so that no two words and no two blocks are
alike and shifted or mixed-up data never matches. Everything is vectorised: a megabyte takes well
below a millisecond.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Versions = npt.NDArray[np.uint32]

_WORD_BYTES = 8
_RAMP_STEP = 0x9E3779B97F4A7C15
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_NUMBER_STEP = np.uint64(0xD6E8FEB86659FD93)
_VERSION_STEP = np.uint64(0xA0761D6478BD642F)


class Pattern:
    """The contents of one disk's blocks of `block_size` bytes."""

    def __init__(self, block_size: int, seed: int) -> None:
        assert block_size % _WORD_BYTES == 0
        self._words = block_size // _WORD_BYTES
        self._seed = np.uint64(seed & 0xFFFFFFFFFFFFFFFF)
        ramp = np.arange(self._words, dtype=np.uint64)
        self._ramp: Words = ramp * np.uint64(_RAMP_STEP)

    def fill(self, buffer: memoryview, first: int, versions: Versions) -> None:
        """Writes the blocks `first`, `first + 1`, ... with these versions into `buffer`."""
        words = np.frombuffer(buffer, dtype=np.uint64).reshape(len(versions), self._words)
        np.add(self._bases(first, versions)[:, None], self._ramp, out=words)

    def matching(self, buffer: memoryview, first: int, versions: Versions) -> npt.NDArray[np.bool_]:
        """Which of the blocks in `buffer` are exactly what `fill` would have written."""
        words = np.frombuffer(buffer, dtype=np.uint64).reshape(len(versions), self._words)
        expected = self._bases(first, versions)[:, None] + self._ramp
        return np.asarray((words == expected).all(axis=1))

    def _bases(self, first: int, versions: Versions) -> Words:
        numbers = np.arange(first, first + len(versions), dtype=np.uint64)
        mixed = numbers * _NUMBER_STEP + versions.astype(np.uint64) * _VERSION_STEP + self._seed
        mixed ^= mixed >> np.uint64(30)
        mixed *= _MIX1
        mixed ^= mixed >> np.uint64(27)
        mixed *= _MIX2
        return mixed ^ (mixed >> np.uint64(31))


def all_zero(buffer: memoryview, blocks: int) -> npt.NDArray[np.bool_]:
    """Which of the `blocks` blocks in `buffer` hold only zeros."""
    words = np.frombuffer(buffer, dtype=np.uint64).reshape(blocks, -1)
    return np.asarray(~words.any(axis=1))
