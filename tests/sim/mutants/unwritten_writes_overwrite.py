"""A write that is only for empty blocks is done to all of its blocks."""

from __future__ import annotations

from downstaird.core.region import Region


def plant(patch) -> None:
    patch.setattr(Region, "write_unwritten", Region.write)
