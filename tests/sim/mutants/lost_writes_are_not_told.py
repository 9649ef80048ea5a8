"""Writes that are gone with all whole members are not told by a failed flush."""

from __future__ import annotations

from vmmd.upstairs.core.flush import FlushBook


def plant(patch) -> None:
    silent = property(lambda _self: False, lambda _self, _value: None)
    patch.setattr(FlushBook, "lost_writes", silent, raising=False)
