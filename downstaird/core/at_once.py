"""Requests of reads alone, or of small writes alone, done as a whole in compiled code.

These are nearly all that a guest's volume sends, and each would cost a dozen steps of Python for
each op. What is not of this kind, what cannot be done, and what waits for something is left to the
session and the region, which decide about all of it: nothing has changed then.
"""

from __future__ import annotations

from downstaird.core.engine import Engine
from downstaird.core.region import Region
from stairlib import native
from stairlib.model.errors import StairwellError
from stairlib.wire.frame import HEADER_BYTES, Frame, FrameKind, OpKind

_KIND_AT = HEADER_BYTES + 8
_READ, _WRITE = int(OpKind.READ), int(OpKind.WRITE)


class AtOnce:
    """For one region, whose chunks are all of one size."""

    def __init__(self, region: Region) -> None:
        self._region = region
        layout = region.layout
        geometry = layout.geometry
        self._chunk_blocks = layout.chunk_blocks
        self._size = geometry.block_size
        self._blocks = layout.block_count
        self._extent_blocks = geometry.blocks_per_extent
        self._large_blocks = -(-region.tuning.large_bytes // geometry.block_size)
        self._plain = not region.definition.encrypted

    def serve(self, frame: Frame, *, read_only: bool) -> tuple[bytes, int, int] | None:
        """(the reply, blocks read, blocks written) of what was done; None: nothing was. Nothing may
        wait in the session."""
        region = self._region
        if frame.kind is not FrameKind.REQUEST or not frame.op_count or region.extents.damaged:
            return None
        kind = frame.data[_KIND_AT]
        if kind == _READ:
            try:
                served = native.serve_reads(
                    frame.data,
                    region.overlay,
                    region.chunks,
                    self._chunk_blocks,
                    self._size,
                    self._blocks,
                )
            except StairwellError:
                # Told to whom it concerns by whoever meets it again.
                return None
            return None if served is None else (served[0], served[1], 0)
        if kind != _WRITE or read_only or not region.writable or region.repair:
            return None
        served = native.serve_writes(
            frame.data,
            region.overlay,
            region.extents.touched,
            self._chunk_blocks,
            self._size,
            self._blocks,
            self._extent_blocks,
            self._large_blocks,
            self._plain,
        )
        return None if served is None else (served[0], 0, served[1])


def at_once(engine: Engine) -> AtOnce | None:
    """Where compiled code is there and the engine is one that it knows."""
    if native.compiled and isinstance(engine, Region) and engine.layout.even:
        return AtOnce(engine)
    return None
