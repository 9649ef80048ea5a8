"""A checkpoint does not sync the context files before its state says that they count."""

from __future__ import annotations

from tests.crashes.recording import RecordedFile


def plant(patch) -> None:
    sync = RecordedFile.datasync

    def lazy(self: RecordedFile) -> None:
        if not self.short_name.startswith("contexts-"):
            sync(self)

    patch.setattr(RecordedFile, "datasync", lazy)
