"""The record of a flush is written, and the flush answered, without a sync."""

from __future__ import annotations

from downstaird.store.memory import MemoryFile


def plant(patch) -> None:
    sync = MemoryFile.datasync

    def lazy(self: MemoryFile) -> None:
        if "/log-" not in self.name:
            sync(self)

    patch.setattr(MemoryFile, "datasync", lazy)
