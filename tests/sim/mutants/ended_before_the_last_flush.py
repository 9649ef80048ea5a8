"""A repair ends when its last copy was answered, and its marks are dropped in memory."""

from __future__ import annotations

from vmmd.upstairs.core.live_repair import LiveRepair


def plant(patch) -> None:
    final = LiveRepair._final

    def hasty(self) -> None:
        assert self._flush is not None
        self.target.synced_job = max(self.target.synced_job, self._flush.last_job)
        final(self)

    patch.setattr(LiveRepair, "_final", hasty)
