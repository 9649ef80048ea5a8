"""A log is emptied while the state that needs it still counts."""

from __future__ import annotations

from downstaird.core import region_checkpoint
from downstaird.core.region_checkpoint import CommitJob


def plant(patch) -> None:
    run = CommitJob.run
    next_job = region_checkpoint.next_job
    logs: list = []

    def noting(region, seal):
        logs[:] = [region.log]
        return next_job(region, seal)

    def hasty(self: CommitJob) -> None:
        for log in logs:
            log.files[1 - log.active].truncate(0)
        run(self)

    patch.setattr("downstaird.core.region.next_job", noting)
    patch.setattr(CommitJob, "run", hasty)
