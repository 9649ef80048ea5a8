"""Sealing and opening of frames: published vectors through the code that blocks go through, and
every way for a block to be wrong."""

from __future__ import annotations

import hmac
import json
import random
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV

from stairlib.model.cipher import AES_256_GCM, AES_256_GCM_SIV, CIPHERS, KEY_CHECK_BYTES
from stairlib.model.context import empty_contexts, mismatches, plain_contexts, written
from vmmd.upstairs.core.codec import (
    GCM_GENERATION_MAX,
    AeadCodec,
    CounterNonces,
    Encryption,
    Keyring,
    PlainCodec,
    RandomNonces,
    block_numbers,
    open_blocks,
    owner_key,
    seal_blocks,
)

VECTORS = json.loads((Path(__file__).parent / "data" / "aead_vectors.json").read_text())["vectors"]
CLASSES = {AES_256_GCM_SIV: AESGCMSIV, AES_256_GCM: AESGCM}
BLOCK = 512
KEY = bytes(range(32))
OWNER = "11111111-1111-1111-1111-111111111111"


def codec_of(cipher, key=KEY, owner=OWNER, seed=1, block_size=BLOCK):
    return Keyring(Encryption(key, random.Random(seed).randbytes), block_size).codec(cipher, owner)


@pytest.fixture(params=CIPHERS)
def cipher(request):
    return request.param


def sealed(codec, data, spans, generation=7):
    """Contexts and ciphertext, both as they come from a member: in memory that is not ours."""
    contexts, out = codec.seal(data, iter(spans), generation)
    return contexts.copy(), memoryview(bytes(out))


def flipped(contexts, row, bit):
    raw = bytearray(contexts.tobytes())
    raw[row * 32 + bit // 8] ^= 1 << bit % 8
    return np.frombuffer(raw, dtype="<u8").reshape(-1, 4)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['cipher']}-{v['tag'][:8]}")
def test_published_vectors(vector) -> None:
    key, nonce, extra, plain, ciphertext, tag = (
        bytes.fromhex(vector[name]) for name in ("key", "nonce", "extra", "plain", "sealed", "tag")
    )
    aead = CLASSES[vector["cipher"]](key)
    contexts, out = seal_blocks(aead, plain, len(plain), nonce, extra)
    assert bytes(out) == ciphertext
    assert contexts.tobytes()[4:] == nonce + tag
    opened = open_blocks(aead, memoryview(ciphertext), len(plain), contexts, extra, [0])
    assert opened == plain


def test_the_suites_are_those_that_are_named() -> None:
    number = (3).to_bytes(8, "little")
    data = bytes(BLOCK)
    for cipher, key in ((AES_256_GCM_SIV, KEY), (AES_256_GCM, owner_key(KEY, OWNER))):
        contexts, out = sealed(codec_of(cipher), data, [(3, 1)])
        raw = contexts.tobytes()
        plain = CLASSES[cipher](key).decrypt(raw[4:16], bytes(out) + raw[16:], number)
        assert plain == data


@pytest.mark.parametrize("block_size", [512, 4096, 32768])
@pytest.mark.parametrize("spans", [[(0, 1)], [(5, 3)], [(9, 1), (2, 2), (1 << 40, 1)]])
def test_what_is_sealed_opens_and_satisfies_a_daemon_without_the_key(
    cipher, block_size, spans
) -> None:
    codec = codec_of(cipher, block_size=block_size)
    count = sum(length for _first, length in spans)
    data = random.Random(2).randbytes(count * block_size)
    contexts, out = sealed(codec, data, spans)
    assert mismatches(out, contexts, block_size, encrypted=True) == []
    assert data[:64] not in bytes(out)
    assert codec.open(out, contexts, iter(spans)) == data
    assert codec_of(cipher, seed=9, block_size=block_size).open(out, contexts, spans) == data


def test_the_same_block_twice_looks_different_each_time(cipher) -> None:
    codec = codec_of(cipher)
    _contexts, out = sealed(codec, bytes(2 * BLOCK), [(4, 1), (4, 1)])
    assert out[:BLOCK] != out[BLOCK:]
    assert sealed(codec, bytes(BLOCK), [(4, 1)])[1] not in (out[:BLOCK], out[BLOCK:])


def test_another_key_opens_nothing(cipher) -> None:
    contexts, out = sealed(codec_of(cipher), bytes(3 * BLOCK), [(0, 3)])
    other = codec_of(cipher, key=bytes(32))
    assert other.open(out, contexts, [(0, 3)]) is None
    for block in range(3):
        part = out[block * BLOCK : (block + 1) * BLOCK]
        assert other.open(part, contexts[block : block + 1], [(block, 1)]) is None


@pytest.mark.parametrize("row", [0, 2])
def test_a_flipped_bit_of_nonce_or_tag_is_found(cipher, row) -> None:
    codec = codec_of(cipher)
    contexts, out = sealed(codec, bytes(3 * BLOCK), [(0, 3)])
    for bit in range(32, 256):
        assert codec.open(out, flipped(contexts, row, bit), [(0, 3)]) is None


def test_a_flipped_bit_of_the_check_harms_no_reader_but_is_found_without_the_key(cipher) -> None:
    codec = codec_of(cipher)
    contexts, out = sealed(codec, bytes(3 * BLOCK), [(0, 3)])
    damaged = flipped(contexts, 1, 5)
    assert codec.open(out, damaged, [(0, 3)]) == bytes(3 * BLOCK)
    assert mismatches(out, damaged, BLOCK, encrypted=True) == [1]


def test_a_flipped_bit_of_the_data_is_found(cipher) -> None:
    codec = codec_of(cipher)
    contexts, out = sealed(codec, bytes(2 * BLOCK), [(0, 2)])
    for bit in range(0, 2 * BLOCK * 8, 97):
        damaged = bytearray(out)
        damaged[bit // 8] ^= 1 << bit % 8
        assert codec.open(memoryview(damaged), contexts, [(0, 2)]) is None


def test_a_block_in_another_s_place_does_not_open(cipher) -> None:
    codec = codec_of(cipher)
    contexts, out = sealed(codec, bytes(BLOCK) + b"b" * BLOCK, [(0, 2)])
    swapped = memoryview(bytes(out[BLOCK:]) + bytes(out[:BLOCK]))
    # A daemon without the key cannot tell, the upstairs can.
    assert mismatches(swapped, contexts[::-1], BLOCK, encrypted=True) == []
    assert codec.open(swapped, contexts[::-1], [(0, 2)]) is None


def test_an_older_version_of_a_block_in_its_place_does_open(cipher) -> None:
    """The limit of what is authenticated: which version of a block is the latest is not known."""
    codec = codec_of(cipher)
    older = sealed(codec, b"1" * BLOCK, [(4, 1)])
    sealed(codec, b"2" * BLOCK, [(4, 1)])
    assert codec.open(older[1], older[0], [(4, 1)]) == b"1" * BLOCK


def test_never_written_blocks_are_zeros(cipher) -> None:
    codec = codec_of(cipher)
    spans = [(0, 4)]
    nothing = memoryview(bytes(4 * BLOCK))
    assert codec.open(nothing, empty_contexts(4), spans) == nothing
    contexts, out = sealed(codec, b"x" * 2 * BLOCK, [(1, 2)])
    mixed = empty_contexts(4)
    mixed[1:3] = contexts
    data = bytearray(BLOCK) + out + bytes(BLOCK)
    assert codec.open(memoryview(data), mixed, spans) == (
        bytes(BLOCK) + b"x" * 2 * BLOCK + bytes(BLOCK)
    )
    for at in (0, 4 * BLOCK - 1):
        damaged = bytearray(data)
        damaged[at] = 1
        assert codec.open(memoryview(damaged), mixed, spans) is None
    assert codec.open(memoryview(b"x" * BLOCK), empty_contexts(1), [(0, 1)]) is None
    assert codec.open(memoryview(b"x" * 4 * BLOCK), empty_contexts(4), spans) is None


def test_plain_blocks_are_not_taken_for_encrypted_ones_nor_the_other_way_round(cipher) -> None:
    plain, encrypting = PlainCodec(BLOCK), codec_of(cipher)
    data = b"p" * 2 * BLOCK
    spans = [(0, 2)]
    assert encrypting.open(memoryview(data), plain_contexts(data, BLOCK), spans) is None
    contexts, out = sealed(encrypting, data, spans)
    assert plain.open(out, contexts, spans) is None
    assert plain.open(out[:BLOCK], contexts[:1], [(0, 1)]) is None


def test_a_plain_codec_hands_the_memory_through() -> None:
    codec = PlainCodec(BLOCK)
    data = b"p" * 2 * BLOCK
    contexts, out = codec.seal(data, iter([(0, 2)]), 1)
    assert out is data
    view = memoryview(data)
    assert codec.open(view, contexts, iter([(0, 2)])) is view
    assert codec.open(view, empty_contexts(2), iter([(0, 2)])) is None


def test_numbers_of_blocks() -> None:
    found = np.frombuffer(block_numbers([(7, 1), (1 << 50, 2), (0, 3)]), dtype="<u8")
    assert found.tolist() == [7, 1 << 50, (1 << 50) + 1, 0, 1, 2]


# ---- nonces


def rows(nonces: bytes) -> list[bytes]:
    return [nonces[at : at + 12] for at in range(0, len(nonces), 12)]


def test_a_counter_goes_on_over_frames_and_round_at_its_end() -> None:
    start = (1 << 64) - 3
    source = CounterNonces(lambda count: start.to_bytes(count, "big"))
    taken = rows(source.take(2, 5)) + rows(source.take(1, 5)) + rows(source.take(4, 5))
    expected = [(start + index) % (1 << 64) for index in range(7)]
    assert [int.from_bytes(nonce[4:], "big") for nonce in taken] == expected
    assert {nonce[:4] for nonce in taken} == {(5).to_bytes(4, "big")}


def test_the_highest_generation_fits_and_the_next_one_does_not() -> None:
    source = CounterNonces(bytes)
    assert rows(source.take(1, GCM_GENERATION_MAX))[0][:4] == b"\xff" * 4
    with pytest.raises(OverflowError):
        source.take(1, GCM_GENERATION_MAX + 1)


def test_random_nonces_are_as_many_as_blocks() -> None:
    found = rows(RandomNonces(random.Random(3).randbytes).take(100, 1))
    assert len(found) == len(set(found)) == 100


def test_a_codec_asked_for_again_goes_on_counting() -> None:
    keyring = Keyring(Encryption(KEY, bytes), BLOCK)
    seen = set()
    for _again in range(3):
        codec = keyring.codec(AES_256_GCM, OWNER)
        contexts, _out = codec.seal(bytes(BLOCK), [(0, 1)], 1)
        seen.add(contexts.tobytes()[4:16])
    assert len(seen) == 3


def test_volumes_that_were_given_one_key_do_not_share_it() -> None:
    ours = Keyring(Encryption(KEY, bytes), BLOCK).codec(AES_256_GCM, OWNER)
    theirs = Keyring(Encryption(KEY, bytes), BLOCK).codec(AES_256_GCM, OWNER[:-1] + "2")
    contexts, out = sealed(ours, b"s" * BLOCK, [(0, 1)])
    others, other = sealed(theirs, b"s" * BLOCK, [(0, 1)])
    assert contexts.tobytes()[4:16] == others.tobytes()[4:16]
    assert out != other
    assert theirs.open(out, contexts, [(0, 1)]) is None


def test_the_key_is_not_shown() -> None:
    encryption = Encryption(KEY, random.randbytes)
    shown = repr(encryption) + str(encryption)
    assert KEY.hex() not in shown
    assert repr(KEY) not in shown
    codec = codec_of(AES_256_GCM)
    assert isinstance(codec, AeadCodec)
    assert written(codec.seal(bytes(BLOCK), [(0, 1)], 1)[0]).all()


def test_the_key_check_is_of_key_and_owner_and_is_no_key_of_either_suite():
    def check(key, owner):
        return Encryption(key, bytes).key_check(owner)

    key, other = bytes(range(32)), bytes(range(1, 33))
    assert len(check(key, OWNER)) == KEY_CHECK_BYTES
    assert check(key, OWNER) == check(key, OWNER)
    assert len({check(key, OWNER), check(other, OWNER), check(key, ""), check(key, "x")}) == 4
    # As RFC 5869 has it, by hand: another release must come to the same.
    extracted = hmac.digest(bytes(32), key, "sha256")
    info = f"stairwell key check {OWNER}".encode() + b"\1"
    assert check(key, OWNER) == hmac.digest(extracted, info, "sha256")[:KEY_CHECK_BYTES]
    assert check(key, OWNER) not in (key, owner_key(key, OWNER))
    assert not owner_key(key, OWNER).startswith(check(key, OWNER))
