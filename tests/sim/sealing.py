"""Encryption in a seed's world: which suite, the key, and an outsider's look at what was encrypted.

What is decrypted here is decrypted with the key and the words of docs/adr/0011, not with the code
under test. Every block that reaches a storage host is looked at: under `aes-256-gcm` no nonce may
come with two blocks that differ, over the whole life of the volume, its machines and takeovers. The
counters of all sessions begin at zero here, so that nothing but the generation keeps them apart.
"""

from __future__ import annotations

import base64
import random
import uuid
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from stairlib.model.cipher import AES_256_GCM, AES_256_GCM_SIV
from stairlib.model.construction import Secret
from stairlib.model.context import CONTEXT_BYTES, ContextArray
from stairlib.wire.frame import Frame, OpKind
from vmmd.upstairs.core.codec import Encryption

if TYPE_CHECKING:
    from tests.sim.world import World

# Half of the seeds are encrypted; the plain ones are quicker.
SUITES = ("", "", AES_256_GCM, AES_256_GCM_SIV)
_NONCE_AT, _TAG_AT = 4, 16
_WRITES = (OpKind.WRITE, OpKind.WRITE_UNWRITTEN)


class Sealing:
    """The suite of a seed. `cipher` is empty in a world without encryption."""

    def __init__(self, world: World, owner: uuid.UUID, chance: random.Random) -> None:
        self._world = world
        self._chance = chance
        self.cipher = chance.choice(SUITES)
        self._key = chance.randbytes(32)
        self._wrong = chance.randbytes(32)
        self._aead = self._make_aead(str(owner))
        # By nonce, the tag and the place of the block that came with it.
        self._nonces: dict[bytes, tuple[int, bytes]] = {}
        # Blocks that were decrypted before: a key is used on each once.
        self._opened: dict[tuple[int, bytes, bytes], bytes | None] = {}

    def _make_aead(self, owner: str) -> AESGCM | AESGCMSIV | None:
        if self.cipher == AES_256_GCM:
            info = f"stairwell aes-256-gcm {owner}".encode()
            return AESGCM(
                HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(self._key)
            )
        return AESGCMSIV(self._key) if self.cipher else None

    @property
    def secret(self) -> Secret | None:
        """The key as a construction request has it."""
        return Secret(base64.b64encode(self._key).decode()) if self.cipher else None

    def encryption(self, *, wrong: bool = False) -> Encryption | None:
        """What an upstairs is given; `wrong`: by somebody who mistook the key."""
        if not self.cipher:
            return None
        return Encryption(self._wrong if wrong else self._key, self._random_bytes)

    def _random_bytes(self, count: int) -> bytes:
        # Eight bytes are asked for where a counter begins.
        return bytes(count) if count == 8 else self._chance.randbytes(count)

    # ---- looking

    def arrived(self, frame: Frame) -> None:
        """A frame has reached a storage host: its nonces are compared with all before."""
        if self.cipher != AES_256_GCM or not len(frame.contexts):
            return
        raw = frame.contexts.tobytes()
        row = 0
        for op in frame.ops:
            if int(op["kind"]) not in _WRITES:
                continue
            first = int(op["offset"])
            for number in range(first, first + int(op["length"])):
                context = raw[row * CONTEXT_BYTES : (row + 1) * CONTEXT_BYTES]
                row += 1
                seen = number, context[_TAG_AT:]
                if self._nonces.setdefault(context[_NONCE_AT:_TAG_AT], seen) != seen:
                    self._world.fail(f"a nonce came twice, the second time with block {number}")

    def plain(self, number: int, data: bytes, context: bytes) -> bytes | None:
        """A stored block as the guest wrote it; None when it does not decrypt."""
        if self._aead is None or not any(context):
            return data
        stored = number, context, data
        if stored not in self._opened:
            nonce, tag = context[_NONCE_AT:_TAG_AT], context[_TAG_AT:]
            try:
                found = self._aead.decrypt(nonce, data + tag, number.to_bytes(8, "little"))
            except InvalidTag:
                found = None
            self._opened[stored] = found
        return self._opened[stored]

    def values(self, contexts: ContextArray, data: bytes, size: int) -> list[bytes | None]:
        """All blocks of a region as the guest wrote them."""
        raw = contexts.tobytes()
        return [
            self.plain(
                number,
                data[number * size : (number + 1) * size],
                raw[number * CONTEXT_BYTES : (number + 1) * CONTEXT_BYTES],
            )
            for number in range(len(contexts))
        ]
