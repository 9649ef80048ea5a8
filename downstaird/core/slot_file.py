"""A small file that always holds one whole value: two slots, written and synced one after the
other.

    0       slot 0: head, body, checksum; zeros up to 512 bytes
    4096    slot 1

Head: magic u32, version u16, zero u16, count of writes u64. The checksum is the xxh3-64 of head
and body. Of the slots that are whole, the one with the higher count is true. A body's length says
which version it is of; the two slots may be of two versions.
"""

from __future__ import annotations

import contextlib
import struct

import xxhash

from downstaird.core.disk import File
from stairlib.model.errors import DataError

_HEAD = struct.Struct("<IHHQ")
_CHECKSUM = struct.Struct("<Q")
_SLOT_BYTES = 4096
_SECTOR_BYTES = 512


class SlotFile:
    """One value. `body_bytes`: the lengths of a body of version 1, 2 and so on. To be written by
    one thread at a time."""

    def __init__(self, file: File, magic: int, *body_bytes: int) -> None:
        assert len(set(body_bytes)) == len(body_bytes)
        assert _HEAD.size + max(body_bytes) + _CHECKSUM.size <= _SECTOR_BYTES
        self._file = file
        self._magic = magic
        self._body_bytes = body_bytes
        self._count = 0

    def load(self) -> bytes:
        """The body stored last. DataError when neither slot is whole, or of a newer version."""
        newest: bytes | None = None
        for offset in (0, _SLOT_BYTES):
            version, count, body = self._read(offset)
            if body is None:
                continue
            if version > len(self._body_bytes):
                raise DataError(
                    f"{self._file.name} has version {version} at byte {offset}; this program reads "
                    f"versions up to {len(self._body_bytes)}: run the newer one",
                    reason="FORMAT_VERSION",
                    file=self._file.name,
                    offset=str(offset),
                )
            if count > self._count:
                self._count = count
                newest = body
        if newest is None:
            raise DataError(
                f"{self._file.name} is damaged at byte 0: neither of its two copies is whole",
                file=self._file.name,
                offset="0",
            )
        return newest

    def _read(self, offset: int) -> tuple[int, int, bytes | None]:
        """Version, count and body of a slot; no body where the slot is not whole. One of a newer
        version is whole when it is so at any length that is known."""
        size = self._file.size()
        if size < offset + _HEAD.size:
            return 0, 0, None
        raw = self._file.pread(min(size - offset, _SECTOR_BYTES), offset)
        magic, version, _, count = _HEAD.unpack_from(raw)
        if magic != self._magic or not version:
            return 0, 0, None
        for body_bytes in self._body_bytes[version - 1 : version] or self._body_bytes:
            end = _HEAD.size + body_bytes
            if len(raw) < end + _CHECKSUM.size:
                continue
            (checksum,) = _CHECKSUM.unpack_from(raw, end)
            if xxhash.xxh3_64_intdigest(raw[:end]) == checksum:
                return version, count, raw[_HEAD.size : end]
        return 0, 0, None

    def store(self, body: bytes) -> None:
        """Returns once it is durable. DataError; the value before is then still there.

        Both slots get it: were it in one alone, damage to that one would bring the value before
        back."""
        self._store_once(body)
        # It is durable already, so a failure of the second is none.
        with contextlib.suppress(DataError):
            self._store_once(body)

    def _store_once(self, body: bytes) -> None:
        version = self._body_bytes.index(len(body)) + 1
        self._count += 1
        raw = _HEAD.pack(self._magic, version, 0, self._count) + body
        raw += _CHECKSUM.pack(xxhash.xxh3_64_intdigest(raw))
        offset = self._count % 2 * _SLOT_BYTES
        self._file.pwritev([raw.ljust(_SECTOR_BYTES, b"\0")], offset)
        self._file.datasync()
