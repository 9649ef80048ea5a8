"""A record whose sync failed counts when the region is opened again."""

from __future__ import annotations

from downstaird.core.region_files import VoidFile


def plant(patch) -> None:
    patch.setattr(VoidFile, "add_record", lambda _self, _sequence: None)
