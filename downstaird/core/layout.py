"""How a region's blocks are cut into chunks, and the engine's limits.

A chunk is a run of blocks within one extent, normally 256 KiB. It is the unit of the map from
logical to physical place, of context blocks in the contexts files, and of the in-memory overlay.
Where an extent is not a whole number of chunks its last chunk is short; physical chunks all have
the full size, so the rest is a hole.

An *address* is `chunk * chunk_blocks + index in the chunk`: the block number, except in regions
with short chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stairlib.model.errors import InvalidRequestError
from stairlib.model.geometry import Geometry

# Measured: large enough for sequential reads to stay sequential and for 1.6 MiB of map per 100 GiB,
# small enough that a large guest write fills whole chunks.
CHUNK_BYTES = 256 << 10

# chunk, first block within it, number of blocks
Piece = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Tuning:
    """Limits of one open region. Nothing here is part of the format."""

    # Whole chunks go straight to their place when a write has this many bytes of them; less is
    # quicker by the log.
    large_bytes: int = 256 << 10
    # Unflushed small writes kept in memory; the upstairs flushes at 64 MiB at the latest.
    arena_bytes: int = 64 << 20
    # A checkpoint is wanted when a log has grown to this size ...
    log_bytes: int = 64 << 20
    # ... and forced inside begin_flush at this one, should the daemon not keep up.
    log_bytes_max: int = 512 << 20
    # Contexts of large writes wait in memory for the checkpoint: 4 GiB of data with 4 KiB blocks.
    fresh_context_bytes: int = 32 << 20
    # Contexts read back from files: 2 GiB of data with 4 KiB blocks.
    cached_context_bytes: int = 16 << 20
    # Tables of the overlay, one for each chunk with small writes that are not home yet.
    table_bytes: int = 32 << 20
    # Bounds how long a flush can wait behind a checkpoint's step (about 5 ms); more, by this
    # factor, for each `log_bytes` by which the other log has grown meanwhile.
    step_blocks: int = 128
    step_growth: int = 4
    # The log is written with zeros this far ahead, so that most flushes need no file system journal
    # commit.
    log_zero_bytes: int = 1 << 20


DEFAULT_TUNING = Tuning()


@dataclass(frozen=True, slots=True)
class Layout:
    """Chunk arithmetic of one region. `chunk_blocks` is fixed at creation."""

    geometry: Geometry
    chunk_blocks: int
    # Derived, kept because the hot path asks for them: bytes of a full chunk; chunks of one extent
    # (the short one included); logical chunks and blocks of the region; whether chunks are all of
    # one size.
    chunk_bytes: int = field(init=False)
    chunks_per_extent: int = field(init=False)
    chunk_count: int = field(init=False)
    block_count: int = field(init=False)
    even: bool = field(init=False)

    def __post_init__(self) -> None:
        geometry = self.geometry
        per_extent = -(-geometry.blocks_per_extent // self.chunk_blocks)
        for name, value in (
            ("chunk_bytes", self.chunk_blocks * geometry.block_size),
            ("chunks_per_extent", per_extent),
            ("chunk_count", per_extent * geometry.extent_count),
            ("block_count", geometry.block_count),
            ("even", geometry.blocks_per_extent % self.chunk_blocks == 0),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def for_geometry(cls, geometry: Geometry, chunk_bytes: int = CHUNK_BYTES) -> Layout:
        """The layout a new region gets."""
        blocks = max(1, chunk_bytes // geometry.block_size)
        return cls(geometry, min(blocks, geometry.blocks_per_extent))

    def blocks_in(self, chunk: int) -> int:
        """Blocks of that chunk: fewer than `chunk_blocks` in the last of an uneven extent."""
        per_extent = self.chunks_per_extent
        if self.even or (chunk + 1) % per_extent:
            return self.chunk_blocks
        return self.geometry.blocks_per_extent - (per_extent - 1) * self.chunk_blocks

    def check(self, offset: int, count: int) -> None:
        """InvalidRequestError OUT_OF_RANGE unless the blocks are in the region."""
        if offset < 0 or count < 1 or offset + count > self.block_count:
            raise InvalidRequestError(
                f"blocks {offset} to {offset + count - 1} are not all within the region's "
                f"{self.block_count} blocks",
                reason="OUT_OF_RANGE",
                offset=str(offset),
                count=str(count),
            )

    def pieces(self, offset: int, count: int) -> list[Piece]:
        """The range cut at chunk borders, in order."""
        size = self.chunk_blocks
        if self.even:
            chunk, first = divmod(offset, size)
            if first + count <= size:
                return [(chunk, first, count)]
            return self._cut(chunk, first, count)
        per_extent = self.geometry.blocks_per_extent
        found: list[Piece] = []
        while count:
            extent, within = divmod(offset, per_extent)
            here = min(count, per_extent - within)
            chunk, first = divmod(within, size)
            found += self._cut(extent * self.chunks_per_extent + chunk, first, here)
            offset += here
            count -= here
        return found

    def _cut(self, chunk: int, first: int, count: int) -> list[Piece]:
        found = []
        size = self.chunk_blocks
        while count:
            here = min(count, size - first)
            found.append((chunk, first, here))
            count -= here
            chunk += 1
            first = 0
        return found
