"""The log is not synced before a flush is answered."""

from __future__ import annotations

from tests.crashes.recording import RecordedFile


def plant(patch) -> None:
    sync = RecordedFile.datasync

    def lazy(self: RecordedFile) -> None:
        if not self.short_name.startswith("log-"):
            sync(self)

    patch.setattr(RecordedFile, "datasync", lazy)
