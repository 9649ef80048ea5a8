"""A member that leaves counts as one that keeps a flush."""

from __future__ import annotations

from vmmd.upstairs.core import region_set


def plant(patch) -> None:
    judge = region_set.judge
    patch.setattr(region_set, "judge", lambda record, active, _departing: judge(record, active))
