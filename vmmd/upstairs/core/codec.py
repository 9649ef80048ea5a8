"""What happens to blocks between the guest and the members: contexts are made and checked here, and
nowhere else, and an encrypted set's blocks are encrypted here.

A codec takes whole frames: for each block one call of the AEAD and two of the hash, all in C, into
buffers made once a frame; the loop over them is compiled where it can be (docs/adr/0060). A block's
number in the region is authenticated with it, so that a block served in another's place does not
decrypt. Nonces, never to repeat for `aes-256-gcm`:

    aes-256-gcm-siv   12 random bytes
    aes-256-gcm       generation u32 | counter u64 from a random start, big endian; under a key of
                      the region's owner alone (docs/adr/0011)

The key is in the AEAD's own memory and in `Encryption`, neither of which shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from stairlib import native
from stairlib.model.cipher import (
    AES_256_GCM,
    KEY_BYTES,
    KEY_CHECK_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
)
from stairlib.model.context import (
    CONTEXT_BYTES,
    ContextArray,
    context_array,
    encrypted_check,
    mismatches,
    plain_contexts,
    written,
)
from stairlib.wire.frame import Bytes

# The generation is 32 bits of an aes-256-gcm nonce.
GCM_GENERATION_MAX = (1 << 32) - 1
_COUNTER_MASK = (1 << 64) - 1
_NUMBER_BYTES = 8

# (first block, blocks), in the order of the data.
Spans = Iterable[tuple[int, int]]


class Codec(Protocol):
    """The blocks of one region set. `complaint` is what a block that `open` refuses did."""

    complaint: str

    def seal(self, data: Bytes, spans: Spans, generation: int) -> tuple[ContextArray, Bytes]:
        """Contexts and bytes to send for the guest's blocks, which lie at `spans`."""
        ...

    def open(self, data: memoryview, contexts: ContextArray, spans: Spans) -> memoryview | None:
        """The guest's blocks; None when one of them is not what its context says."""
        ...

    def open_at_once(
        self, data: memoryview, contexts: memoryview, spans: Callable[[], Spans]
    ) -> Bytes | None:
        """The same of a reply as it came, for as many blocks as it has contexts; where they lie is
        asked only if it matters. None: to be looked at by `open`, for what is not ordinary."""
        ...


class PlainCodec:
    """Blocks as they are."""

    complaint = "did not match its context"

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    def seal(self, data: Bytes, _spans: Spans, _generation: int) -> tuple[ContextArray, Bytes]:
        """As `Codec`; the same bytes."""
        return plain_contexts(data, self._block_size), data

    def open(self, data: memoryview, contexts: ContextArray, _spans: Spans) -> memoryview | None:
        """As `Codec`; the same memory."""
        if len(contexts) > 1 and not written(contexts).any():
            return _if_zero(data)
        if mismatches(data, contexts, self._block_size, encrypted=False):
            return None
        return data

    def open_at_once(
        self, data: memoryview, contexts: memoryview, spans: Callable[[], Spans]
    ) -> Bytes | None:
        """As `Codec`; the same memory."""
        if native.compiled:
            return data if native.as_told(data, contexts, self._block_size, True) else None
        return self.open(data, context_array(contexts), spans())


class Nonces(Protocol):
    """Where the nonces of a codec come from."""

    def take(self, count: int, generation: int) -> bytes:
        """`count` nonces of 12 bytes that were never given out."""
        ...


class RandomNonces:
    """For suites that survive a repetition."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes

    def take(self, count: int, _generation: int) -> bytes:
        """As `Nonces`, but for a repetition once in 2^48 or so."""
        return self._random_bytes(count * NONCE_BYTES)


class CounterNonces:
    """Generation and a counter. Two sessions of a set have not the same generation; within one, the
    counter repeats after 2^64 blocks. The start is random for the cases in which the generation has
    been used in an earlier life of the set: docs/adr/0011 counts them."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._next = int.from_bytes(random_bytes(_NUMBER_BYTES), "big")

    def take(self, count: int, generation: int) -> bytes:
        """As `Nonces`. `generation` up to GCM_GENERATION_MAX."""
        head = generation.to_bytes(NONCE_BYTES - _NUMBER_BYTES, "big")
        first, self._next = self._next, (self._next + count) & _COUNTER_MASK
        if count == 1:
            return head + first.to_bytes(_NUMBER_BYTES, "big")
        table = np.empty((count, NONCE_BYTES), dtype=np.uint8)
        table[:, : len(head)] = np.frombuffer(head, dtype=np.uint8)
        # u64 arithmetic goes round at the mask by itself.
        counters = np.arange(count, dtype=np.uint64) + np.uint64(first)
        table[:, len(head) :] = counters.astype(">u8").view(np.uint8).reshape(count, -1)
        return table.tobytes()


class AeadCodec:
    """Blocks encrypted one by one."""

    complaint = "did not decrypt: it is damaged, or was written with another key"

    def __init__(self, aead: AESGCM | AESGCMSIV, nonces: Nonces, block_size: int) -> None:
        self._aead = aead
        self._nonces = nonces
        self._block_size = block_size

    def seal(self, data: Bytes, spans: Spans, generation: int) -> tuple[ContextArray, Bytes]:
        """As `Codec`; ciphertext in memory of its own."""
        size = self._block_size
        nonces = self._nonces.take(len(data) // size, generation)
        if native.compiled:
            contexts, out = native.seal(self._aead.encrypt_into, data, size, nonces, spans)
            return context_array(contexts), memoryview(out)[: len(data)]
        return seal_blocks(self._aead, data, size, nonces, block_numbers(spans))

    def open(self, data: memoryview, contexts: ContextArray, spans: Spans) -> memoryview | None:
        """As `Codec`; plaintext in memory of its own."""
        if native.compiled and contexts.flags.c_contiguous:
            opened = self._unsealed(data, contexts, spans)
            return None if opened is None else memoryview(opened)
        owned = written(contexts)
        if owned.all():
            indexes: Iterable[int] = range(len(contexts))
        else:
            if not owned.any():
                return _if_zero(data)
            blocks = np.frombuffer(data, dtype=np.uint8).reshape(len(contexts), -1)
            if blocks[~owned].any():
                return None
            indexes = np.flatnonzero(owned).tolist()
        numbers = block_numbers(spans)
        return open_blocks(self._aead, data, self._block_size, contexts, numbers, indexes)

    def open_at_once(
        self, data: memoryview, contexts: memoryview, spans: Callable[[], Spans]
    ) -> Bytes | None:
        """As `Codec`; plaintext in memory of its own."""
        if native.compiled:
            return self._unsealed(data, contexts, spans())
        return self.open(data, context_array(contexts), spans())

    def _unsealed(
        self, data: memoryview, contexts: memoryview | ContextArray, spans: Spans
    ) -> bytes | None:
        try:
            return native.unseal(self._aead.decrypt_into, data, contexts, self._block_size, spans)
        except InvalidTag:
            return None


def block_numbers(spans: Spans) -> bytes:
    """The number of each block of the spans, u64 little endian: what is authenticated with it."""
    return b"".join(
        first.to_bytes(_NUMBER_BYTES, "little")
        if count == 1
        else np.arange(first, first + count, dtype="<u8").tobytes()
        for first, count in spans
    )


def seal_blocks(
    aead: AESGCM | AESGCMSIV, data: Bytes, block_size: int, nonces: bytes, extras: bytes
) -> tuple[ContextArray, memoryview]:
    """Contexts and ciphertext. `nonces` holds 12 bytes for each block, `extras` equal parts to be
    authenticated with each."""
    size = len(data)
    extra_bytes = len(extras) * block_size // size
    # Each tag comes out behind its block, where the next block goes once the tag has been taken.
    out = bytearray(size + TAG_BYTES)
    target, source = memoryview(out), memoryview(data)
    encrypt = aead.encrypt_into
    parts: list[bytes] = []
    nonce_at = extra_at = 0
    for at in range(0, size, block_size):
        end = at + block_size
        nonce = nonces[nonce_at : nonce_at + NONCE_BYTES]
        extra = extras[extra_at : extra_at + extra_bytes]
        encrypt(nonce, source[at:end], extra, target[at : end + TAG_BYTES])
        head = nonce + out[end : end + TAG_BYTES]
        parts.append(encrypted_check(head, target[at:end]).to_bytes(4, "little"))
        parts.append(head)
        nonce_at += NONCE_BYTES
        extra_at += extra_bytes
    return context_array(b"".join(parts)), target[:size]


def open_blocks(
    aead: AESGCM | AESGCMSIV,
    data: memoryview,
    block_size: int,
    contexts: ContextArray,
    extras: bytes,
    indexes: Iterable[int],
) -> memoryview | None:
    """Plaintext of the blocks at `indexes`, zeros for the others; None when one does not decrypt.

    The tag alone is believed: it covers nonce, number and ciphertext, and only who has the key can
    make one. The context's check is for those who have not."""
    extra_bytes = len(extras) // len(contexts)
    raw = contexts.tobytes()
    target = memoryview(bytearray(len(data)))
    decrypt = aead.decrypt_into
    tag_from = CONTEXT_BYTES - TAG_BYTES
    try:
        for index in indexes:
            at, head, extra_at = index * block_size, index * CONTEXT_BYTES, index * extra_bytes
            end = at + block_size
            decrypt(
                raw[head + tag_from - NONCE_BYTES : head + tag_from],
                b"".join((data[at:end], raw[head + tag_from : head + CONTEXT_BYTES])),
                extras[extra_at : extra_at + extra_bytes],
                target[at:end],
            )
    except InvalidTag:
        return None
    return target


def _if_zero(data: memoryview) -> memoryview | None:
    """For blocks that were never written: one pass instead of one comparison a block."""
    return None if np.frombuffer(data, dtype=np.uint8).any() else data


@dataclass(frozen=True, slots=True)
class Encryption:
    """What an encrypted set is given: its key, and randomness that no one can foretell."""

    key: bytes = field(repr=False)
    random_bytes: Callable[[int], bytes]

    def __post_init__(self) -> None:
        assert len(self.key) == KEY_BYTES

    def key_check(self, owner_id: str) -> bytes:
        """What the key is recognised by in regions of that owner. For others' eyes."""
        info = f"stairwell key check {owner_id}".encode()
        return _derived(self.key, KEY_CHECK_BYTES, info)


class Keyring:
    """Makes a set's codec once its members have said what they are. For one session: what it has
    made it keeps, so that no counter ever starts twice."""

    def __init__(self, encryption: Encryption, block_size: int) -> None:
        self._encryption = encryption
        self._block_size = block_size
        self._made: dict[tuple[str, str], Codec] = {}

    def codec(self, cipher: str, owner_id: str) -> Codec:
        """For blocks under that suite, a name of stairlib.model.cipher, in regions of that
        owner."""
        found = self._made.get((cipher, owner_id))
        if found is None:
            found = self._made[cipher, owner_id] = self._make(cipher, owner_id)
        return found

    def _make(self, cipher: str, owner_id: str) -> Codec:
        key, random_bytes = self._encryption.key, self._encryption.random_bytes
        if cipher == AES_256_GCM:
            aead = AESGCM(owner_key(key, owner_id))
            return AeadCodec(aead, CounterNonces(random_bytes), self._block_size)
        return AeadCodec(AESGCMSIV(key), RandomNonces(random_bytes), self._block_size)


def owner_key(key: bytes, owner_id: str) -> bytes:
    """The `aes-256-gcm` key of one owner's regions: volumes that were given the same key still do
    not share one, and so cannot repeat each other's nonces."""
    return _derived(key, KEY_BYTES, f"stairwell {AES_256_GCM} {owner_id}".encode())


def _derived(key: bytes, length: int, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(key)
