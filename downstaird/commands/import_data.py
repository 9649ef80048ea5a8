"""`downstaird import`: fills a region that belongs to nobody from a file or a pipe."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from downstaird.commands.transfer import PIECE_BYTES, shown
from downstaird.core.by_hand import next_flush
from downstaird.core.engine import Engine
from downstaird.core.repair_plan import runs
from downstaird.regions import open_region
from stairlib.model.context import plain_contexts
from stairlib.model.errors import InvalidRequestError, StairwellError, StateError
from stairlib.model.geometry import Geometry

# Flushed this often, so that memory is bounded.
FLUSH_BYTES = 256 << 20


def import_file(directory: Path, source: str) -> int:
    """Copies all of `source` ("-": stdin) to the start of the region."""
    with _opened(source) as stream:
        engine = open_region(directory)
        try:
            copied = copy_in(engine, stream, source)
        finally:
            engine.close()
    blocks = -(-copied // engine.definition.geometry.block_size)
    print(f"imported {copied} bytes into {blocks} blocks of {directory}, durable")
    return 0


def file_size(source: str) -> int | None:
    """Bytes of a plain file; None of a pipe. InvalidRequestError when it cannot be read."""
    with _opened(source) as stream:
        return _size(stream)


def grown(geometry: Geometry, size: int | None) -> Geometry:
    """The geometry with as many extents as it takes to hold the file; never fewer."""
    extents = -(-(size or 0) // geometry.extent_bytes)
    return Geometry(
        geometry.block_size, geometry.blocks_per_extent, max(geometry.extent_count, extents)
    )


def copy_in(engine: Engine, stream: BinaryIO, source: str) -> int:
    """Bytes taken. The tail of the last block is zeros; blocks of zeros are left unwritten, or
    made so. StateError for a region that is encrypted or somebody's, InvalidRequestError TOO_LARGE,
    DataError."""
    _check(engine)
    geometry, size = engine.definition.geometry, _size(stream)
    if size is not None and size > geometry.total_bytes:
        raise _too_large(source, geometry)
    number = next_flush(engine)
    done = unflushed = 0
    try:
        with shown("import", size) as advance:
            while piece := _piece(stream, source):
                if done + len(piece) > geometry.total_bytes:
                    raise _too_large(source, geometry)
                _put(engine, done // geometry.block_size, piece)
                done += len(piece)
                unflushed += len(piece)
                advance(len(piece))
                if unflushed >= FLUSH_BYTES:
                    _flush(engine, number)
                    number += 1
                    unflushed = 0
        _flush(engine, number)
    except StairwellError:
        if done > unflushed:
            print(
                f"downstaird: the first {done - unflushed} bytes were imported; the region is not "
                "complete, import again or create it anew",
                file=sys.stderr,
            )
        raise
    return done


def _check(engine: Engine) -> None:
    if engine.definition.encrypted:
        raise StateError(
            "the region holds encrypted blocks, and only its upstairs has the key: import into a "
            "region that is not encrypted, or write through the volume's machine",
            reason="REGION_ENCRYPTED",
        )
    owner = engine.ownership.owner_id
    if owner is not None:
        raise StateError(
            f"the region belongs to upstairs {owner}, whose other copies would differ: write "
            "through the volume's machine, or import into a new region",
            reason="REGION_IN_USE",
            owner_id=str(owner),
        )


def _put(engine: Engine, block: int, piece: bytes) -> None:
    size = engine.definition.geometry.block_size
    piece = piece.ljust(-(-len(piece) // size) * size, b"\0")
    blocks = np.frombuffer(piece, dtype=np.uint8).reshape(-1, size)
    filled: npt.NDArray[np.bool_] = (blocks != 0).any(axis=1)
    for run in runs(filled):
        part = piece[run.first * size : (run.first + run.count) * size]
        engine.write(block + run.first, plain_contexts(part, size), part)
    for run in runs(~filled):
        engine.discard(block + run.first, run.count)


def _flush(engine: Engine, number: int) -> None:
    work = engine.begin_flush(number, engine.ownership.generation)
    try:
        work.run()
    except StairwellError as error:
        engine.finish_flush(work, error)
        raise
    engine.finish_flush(work, None)
    while engine.wants_checkpoint():
        step = engine.begin_checkpoint()
        try:
            step.run()
        except StairwellError as error:
            engine.finish_checkpoint(step, error)
            raise
        engine.finish_checkpoint(step, None)


def _opened(source: str) -> BinaryIO:
    if source == "-":
        # Not to be closed with the others: a copy of the descriptor is.
        return open(sys.stdin.fileno(), "rb", closefd=False)
    try:
        return open(source, "rb")
    except OSError as error:
        raise InvalidRequestError(
            f"{source} cannot be read: {error.strerror}", reason="SOURCE_UNREADABLE", path=source
        ) from error


def _size(stream: BinaryIO) -> int | None:
    found = os.fstat(stream.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _piece(stream: BinaryIO, source: str) -> bytes:
    """The next PIECE_BYTES; fewer only at the end."""
    parts, have = [], 0
    try:
        while have < PIECE_BYTES and (part := stream.read(PIECE_BYTES - have)):
            parts.append(part)
            have += len(part)
    except OSError as error:
        raise InvalidRequestError(
            f"{source} cannot be read: {error.strerror}", reason="SOURCE_UNREADABLE", path=source
        ) from error
    return b"".join(parts)


def _too_large(source: str, geometry: Geometry) -> InvalidRequestError:
    return InvalidRequestError(
        f"{source} has more bytes than the region's {geometry.total_bytes}: create a larger one "
        "('downstaird create --import-path' makes one that fits)",
        reason="TOO_LARGE",
    )
