"""A scrub is done when it has written everything, and nobody has flushed it."""

from __future__ import annotations

from vmmd.block import scrub
from vmmd.block.backend import BlockOp, BlockStatus, Completion


def plant(patch) -> None:
    submitted = scrub._submitted

    async def hasty(submit, requests):
        if requests[0].op is BlockOp.FLUSH:
            return [Completion(0, BlockStatus.OK)]
        return await submitted(submit, requests)

    patch.setattr(scrub, "_submitted", hasty)
