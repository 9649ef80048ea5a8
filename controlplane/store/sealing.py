"""Secrets at rest: AES-256-GCM under a key in a file that only the owner can read, or given.

Invariants: the key file of a directory is made once, with mode 0600, and is on disk before anything
is sealed with it; a sealed text that was altered, or sealed under another key, is an error and
never read. A store keeps one text of no meaning sealed under its key, so that a wrong key is found
when it is opened. Without a key nothing secret is stored: such requests are refused.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from controlplane.store.place import Place
from stairlib.model.errors import DataError, StateError

KEY_FILE = "secret.key"
KEY_BYTES = 32
NONCE_BYTES = 12
_OWNER_ONLY = 0o600
_OTHERS = 0o077
ENVIRONMENT = "STAIRWELL_SECRET_KEY"
_KEY_DIGITS = 2 * KEY_BYTES
# Bound to what is sealed, so that it cannot be passed off as something else.
_PURPOSE = b"stairwell construction v1"


class Sealer:
    """Seals and opens texts with one key; without one it refuses both."""

    def __init__(self, key: bytes | None, where: str) -> None:
        self._cipher = AESGCM(key) if key is not None else None
        self._where = where

    @property
    def has_key(self) -> bool:
        """Whether secrets can be stored."""
        return self._cipher is not None

    def seal(self, text: str) -> bytes:
        """The text, encrypted, another value each time; StateError without a key."""
        if self._cipher is None:
            raise StateError(
                "the request holds a secret, and this control plane has no key to store it under;"
                f" start it with --secret-key-file FILE or {ENVIRONMENT}",
                reason="NO_SECRET_KEY",
            )
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, text.encode(), _PURPOSE)

    def open(self, sealed: bytes) -> str:
        """The text that was sealed; DataError when it was not sealed under this key."""
        if self._cipher is None:
            raise missing_key(self._where)
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


def missing_key(where: str) -> DataError:
    """The error of a store with secrets that is opened without its key."""
    return DataError(
        f"the store was made with a secret key, and {where} has none; give the same key with"
        f" --secret-key-file FILE or {ENVIRONMENT}",
        reason="MISSING_SECRET_KEY",
        file=where,
    )


def load_sealer(place: Place, *, may_make: bool = True) -> Sealer:
    """The sealer of a place: with the key that was given, else with the one of its directory.

    The directory's key is made the first time, unless `may_make` is false: then there is none.
    """
    if place.key_file is not None and place.key_text:
        raise StateError(
            f"two secret keys are given: by --secret-key-file and by {ENVIRONMENT}; leave out one",
            reason="TWO_SECRET_KEYS",
        )
    if place.key_text:
        return Sealer(_key_of(place.key_text, ENVIRONMENT), ENVIRONMENT)
    if place.key_file is not None:
        return Sealer(_read_key(place.key_file), str(place.key_file))
    if place.shared:
        return Sealer(None, "the command line")
    path = place.directory / KEY_FILE
    if not path.exists():
        if not may_make:
            return Sealer(None, str(path))
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
    """The key of a file, as 32 bytes or as 64 hexadecimal digits."""
    try:
        if path.stat().st_mode & _OTHERS:
            raise DataError(
                f"{path} can be read by others; run: chmod 600 {path}",
                reason="SECRET_KEY_EXPOSED",
                file=str(path),
            )
        key = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the secret key cannot be read from {path}: {error.strerror}",
            reason="MISSING_SECRET_KEY",
            file=str(path),
        ) from None
    if len(key) != KEY_BYTES and len(key.strip()) == _KEY_DIGITS:
        return _key_of(key.decode(errors="replace"), str(path))
    if len(key) != KEY_BYTES:
        raise DataError(
            f"{path} holds {len(key)} bytes, not a key of {KEY_BYTES}; put back the key file that"
            " the store was made with",
            reason="WRONG_SECRET_KEY",
            file=str(path),
        )
    return key


def _key_of(text: str, where: str) -> bytes:
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise DataError(
            f"{where} is not a key, which is {_KEY_DIGITS} hexadecimal digits; make one with"
            " `openssl rand -hex 32`",
            reason="WRONG_SECRET_KEY",
            file=where,
        )
    return key
