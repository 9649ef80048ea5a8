"""The space of a discarded chunk is given back before the discard is durable."""

from __future__ import annotations

from downstaird.core.region_io import RegionBlocks


def plant(patch) -> None:
    drop = RegionBlocks.drop

    def early(self: RegionBlocks, chunk: int) -> None:
        old = int(self._chunks.durable[chunk])
        if old:
            self._chunks.data.punch(old * self._chunk_bytes, self._chunk_bytes)
        drop(self, chunk)

    patch.setattr(RegionBlocks, "drop", early)
