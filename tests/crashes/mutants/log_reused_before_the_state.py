"""A log is emptied while the state that needs it still counts."""

from __future__ import annotations

from downstaird.core.region_checkpoint import CommitJob


def plant(patch) -> None:
    run = CommitJob.run

    def hasty(self: CommitJob) -> None:
        for file in EMPTIED:
            file[0].files[1 - file[0].active].truncate(0)
        run(self)

    from downstaird.core import region_checkpoint

    next_job = region_checkpoint.next_job
    EMPTIED: list = []

    def noting(region, seal):
        EMPTIED[:] = [(region.log,)]
        return next_job(region, seal)

    patch.setattr("downstaird.core.region.next_job", noting)
    patch.setattr(CommitJob, "run", hasty)
