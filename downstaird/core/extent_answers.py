"""What a session is told about extents as a whole, and how extents are named to it."""

from __future__ import annotations

import numpy as np

from downstaird.core.engine import Engine, Marks
from stairlib.model.errors import InvalidRequestError, StateError
from stairlib.wire.frame import EXTENT_MARK, FLAG_INCOMPLETE, PAYLOAD_BYTES_MAX

# Digests of this many blocks at once: about 0.1 s in which nothing else is done.
DIGEST_BLOCKS_MAX = 8 << 20
_STATE_BYTES = 24


class ExtentAnswers:
    """Answers from one region; InvalidRequestError for what lies outside it or is too much."""

    def __init__(self, region: Engine) -> None:
        self._region = region
        geometry = region.definition.geometry
        self._extents = geometry.extent_count
        self._blocks_per_extent = geometry.blocks_per_extent

    def check(self, first: int, count: int) -> None:
        """Refuses extents past the end of the region."""
        if first + count > self._extents:
            raise InvalidRequestError(
                f"extents {first} to {first + count} end past the region's {self._extents} extents",
                reason="OUT_OF_RANGE",
            )

    def check_whole(self, offset: int, length: int) -> None:
        """Refuses blocks of extents that are being filled: which of them were never written, only
        the source of the repair knows, and a guess would make this region differ from the others.
        """
        first = offset // self._blocks_per_extent
        last = (offset + length - 1) // self._blocks_per_extent
        if (self._region.extent_states().flags[first : last + 1] & FLAG_INCOMPLETE).any():
            raise StateError(
                f"blocks {offset} to {offset + length} are being repaired: what is unwritten there "
                "is not known until the repair has ended"
            )

    def states(self, first: int, count: int) -> bytes:
        """Per extent generation, flush and flags, each u64."""
        self.check(first, count)
        if count * _STATE_BYTES > PAYLOAD_BYTES_MAX:
            raise InvalidRequestError(f"states of {count} extents do not fit a frame: ask in parts")
        states = self._region.extent_states()
        table = np.empty((count, 3), dtype="<u8")
        table[:, 0] = states.generations[first : first + count]
        table[:, 1] = states.flushes[first : first + count]
        table[:, 2] = states.flags[first : first + count]
        return table.tobytes()

    def digests(self, first: int, count: int) -> bytes:
        """Per extent its digest, u64."""
        self.check(first, count)
        if count > 1 and count * self._blocks_per_extent > DIGEST_BLOCKS_MAX:
            raise InvalidRequestError(f"digests of {count} extents take too long: ask in parts")
        digests = [self._region.digest(extent) for extent in range(first, first + count)]
        return np.array(digests, dtype="<u8").tobytes()

    def marks(self, blob: bytes) -> Marks:
        """What a REPAIR_BEGIN carries."""
        if not blob or len(blob) % EXTENT_MARK.itemsize:
            raise InvalidRequestError(
                f"REPAIR_BEGIN carries {EXTENT_MARK.itemsize} bytes for each extent, "
                f"not {len(blob)} in all"
            )
        marks = np.frombuffer(blob, dtype=EXTENT_MARK)
        self.check(int(marks["extent"].max()), 1)
        return marks
