"""A copied block goes over one that the session wrote since the repair began."""

from __future__ import annotations

from downstaird.core.region_repair import RepairTracker


def plant(patch) -> None:
    patch.setattr(RepairTracker, "note", lambda _self, _extent, _first, _count: None)
