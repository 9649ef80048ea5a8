"""The discards of a record are not applied when a region is opened."""

from __future__ import annotations

from downstaird.core import region_recovery


def plant(patch) -> None:
    apply = region_recovery._apply

    def deaf(region, replay, replayed) -> None:
        replayed.record.discards = replayed.record.discards[:0]
        apply(region, replay, replayed)

    patch.setattr(region_recovery, "_apply", deaf)
