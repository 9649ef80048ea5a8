"""Any flush ends the marks of extents that are being filled."""

from __future__ import annotations

from vmmd.upstairs.core import region_set


def plant(patch) -> None:
    patch.setattr(region_set, "FLUSH_KEEPS_MARKS", 0)
