"""The suites that a region's blocks may be encrypted with, by the names people and protocols use.

The suite is recorded in a region when it is made, and never guessed: not from the key, which is 32
bytes for each of them, and not from a block's context. An empty name stands for no encryption.

    aes-256-gcm-siv   random nonces; a nonce that comes twice shows no more than that
    aes-256-gcm       several times quicker; nonces must never repeat, and docs/adr/0011 proves that
                      they do not
"""

from __future__ import annotations

AES_256_GCM_SIV = "aes-256-gcm-siv"
AES_256_GCM = "aes-256-gcm"
CIPHERS = (AES_256_GCM_SIV, AES_256_GCM)
# What is taken where nobody chose: the suite that forgives most.
DEFAULT_CIPHER = AES_256_GCM_SIV
KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
# What a key is recognised by, without giving it away: docs/adr/0011.
KEY_CHECK_BYTES = 16


def describe_cipher(cipher: str) -> str:
    """For messages: "not encrypted", or with what."""
    return f"encrypted with {cipher}" if cipher else "not encrypted"
