"""A promotion is answered before it is durable."""

from __future__ import annotations

from tests.crashes.recording import RecordedFile


def plant(patch) -> None:
    sync = RecordedFile.datasync

    def lazy(self: RecordedFile) -> None:
        if self.short_name != "owner":
            sync(self)

    patch.setattr(RecordedFile, "datasync", lazy)
