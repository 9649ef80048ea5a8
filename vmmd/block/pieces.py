"""Large requests in pieces.

What devices and exports pass to a backend stays small enough that other requests get their turn,
and only a few pieces of one request are in flight.
"""

from __future__ import annotations

from collections.abc import Iterator

# Of data: as much as fits a data frame several times.
TRANSFER_PIECE_BYTES = 1 << 20
# Of a discard, which carries no data but touches the map of every block.
DISCARD_PIECE_BYTES = 64 << 20
PIECES_IN_FLIGHT = 4
# What zero writes send; shared by all of them.
ZEROES = memoryview(bytes(TRANSFER_PIECE_BYTES))


def split(start: int, count: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, count) of consecutive pieces of at most `step` (blocks or bytes, all alike)."""
    assert step > 0
    for first in range(start, start + count, step):
        yield first, min(step, start + count - first)
