"""The shape of a region, and its limits (reference: Crucible region definition, limits of §1.2)."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_SIZE_MIN = 512
BLOCK_SIZE_MAX = 32768
EXTENT_BYTES_MAX = 512 << 20
# u32 on the wire; far above any real region, and low enough that per-extent arrays stay small.
EXTENT_COUNT_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Geometry:
    """block_size in bytes; blocks_per_extent in blocks. Call `problems` before trusting one from
    outside."""

    block_size: int
    blocks_per_extent: int
    extent_count: int

    @property
    def extent_bytes(self) -> int:
        """Bytes of one extent."""
        return self.block_size * self.blocks_per_extent

    @property
    def block_count(self) -> int:
        """Blocks of the whole region."""
        return self.blocks_per_extent * self.extent_count

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole region."""
        return self.extent_bytes * self.extent_count

    def problems(self) -> list[tuple[str, str]]:
        """(field, what would be right) for each limit that is broken; empty when the geometry is
        legal."""
        found = []
        size = self.block_size
        if not BLOCK_SIZE_MIN <= size <= BLOCK_SIZE_MAX or size & (size - 1):
            found.append(
                (
                    "block_size",
                    f"{size} is not a power of two from {BLOCK_SIZE_MIN} to {BLOCK_SIZE_MAX} bytes",
                )
            )
        if self.blocks_per_extent < 1:
            found.append(("blocks_per_extent", "an extent holds at least one block"))
        elif size > 0 and self.extent_bytes > EXTENT_BYTES_MAX:
            found.append(
                (
                    "blocks_per_extent",
                    f"an extent of {self.extent_bytes} bytes is above {EXTENT_BYTES_MAX} (512 MiB)",
                )
            )
        if not 1 <= self.extent_count <= EXTENT_COUNT_MAX:
            found.append(
                ("extent_count", f"{self.extent_count} is not from 1 to {EXTENT_COUNT_MAX} extents")
            )
        return found

    def describe(self) -> str:
        """For messages: block size, extent size, extent count."""
        return (
            f"{self.block_size}-byte blocks, {self.blocks_per_extent} blocks an extent, "
            f"{self.extent_count} extents"
        )
