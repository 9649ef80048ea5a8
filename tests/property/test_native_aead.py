"""The compiled loop over encrypted blocks beside the Python form."""

from __future__ import annotations

import random

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from stairlib import native
from stairlib.model.cipher import CIPHERS
from stairlib.model.context import context_array, mismatches
from tests.native_forms import in_python, needs_compiled
from vmmd.upstairs.core.codec import Encryption, Keyring

pytestmark = needs_compiled

KEY = bytes(range(32))
OWNER = "11111111-1111-1111-1111-111111111111"

ciphers = st.sampled_from(CIPHERS)
sizes = st.sampled_from([512, 4096, 32768])
seeds = st.integers(0, 1 << 30)
some_spans = st.lists(
    st.tuples(st.integers(0, (1 << 64) - 100), st.integers(1, 5)), min_size=1, max_size=4
)


def codec_of(cipher, size, seed):
    return Keyring(Encryption(KEY, random.Random(seed).randbytes), size).codec(cipher, OWNER)


def in_both(work):
    """What it gives, in Python and compiled."""
    with in_python():
        one = work()
    return one, work()


@given(ciphers, sizes, some_spans, seeds)
def test_the_same_is_sealed(cipher, size, spans, seed) -> None:
    data = random.Random(seed).randbytes(sum(count for _, count in spans) * size)

    def seal():
        contexts, out = codec_of(cipher, size, seed).seal(data, iter(spans), 7)
        return contexts.tobytes(), bytes(out)

    one, other = in_both(seal)
    assert one == other
    contexts = context_array(one[0])
    assert mismatches(one[1], contexts, size, encrypted=True) == []


@given(ciphers, sizes, some_spans, seeds, st.data())
def test_the_same_is_opened_and_refused(cipher, size, spans, seed, draw) -> None:
    """With blocks that were never written, and bits that are not as they were, in contexts, data
    and places."""
    count = sum(blocks for _, blocks in spans)
    codec = codec_of(cipher, size, seed)
    sealed, out = codec.seal(random.Random(seed).randbytes(count * size), iter(spans), 7)
    contexts, blocks = bytearray(sealed.tobytes()), bytearray(out)
    for block in draw.draw(st.sets(st.integers(0, count - 1))):
        contexts[block * 32 : (block + 1) * 32] = bytes(32)
        blocks[block * size : (block + 1) * size] = bytes(size)
    for bit in draw.draw(st.sets(st.integers(0, count * 256 - 1), max_size=1)):
        contexts[bit // 8] ^= 1 << bit % 8
    for bit in draw.draw(st.sets(st.integers(0, count * size * 8 - 1), max_size=1)):
        blocks[bit // 8] ^= 1 << bit % 8
    if draw.draw(st.booleans()):
        spans = [(first + 1, length) for first, length in spans]
    told = context_array(contexts)

    def opened():
        ways = (
            codec.open(memoryview(blocks), told, iter(spans)),
            codec.open(memoryview(blocks), np.asfortranarray(told), iter(spans)),
            codec.open_at_once(memoryview(blocks), memoryview(contexts), lambda: spans),
        )
        return [None if way is None else bytes(way) for way in ways]

    one, other = in_both(opened)
    assert one == other
    assert one[0] == one[1] == one[2]


@pytest.mark.parametrize(
    ("blocks", "nonces", "spans"),
    [
        (512 + 1, 12, [(0, 1)]),
        (512, 11, [(0, 1)]),
        (1024, 24, [(0, 1)]),
        (1024, 24, [(0, 3)]),
        (1024, 24, [(0, 1), (5, 2)]),
        (1024, 24, []),
    ],
)
def test_sizes_that_do_not_add_up_are_not_sealed(blocks, nonces, spans) -> None:
    with pytest.raises(ValueError, match=r"bytes|spans"):
        native.seal(AESGCM(KEY).encrypt_into, bytes(blocks), 512, bytes(nonces), spans)


@pytest.mark.parametrize(
    ("blocks", "contexts", "spans"),
    [
        (513, 32, [(0, 1)]),
        (512, 33, [(0, 1)]),
        (1024, 64, [(0, 1)]),
        (1024, 64, [(0, 3)]),
        (1024, 64, []),
        (1024, 64, [(0, 1), (5, 2)]),
    ],
)
def test_sizes_that_do_not_add_up_are_not_opened(blocks, contexts, spans) -> None:
    decrypt = AESGCM(KEY).decrypt_into
    assert native.unseal(decrypt, bytes(blocks), bytes(contexts), 512, spans) is None
