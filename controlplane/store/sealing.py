"""Secrets at rest: AES-256-GCM under a key in a file that only the owner can read.

Invariants: the key file is made once, with mode 0600, and is on disk before anything is sealed with
it; a sealed text that was altered, or sealed under another key, is an error and never read.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from stairlib.model.errors import DataError

KEY_FILE = "secret.key"
KEY_BYTES = 32
NONCE_BYTES = 12
_OWNER_ONLY = 0o600
_OTHERS = 0o077
# Bound to what is sealed, so that it cannot be passed off as something else.
_PURPOSE = b"stairwell construction v1"


class Sealer:
    """Seals and opens texts with one key."""

    def __init__(self, key: bytes, where: str) -> None:
        self._cipher = AESGCM(key)
        self._where = where

    def seal(self, text: str) -> bytes:
        """The text, encrypted; another value each time."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, text.encode(), _PURPOSE)

    def open(self, sealed: bytes) -> str:
        """The text that was sealed; DataError when it was not sealed under this key."""
        try:
            text = self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _PURPOSE)
        except (InvalidTag, ValueError):
            raise DataError(
                f"a stored secret cannot be read with the key in {self._where}; put back the key"
                " file that the store was made with",
                reason="WRONG_SECRET_KEY",
                file=self._where,
            ) from None
        return text.decode()


def load_sealer(directory: Path) -> Sealer:
    """The sealer of a state directory; makes its key the first time."""
    path = directory / KEY_FILE
    if not path.exists():
        _make_key(path)
    return Sealer(_read_key(path), str(path))


def _make_key(path: Path) -> None:
    """Whole or not at all: a crash leaves no key file that holds half a key."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
    with os.fdopen(descriptor, "wb") as file:
        file.write(os.urandom(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _read_key(path: Path) -> bytes:
    if path.stat().st_mode & _OTHERS:
        raise DataError(
            f"{path} can be read by others; run: chmod 600 {path}",
            reason="SECRET_KEY_EXPOSED",
            file=str(path),
        )
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise DataError(
            f"{path} holds {len(key)} bytes, not a key of {KEY_BYTES}; put back the key file that"
            " the store was made with",
            reason="WRONG_SECRET_KEY",
            file=str(path),
        )
    return key
