"""What a repair reads and writes on a thread of its own, beside the loop: the moving of bytes.

What is read or written, and whether it counts, is decided on the loop, before and after. A merge
writes to chunks that nothing names yet. A read is of the chunks' homes, and is only good when these
are afterwards what they were before. Invariant: a work that ran is given back to the engine exactly
once, and before the region is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from downstaird.core.chunk_contexts import Home
from downstaird.core.disk import Buffer, File
from downstaird.core.mask_runs import true_runs
from downstaird.core.region_repair import by_extent
from stairlib.model.context import ContextArray, written
from stairlib.model.errors import StateError

if TYPE_CHECKING:
    from downstaird.core.region import Region


@dataclass(frozen=True, slots=True)
class MergeJob:
    """Whole chunks on their way to fresh places. chunks: chunk, its first block here, blocks.
    round: of the repair it belongs to."""

    offset: int
    contexts: ContextArray
    data: Buffer
    chunks: list[tuple[int, int, int]]
    taken: list[int]
    writes: list[tuple[memoryview, int]]
    file: File
    round: int

    def run(self) -> None:
        """Writes; nothing of it counts yet. DataError."""
        for part, at in self.writes:
            self.file.write_past_cache(part, at)


@dataclass(frozen=True, slots=True)
class ReadJob:
    """Blocks that lie in their chunks' homes. parts: size and place in the data file."""

    contexts: ContextArray
    homes: list[tuple[int, int, Home]]
    parts: list[tuple[int, int]]
    file: File

    def run(self) -> list[Buffer]:
        """Buffers that add up to the blocks. DataError."""
        return [self.file.pread(size, at) for size, at in self.parts]

    def send(self, descriptor: int, wait: Callable[[], None]) -> None:
        """Sends the blocks' bytes to a socket; `wait` returns when it takes more. DataError, and
        OSError for the socket."""
        for size, at in self.parts:
            end = at + size
            while at < end:
                try:
                    at += self.file.sendfile(descriptor, at, end - at)
                except BlockingIOError:
                    wait()


def merge_of(region: Region, offset: int, contexts: ContextArray, data: Buffer) -> MergeJob | None:
    """The work that merges these blocks, when all of them are wanted and they are whole chunks;
    None when they must be merged on the loop. DataError NO_SPACE."""
    layout, count = region.layout, len(contexts)
    pieces = layout.pieces(offset, count)
    if any(blocks != layout.blocks_in(chunk) for chunk, _, blocks in pieces):
        return None
    if not written(contexts).all() or not _all_untouched(region, offset, count):
        return None
    starts = np.cumsum([0, *(blocks for _, _, blocks in pieces)]).tolist()
    chunks = [(chunk, at, blocks) for (chunk, _, blocks), at in zip(pieces, starts, strict=False)]
    taken, writes = region.blocks.place(chunks, memoryview(data))
    return MergeJob(
        offset, contexts, data, chunks, taken, writes, region.chunks.data, region.repair.round
    )


def finished(region: Region, work: MergeJob, *, keep: bool) -> int:
    """Makes what was written count; bytes taken. When the session has changed any of it meanwhile,
    or another repair has begun, the rest is merged on the loop. `keep` False: its places are free
    again, and that is all."""
    count = len(work.contexts)
    if keep and work.round == region.repair.round and _all_untouched(region, work.offset, count):
        region.blocks.settle(work.chunks, work.taken, work.contexts)
        return len(work.data)
    region.blocks.give_up(work.taken)
    if not keep or work.round != region.repair.round:
        return 0
    return region.repair_merge(work.offset, work.contexts, work.data)


def merge_now(region: Region, offset: int, contexts: ContextArray, data: Buffer) -> int:
    """Takes what the session has not written since the repair began; bytes taken. StateError
    NOT_UNDER_REPAIR, DataError."""
    layout = region.layout
    size = layout.geometry.block_size
    view = memoryview(data)
    applied = 0
    per_extent = layout.geometry.blocks_per_extent
    for extent, first, here, before in by_extent(per_extent, offset, len(contexts)):
        if not region.repair.tracks(extent):
            raise StateError(f"extent {extent} is not under repair", reason="NOT_UNDER_REPAIR")
        wanted = region.repair.untouched(extent, first, here)
        there = written(contexts[before : before + here])
        region.blocks.merge(
            layout.pieces(offset + before, here),
            wanted & there,
            contexts[before : before + here],
            view[before * size : (before + here) * size],
        )
        for start, stop in true_runs(wanted & ~there):
            region.blocks.discard(layout.pieces(offset + before + start, stop - start))
        applied += int(np.count_nonzero(wanted)) * size
    return applied


def _all_untouched(region: Region, offset: int, count: int) -> bool:
    per_extent = region.layout.geometry.blocks_per_extent
    return all(
        region.repair.tracks(extent) and region.repair.untouched(extent, first, here).all()
        for extent, first, here, _ in by_extent(per_extent, offset, count)
    )


def read_of(region: Region, offset: int, count: int) -> ReadJob | None:
    """The work that reads these blocks, where it can be done beside the loop. As Region.read
    otherwise."""
    region.layout.check(offset, count)
    if region.extents.damaged:
        region.refuse_damaged(offset, count)
    pieces = region.layout.pieces(offset, count)
    homes = region.blocks.homes_of(pieces)
    if homes is None:
        return None
    size = region.layout.geometry.block_size
    contexts: list[ContextArray] = []
    parts: list[tuple[int, int]] = []
    for (_, first, count), (_, physical, home) in zip(pieces, homes, strict=True):
        contexts.append(home.contexts[first : first + count])
        at = physical * region.layout.chunk_bytes + first * size
        if parts and sum(parts[-1]) == at:
            parts[-1] = (parts[-1][0] + count * size, parts[-1][1])
        else:
            parts.append((count * size, at))
    return ReadJob(np.concatenate(contexts), homes, parts, region.chunks.data)
