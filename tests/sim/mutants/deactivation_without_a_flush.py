"""A deactivation ends well without its last flush."""

from __future__ import annotations

from vmmd.upstairs.core.flush import FlushBook


def plant(patch) -> None:
    patch.setattr(FlushBook, "unproven", property(lambda _self: False))
