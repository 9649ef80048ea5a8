"""A small file that always holds one whole value: two slots, written in turn and synced.

    0       slot 0: head, body, checksum; zeros up to 512 bytes
    4096    slot 1

Head: magic u32, version u16, zero u16, count of writes u64. The checksum is the xxh3-64 of head
and body. Of the slots that are whole, the one with the higher count is true.
"""

from __future__ import annotations

import struct

import xxhash

from downstaird.core.disk import File
from stairlib.model.errors import DataError

VERSION = 1
_HEAD = struct.Struct("<IHHQ")
_CHECKSUM = struct.Struct("<Q")
_SLOT_BYTES = 4096
_SECTOR_BYTES = 512


class SlotFile:
    """One value of a fixed length. To be written by one thread at a time."""

    def __init__(self, file: File, magic: int, body_bytes: int) -> None:
        assert _HEAD.size + body_bytes + _CHECKSUM.size <= _SECTOR_BYTES
        self._file = file
        self._magic = magic
        self._length = _HEAD.size + body_bytes + _CHECKSUM.size
        self._count = 0

    def load(self) -> bytes:
        """The body stored last. DataError when neither slot is whole, or of a newer version."""
        newest: bytes | None = None
        for offset in (0, _SLOT_BYTES):
            if self._file.size() < offset + self._length:
                continue
            raw = self._file.pread(self._length, offset)
            magic, version, _, count = _HEAD.unpack_from(raw)
            (checksum,) = _CHECKSUM.unpack_from(raw, self._length - _CHECKSUM.size)
            body = raw[: -_CHECKSUM.size]
            if magic != self._magic or xxhash.xxh3_64_intdigest(body) != checksum:
                continue
            if version != VERSION:
                raise DataError(
                    f"{self._file.name} has version {version} at byte {offset}; this program reads "
                    f"version {VERSION}: run the newer one",
                    reason="FORMAT_VERSION",
                    file=self._file.name,
                    offset=str(offset),
                )
            if count > self._count:
                self._count = count
                newest = body[_HEAD.size :]
        if newest is None:
            raise DataError(
                f"{self._file.name} is damaged at byte 0: neither of its two copies is whole",
                file=self._file.name,
                offset="0",
            )
        return newest

    def store(self, body: bytes) -> None:
        """Returns once it is durable. DataError; the value before is then still there."""
        self._count += 1
        raw = _HEAD.pack(self._magic, VERSION, 0, self._count) + body
        raw += _CHECKSUM.pack(xxhash.xxh3_64_intdigest(raw))
        assert len(raw) == self._length
        offset = self._count % 2 * _SLOT_BYTES
        self._file.pwritev([raw.ljust(_SECTOR_BYTES, b"\0")], offset)
        self._file.datasync()
