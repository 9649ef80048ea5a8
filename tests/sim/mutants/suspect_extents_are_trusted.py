"""A failed write leaves its extent as good as before."""

from __future__ import annotations

from vmmd.upstairs.core.replay import ReplayLog


def plant(patch) -> None:
    patch.setattr(ReplayLog, "owed_extents", lambda _self, _member, _per_extent: set())
