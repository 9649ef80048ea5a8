"""A scrub writes over what the guest wrote meanwhile."""

from __future__ import annotations

from vmmd.block import scrub
from vmmd.block.backend import BlockOp


class _Careless:
    READ_OWNED = BlockOp.READ_OWNED
    FLUSH = BlockOp.FLUSH
    WRITE_UNWRITTEN = BlockOp.WRITE


def plant(patch) -> None:
    patch.setattr(scrub, "BlockOp", _Careless)
