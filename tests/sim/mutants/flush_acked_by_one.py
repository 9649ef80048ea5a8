"""A flush ends well as soon as one member has made it durable."""

from __future__ import annotations

from vmmd.upstairs.core import flush


def plant(patch) -> None:
    patch.setattr(flush, "FLUSH_ACKS_NEEDED", 1)
