"""Reading a whole region and checking every stored block against its context, in small steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from downstaird.core.engine import Buffer, Engine
from downstaird.core.repair_plan import Run, runs, steps
from stairlib.model.context import mismatches, written
from stairlib.model.errors import DataError

BAD_BLOCKS_NAMED_MAX = 100


@dataclass(frozen=True, slots=True)
class BadBlock:
    """A block, by its number in the region, and what is wrong with it."""

    block: int
    reason: str


@dataclass(slots=True)
class Verification:
    """The running totals of one check. `step` through it; the caller does other things in
    between. extents: None = all."""

    engine: Engine
    extents: range | None = None
    blocks_read: int = 0
    blocks_bad: int = 0
    extents_done: int = 0
    bad_blocks: list[BadBlock] = field(default_factory=list)

    def steps(self) -> Iterator[None]:
        """Yields after each small piece of work. Writes may go on in between: each step sees
        blocks and contexts of one moment."""
        geometry = self.engine.definition.geometry
        every = range(geometry.extent_count)
        for extent in every if self.extents is None else self.extents:
            base = extent * geometry.blocks_per_extent
            try:
                stored = runs(written(self.engine.contexts(base, geometry.blocks_per_extent)))
            except DataError as error:
                self._bad(base, geometry.blocks_per_extent, error.message)
                stored = []
            for run in steps(stored, geometry.block_size):
                self._check(base, run)
                yield
            self.extents_done += 1
            yield

    def _check(self, base: int, run: Run) -> None:
        definition = self.engine.definition
        self.blocks_read += run.count
        try:
            contexts, buffers = self.engine.read(base + run.first, run.count)
        except DataError as error:
            self._bad(base + run.first, run.count, error.message)
            return
        for index in mismatches(
            joined(buffers),
            contexts,
            definition.geometry.block_size,
            encrypted=definition.encrypted,
        ):
            self._bad(base + run.first + index, 1, "the data does not match the block's context")

    def _bad(self, block: int, count: int, reason: str) -> None:
        self.blocks_bad += count
        if len(self.bad_blocks) < BAD_BLOCKS_NAMED_MAX:
            self.bad_blocks.append(BadBlock(block, reason))


def joined(buffers: Sequence[Buffer]) -> Buffer:
    """One buffer of several; the same one where it is alone."""
    return buffers[0] if len(buffers) == 1 else b"".join(buffers)
