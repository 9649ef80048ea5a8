"""A chunk that is replaced is free before the flush that replaces it is durable."""

from __future__ import annotations

from downstaird.core.chunk_map import ChunkMap


def plant(patch) -> None:
    remap = ChunkMap.remap

    def early(self: ChunkMap, chunk, physical, home) -> None:
        old = int(self.durable[chunk])
        first = chunk not in self.active_remaps and chunk not in self.frozen_remaps
        remap(self, chunk, physical, home)
        if old and first and physical:
            self.durable[chunk] = 0
            self.release(old)

    patch.setattr(ChunkMap, "remap", early)
