"""What an extent copy compares, asks for, and sends: the decisions of both its ends, without I/O.

Source: contexts as runs without the never-written blocks; block ranges cut into steps of bounded
bytes. Target: which blocks differ from the source, and of these, which the source never wrote (they
are cleared here without being asked for). All block numbers are within the extent."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from downstaird.core.mask_runs import true_runs
from stairlib.model.context import (
    CONTEXT_BYTES,
    ContextArray,
    context_array,
    differing,
    empty_contexts,
    written,
)
from stairlib.model.errors import DataError, FieldViolation, InvalidRequestError

# One step of a copy on either end: the loop is held for a few hundred microseconds at most. Steps
# begin at multiples of it, as the engine's chunks do: a whole chunk is written once, parts of one
# twice, to the log and home.
STEP_BYTES = 256 << 10
# What is sent at once between two daemons that have nothing else to do, or beside the messages:
# each message has its price. With its contexts it is still below what every gRPC takes in one.
CHUNK_BYTES_MAX = 2 << 20
# Contexts asked for at once: 2 MiB of them, below any message limit; an extent of 512-byte blocks
# may have 1M.
WINDOW_BLOCKS = 65536


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive blocks."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class CopySource:
    """Where an extent is to be copied from, and as whom; the blob of an EXTENT_COPY."""

    address: str
    upstairs_id: uuid.UUID
    generation: int
    traceparent: str | None


def parse_source(blob: bytes) -> CopySource:
    """The JSON of an EXTENT_COPY. InvalidRequestError names the key that is wrong."""
    try:
        fields = json.loads(blob)
    except ValueError as error:
        raise InvalidRequestError(f"the copy source is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequestError("the copy source is not a JSON object")
    address, generation = fields.get("address"), fields.get("generation")
    if not isinstance(address, str) or not address:
        raise _wrong("address", "must be the source's gRPC address")
    if not isinstance(generation, int) or isinstance(generation, bool) or generation < 0:
        raise _wrong("generation", "must be the session's generation")
    try:
        upstairs_id = uuid.UUID(str(fields.get("upstairs_id")))
    except ValueError:
        raise _wrong("upstairs_id", "must be a UUID") from None
    traceparent = fields.get("traceparent")
    return CopySource(
        address, upstairs_id, generation, traceparent if isinstance(traceparent, str) else None
    )


def _wrong(key: str, rule: str) -> InvalidRequestError:
    return InvalidRequestError(f"copy source: {key} {rule}", (FieldViolation(key, rule),))


def runs(mask: npt.NDArray[np.bool_]) -> list[Run]:
    """The runs of set entries, in order."""
    return [Run(first, end - first) for first, end in true_runs(mask)]


def stored_runs(contexts: ContextArray) -> list[tuple[int, bytes]]:
    """Runs of blocks that have a context: first block and the contexts' bytes."""
    return [
        (run.first, contexts[run.first : run.first + run.count].tobytes())
        for run in runs(written(contexts))
    ]


def contexts_of(stored: Iterable[tuple[int, bytes]], count: int) -> ContextArray:
    """The contexts of `count` blocks from `stored_runs` form. DataError when they do not fit."""
    contexts = empty_contexts(count)
    for first, raw in stored:
        blocks, odd = divmod(len(raw), CONTEXT_BYTES)
        if odd or first + blocks > count:
            raise DataError("the source's contexts do not fit the extent", reason="REPAIR_SOURCE")
        contexts[first : first + blocks] = context_array(raw)
    return contexts


@dataclass(frozen=True, slots=True)
class Difference:
    """What a target must do for its blocks to be as the source's."""

    fetch: list[Run]
    clear: list[Run]


def compare(own: ContextArray, source: ContextArray, block_size: int) -> Difference:
    """Blocks to fetch, and blocks to make never-written again. The arrays begin at a step's start.

    Of a step with many blocks to fetch all stored ones are: cut by blocks that the session wrote
    meanwhile, it would be taken in small parts. The merge leaves those blocks alone."""
    differs = differing(own, source)
    stored = written(source)
    fetch = differs & stored
    blocks = _step_blocks(block_size)
    starts = np.arange(0, len(fetch), blocks)
    many = 2 * np.add.reduceat(fetch, starts, dtype=np.int64) >= blocks
    fetch |= stored & np.repeat(many, blocks)[: len(fetch)]
    return Difference(runs(fetch), runs(differs & ~stored))


def steps(
    parts: Iterable[Run], block_size: int, step_bytes: Callable[[], int] = lambda: STEP_BYTES
) -> Iterator[Run]:
    """The same blocks in pieces of at most so many bytes, cut at multiples of it; asked anew for
    each."""
    for part in parts:
        first, end = part.first, part.first + part.count
        while first < end:
            blocks = _step_blocks(block_size, step_bytes())
            stop = min(end, (first // blocks + 1) * blocks)
            yield Run(first, stop - first)
            first = stop


def first_steps(cut: Iterator[Run], count: int, block_size: int) -> list[Run]:
    """The next steps, of so many bytes together and at least one; those that touch are one run.
    Empty at the end."""
    found: list[Run] = []
    for step in cut:
        if found and found[-1].first + found[-1].count == step.first:
            found[-1] = Run(found[-1].first, found[-1].count + step.count)
        else:
            found.append(step)
        count -= step.count * block_size
        if count <= 0:
            break
    return found


def spared(bad: list[int], theirs: ContextArray, own: ContextArray) -> list[Run] | None:
    """Which blocks of a chunk to take when those in `bad` do not match their contexts; None when
    one of these is needed. It is not where this region has the same block, by its context: equal
    ones come along in a step with many that differ."""
    needed = differing(own, theirs)
    if needed[bad].any():
        return None
    taken = np.ones(len(theirs), dtype=np.bool_)
    taken[bad] = False
    return runs(taken)


def _step_blocks(block_size: int, step_bytes: int = STEP_BYTES) -> int:
    return max(1, step_bytes // block_size)


def checksum(
    contexts: bytes | bytearray | memoryview, data: Iterable[bytes | bytearray | memoryview]
) -> int:
    """xxh3-64 of the contexts, then the data, of one chunk on its way."""
    digest = xxhash.xxh3_64(contexts)
    for part in data:
        digest.update(part)
    return digest.intdigest()
