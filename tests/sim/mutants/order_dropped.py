"""Writes overtake a flush that waits, so it takes what came after it and more."""

from __future__ import annotations

from downstaird.core import work_queue
from downstaird.core.work_queue import Order


def plant(patch) -> None:
    blocks = work_queue._Waiting.blocks

    def hasty(self, claim) -> bool:
        return claim.order is not Order.CHANGE and blocks(self, claim)

    patch.setattr(work_queue._Waiting, "blocks", hasty)
