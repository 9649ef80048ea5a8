"""How far a session has come with a frame, and what belongs to its next op."""

from __future__ import annotations

from dataclasses import dataclass

from stairlib.model.context import ContextArray
from stairlib.wire.frame import Frame, OpKind

WRITE = int(OpKind.WRITE)
_CARRY_DATA = frozenset((WRITE, int(OpKind.WRITE_UNWRITTEN)))

# An entry of a frame's table: job, kind, status, flags, dependencies, offset, length, bytes of its
# blob, generation, number.
Row = tuple[int, int, int, int, int, int, int, int, int, int]


@dataclass(slots=True)
class Progress:
    """How far a frame has been worked off. Indexes into its parts: the next op, the first block of
    its data, its first dependency. bad_blocks: those whose data is not what their contexts say."""

    frame: Frame
    rows: list[Row]
    bad_blocks: list[int]
    block_size: int
    at: int = 0
    block: int = 0
    dependency: int = 0

    def carried(self, row: Row) -> tuple[ContextArray | None, memoryview, bool]:
        """The contexts and data of the next op, which is `row`, as views, and whether they
        match."""
        if row[1] not in _CARRY_DATA:
            return None, self.frame.payload[:0], True
        first = self.block
        contexts, data = self.take(row[6])
        intact = True
        if self.bad_blocks:
            intact = not any(first <= block < self.block for block in self.bad_blocks)
        return contexts, data, intact

    def take(self, blocks: int) -> tuple[ContextArray, memoryview]:
        """The contexts and data of that many blocks, as views."""
        first = self.block
        end = self.block = first + blocks
        size = self.block_size
        return self.frame.contexts[first:end], self.frame.payload[first * size : end * size]

    def single_writes(self, limit: int) -> list[Row]:
        """The next ops, at most `limit`, as far as each is a write of one block that waits for
        nothing; none when a block of the frame is not what its context says."""
        if self.bad_blocks:
            return []
        rows = self.rows
        stop = at = self.at
        end = min(len(rows), at + limit)
        while stop < end:
            row = rows[stop]
            if row[1] != WRITE or row[6] != 1 or row[4] or row[7]:
                break
            stop += 1
        return rows[at:stop]
