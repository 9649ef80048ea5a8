"""A record counts though its data is torn."""

from __future__ import annotations

from downstaird.core.log import LogReader


def plant(patch) -> None:
    patch.setattr(LogReader, "_data_is_whole", lambda *_: True)
