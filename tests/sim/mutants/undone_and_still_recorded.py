"""A replacement is undone, and its request stays the recorded one."""

from __future__ import annotations

from controlplane.core.replacement import Replacement


def plant(patch) -> None:
    patch.setattr(Replacement, "undone", property(lambda _self: False))
