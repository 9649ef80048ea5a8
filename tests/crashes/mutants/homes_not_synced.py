"""A checkpoint does not sync the data file before its state lets go of the log."""

from __future__ import annotations

from downstaird.core.region_checkpoint import CommitJob
from tests.crashes.recording import RecordedFile


def plant(patch) -> None:
    run = CommitJob.run
    sync = RecordedFile.datasync
    committing = []

    def hasty(self: CommitJob) -> None:
        committing.append(True)
        try:
            run(self)
        finally:
            committing.pop()

    def lazy(self: RecordedFile) -> None:
        if not (committing and self.short_name == "data"):
            sync(self)

    patch.setattr(CommitJob, "run", hasty)
    patch.setattr(RecordedFile, "datasync", lazy)
