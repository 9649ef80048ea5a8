"""Block contexts: what is accepted as written, and every way to be wrong."""

from __future__ import annotations

import numpy as np
import pytest

from stairlib.model import context

BLOCK = 512


def block(fill: int) -> bytes:
    return bytes([fill]) * BLOCK


def encrypted_context(data: bytes) -> np.ndarray:
    secret = bytes(range(28))
    check = context.encrypted_check(secret, data)
    return np.frombuffer(check.to_bytes(4, "little") + secret, dtype="<u8")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_plain_blocks_match_their_contexts(count: int) -> None:
    data = b"".join(block(index) for index in range(count))
    contexts = context.plain_contexts(data, BLOCK)
    assert contexts.shape == (count, 4)
    assert context.written(contexts).all()
    assert context.mismatches(data, contexts, BLOCK, encrypted=False) == []


@pytest.mark.parametrize("count", [1, 3])
def test_a_changed_block_is_found_by_its_index(count: int) -> None:
    data = bytearray(b"".join(block(index) for index in range(count)))
    contexts = context.plain_contexts(bytes(data), BLOCK)
    data[-1] ^= 1
    assert context.mismatches(data, contexts, BLOCK, encrypted=False) == [count - 1]


def test_swapped_blocks_are_found() -> None:
    contexts = context.plain_contexts(block(1) + block(2), BLOCK)
    assert context.mismatches(block(2) + block(1), contexts, BLOCK, encrypted=False) == [0, 1]


def test_an_unwritten_block_must_be_zero() -> None:
    contexts = context.empty_contexts(2)
    assert not context.written(contexts).any()
    assert context.mismatches(bytes(2 * BLOCK), contexts, BLOCK, encrypted=False) == []
    assert context.mismatches(block(0) + block(9), contexts, BLOCK, encrypted=False) == [1]


def test_written_zeros_differ_from_never_written() -> None:
    assert context.written(context.plain_contexts(bytes(BLOCK), BLOCK)).all()


def test_a_context_without_its_mark_is_no_context() -> None:
    contexts = context.plain_contexts(block(1) + block(2), BLOCK)
    contexts[0, 1] = 0
    assert context.mismatches(block(1) + block(2), contexts, BLOCK, encrypted=False) == [0]


def test_encrypted_blocks_are_checked_without_the_key() -> None:
    data = block(7)
    contexts = np.array([encrypted_context(data), np.zeros(4)], dtype=np.uint64)
    good = data + bytes(BLOCK)
    assert context.mismatches(good, contexts, BLOCK, encrypted=True) == []
    assert context.mismatches(block(8) + bytes(BLOCK), contexts, BLOCK, encrypted=True) == [0]
    assert context.mismatches(data + block(1), contexts, BLOCK, encrypted=True) == [1]


@pytest.mark.parametrize("size", [512, 4096, 32768])
@pytest.mark.parametrize("count", [1, 7])
def test_a_flipped_bit_anywhere_in_an_encrypted_block_or_its_context_is_found(size, count) -> None:
    rng = np.random.default_rng(size + count)
    data = rng.bytes(size * count)
    heads = [rng.bytes(28) for _ in range(count)]
    raw = bytearray()
    for index, head in enumerate(heads):
        check = context.encrypted_check(head, data[index * size : (index + 1) * size])
        raw += check.to_bytes(4, "little") + head
    contexts = np.frombuffer(raw, dtype="<u8").reshape(-1, 4)
    assert context.mismatches(data, contexts, size, encrypted=True) == []
    last = count - 1
    for bit in range(256):
        flipped = bytearray(raw)
        flipped[last * 32 + bit // 8] ^= 1 << bit % 8
        other = np.frombuffer(flipped, dtype="<u8").reshape(-1, 4)
        assert context.mismatches(data, other, size, encrypted=True) == [last]
    damaged = bytearray(data)
    damaged[-1] ^= 0x80
    assert context.mismatches(damaged, contexts, size, encrypted=True) == [last]
    assert context.mismatches(data, contexts, size, encrypted=False) == list(range(count))


def test_encrypted_regions_have_unwritten_blocks_that_hold_nothing() -> None:
    empty = context.empty_contexts(3)
    assert context.mismatches(bytes(3 * BLOCK), empty, BLOCK, encrypted=True) == []
    data = block(0) + block(1) + block(0)
    assert context.mismatches(data, empty, BLOCK, encrypted=True) == [1]
    assert context.mismatches(block(1), empty[:1], BLOCK, encrypted=True) == [0]
