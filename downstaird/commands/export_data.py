"""`downstaird export`: a region's blocks as one stream of bytes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from downstaird.commands.transfer import PIECE_BYTES, shown
from downstaird.core.engine import Buffer, Engine
from downstaird.regions import opened
from stairlib.model.context import mismatches
from stairlib.model.errors import DataError, InvalidRequestError

# Runs of zeros of this size, at multiples of it, become holes.
HOLE_BYTES = 64 << 10


def export_file(directory: Path, target: str, *, skip: int, count: int) -> int:
    """Writes `count` blocks (0: all) from block `skip` on to `target` ("-": stdout). Blocks of an
    encrypted region stay encrypted. DataError for the first block that is not as it was written."""
    with opened(directory) as engine:
        total = engine.definition.geometry.block_count
        if skip < 0 or count < 0 or skip > total or skip + count > total:
            raise InvalidRequestError(
                f"--skip {skip} and --count {count} do not lie within the region's {total} blocks",
                reason="OUT_OF_RANGE",
            )
        count = count or total - skip
        with _opened(target) as stream:
            _copy(engine, stream, target, range(skip, skip + count))
    where = "stdout" if target == "-" else target
    print(f"exported blocks {skip} to {skip + count - 1} to {where}", file=sys.stderr)
    return 0


def _copy(engine: Engine, stream: BinaryIO, target: str, blocks: range) -> None:
    size = engine.definition.geometry.block_size
    step = max(1, PIECE_BYTES // size)
    # Zeros become holes where the file can have them.
    sparse = stream.seekable() and target != "-"
    with shown("export", len(blocks) * size) as advance:
        for first in blocks[::step]:
            here = min(step, blocks.stop - first)
            data = _checked(engine, first, here)
            try:
                if sparse:
                    _write_sparse(stream, data)
                else:
                    stream.write(data)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise _cannot_write(target, error) from error
            advance(here * size)
        try:
            if sparse:
                stream.truncate(len(blocks) * size)
            stream.flush()
        except OSError as error:
            raise _cannot_write(target, error) from error


def _write_sparse(stream: BinaryIO, data: Buffer) -> None:
    for at in range(0, len(data), HOLE_BYTES):
        part = bytes(data[at : at + HOLE_BYTES])
        if part.count(0) == len(part):
            stream.seek(len(part), os.SEEK_CUR)
        else:
            stream.write(part)


def _checked(engine: Engine, first: int, count: int) -> Buffer:
    definition = engine.definition
    size = definition.geometry.block_size
    contexts, buffers = engine.read(first, count)
    data = buffers[0] if len(buffers) == 1 else b"".join(buffers)
    bad = mismatches(data, contexts, size, encrypted=definition.encrypted)
    if bad:
        raise DataError(
            f"block {first + bad[0]} does not match its context: export from another replica, or "
            "repair this one first ('downstaird verify' names all such blocks)",
            reason="HASH_MISMATCH",
            block=str(first + bad[0]),
        )
    return data


@contextmanager
def _opened(target: str) -> Iterator[BinaryIO]:
    if target == "-":
        yield sys.stdout.buffer
        return
    try:
        stream = open(target, "wb")  # noqa: SIM115 - closed below, whose error is told
    except OSError as error:
        raise _cannot_write(target, error) from error
    with stream:
        yield stream


def _cannot_write(target: str, error: OSError) -> DataError:
    return DataError(
        f"{target} cannot be written: {error.strerror}", reason="IO_ERROR", file=target
    )
