"""Block contexts: what is kept beside each block to prove it is what was written.

A context is 32 bytes, four little-endian u64, in arrays of shape (n, 4):

    never written, or discarded: all zero
    plain:      xxh3-64 of the block | 1 | 0 | 0
    encrypted:  u32 check, 12-byte nonce, 16-byte tag

The check of an encrypted block is for daemons, which have no key: the low 32 bits of xxh3-64 of the
ciphertext, seeded with the xxh3-64 of nonce and tag. One that has the key believes the tag alone.

Whether a region holds plain or encrypted blocks is recorded in the region, never guessed from a
context.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash

from stairlib import native

CONTEXT_BYTES = 32
PLAIN_MARK = 1

ContextArray = npt.NDArray[np.uint64]
Buffer = bytes | bytearray | memoryview

_UNWRITTEN = bytes(CONTEXT_BYTES)
_hash = xxhash.xxh3_64_intdigest


def empty_contexts(count: int) -> ContextArray:
    """Contexts of `count` never-written blocks."""
    return np.zeros((count, 4), dtype=np.uint64)


def context_array(raw: Buffer) -> ContextArray:
    """Contexts as they are stored and sent, in the same memory."""
    return np.frombuffer(raw, dtype="<u8").reshape(-1, 4)


def plain_contexts(data: Buffer, block_size: int) -> ContextArray:
    """Contexts of the plain blocks in `data`; its length is a multiple of `block_size` bytes."""
    view = memoryview(data)
    if native.compiled:
        return context_array(native.plain_contexts(view, block_size))
    contexts = np.zeros((len(view) // block_size, 4), dtype=np.uint64)
    contexts[:, 0] = block_hashes(view, block_size)
    contexts[:, 1] = PLAIN_MARK
    return contexts


def block_hashes(data: Buffer, block_size: int) -> list[int]:
    """xxh3-64 of each block of `data`. The one place that hashes block by block; each step is a C
    call."""
    if len(data) == block_size:
        return [_hash(data)]
    view = memoryview(data)
    return [_hash(view[at : at + block_size]) for at in range(0, len(view), block_size)]


def written(contexts: ContextArray) -> npt.NDArray[np.bool_]:
    """Which blocks have been written (and not discarded since). Shape (n,)."""
    return _any_of_four(np.not_equal(contexts, 0, order="C"))


def differing(one: ContextArray, other: ContextArray) -> npt.NDArray[np.bool_]:
    """Which blocks have not the same context in both. Shape (n,)."""
    return _any_of_four(np.not_equal(one, other, order="C"))


def _any_of_four(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """`flags.any(axis=1)` for rows of four, which are one u32 each: forty times quicker."""
    return np.asarray(flags.view(np.uint32).reshape(-1) != 0)


def mismatches(
    data: Buffer, contexts: ContextArray, block_size: int, *, encrypted: bool
) -> list[int]:
    """Indexes of the blocks that are not what their contexts say. Unwritten blocks must be all
    zero."""
    count = len(contexts)
    if (
        native.compiled
        and contexts.flags.c_contiguous
        and native.as_told(data, contexts, block_size, not encrypted)
    ):
        return []
    if encrypted:
        return _encrypted_mismatches(memoryview(data), contexts, block_size)
    owned = contexts[:, 1] == PLAIN_MARK
    if count == 1 and owned[0]:
        return [] if _hash(data) == int(contexts[0, 0]) else [0]
    if np.count_nonzero(owned) == count:
        hashes = block_hashes(data, block_size)
        told = contexts[:, 0].tolist()
        # Almost always they are: one comparison of two lists says so.
        if hashes == told:
            return []
        return [index for index in range(count) if hashes[index] != told[index]]
    view = memoryview(data)
    wrong = np.array(block_hashes(view, block_size), dtype=np.uint64) != contexts[:, 0]
    wrong |= ~owned & written(contexts)
    return _unless_empty(wrong, view, contexts, block_size)


def _encrypted_mismatches(view: memoryview, contexts: ContextArray, block_size: int) -> list[int]:
    raw = contexts.tobytes()
    if len(raw) == CONTEXT_BYTES and raw != _UNWRITTEN:
        return [] if encrypted_check(raw[4:], view) == int.from_bytes(raw[:4], "little") else [0]
    starts = range(0, len(view), block_size)
    heads = range(0, len(raw), CONTEXT_BYTES)
    hashes = [
        _hash(view[at : at + block_size], _hash(raw[head + 4 : head + CONTEXT_BYTES]))
        for at, head in zip(starts, heads, strict=True)
    ]
    checks = np.frombuffer(raw, dtype="<u4")[:: CONTEXT_BYTES // 4].tolist()
    # A block without a context has a check of 0, and so has one in four billion of the others.
    doubtful = [
        index
        for index, (found, told) in enumerate(zip(hashes, checks, strict=True))
        if found & 0xFFFFFFFF != told or not told
    ]
    if not doubtful:
        return []
    wrong = np.zeros(len(checks), dtype=np.bool_)
    wrong[doubtful] = [hashes[index] & 0xFFFFFFFF != checks[index] for index in doubtful]
    return _unless_empty(wrong, view, contexts, block_size)


def _unless_empty(
    wrong: npt.NDArray[np.bool_], view: memoryview, contexts: ContextArray, block_size: int
) -> list[int]:
    """Indexes of the wrong blocks, once of those without a context the ones are that hold
    anything."""
    empty = ~written(contexts)
    if np.count_nonzero(empty):
        blocks = np.frombuffer(view, dtype=np.uint8).reshape(-1, block_size)
        wrong[empty] = blocks[empty].any(axis=1)
    bad: list[int] = np.flatnonzero(wrong).tolist()
    return bad


def encrypted_check(nonce_and_tag: bytes, ciphertext: Buffer) -> int:
    """The u32 at the head of an encrypted block's context."""
    return _hash(ciphertext, _hash(nonce_and_tag)) & 0xFFFFFFFF
