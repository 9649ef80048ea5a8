"""Messages of RepairService.StreamExtent as bytes, without a message object in between.

The object would copy what it is given, and again for each look at it; at a MiB a message that is
most of what a copy costs. The bytes are those of the protobuf message StreamExtentResponse, and
either end may use the generated class.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

Buffer = bytes | bytearray | memoryview

# Tags of the fields: their numbers, and how what follows is stored.
_FIRST_BLOCK, _CONTEXTS, _DATA, _CHECKSUM, _SENT_BYTES = 0x08, 0x12, 0x1A, 0x21, 0x28
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES_MAX = 10
_U64 = struct.Struct("<Q")


class ChunkError(ValueError):
    """Bytes that are no such message; the text says why."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive blocks on their way. first_block: within the extent. contexts: 32 bytes a block.
    checksum: xxh3-64 of contexts, then data. sent_bytes: of the blocks, when they travel apart;
    then there is no data."""

    first_block: int
    contexts: Buffer
    data: Buffer
    checksum: int
    sent_bytes: int = 0


def encode_chunk(chunk: Chunk) -> bytes:
    """The message."""
    sent = (bytes((_SENT_BYTES,)), _varint(chunk.sent_bytes)) if chunk.sent_bytes else ()
    return b"".join(
        (
            bytes((_FIRST_BLOCK,)),
            _varint(chunk.first_block),
            bytes((_CONTEXTS,)),
            _varint(len(chunk.contexts)),
            chunk.contexts,
            bytes((_DATA,)),
            _varint(len(chunk.data)),
            chunk.data,
            bytes((_CHECKSUM,)),
            _U64.pack(chunk.checksum),
            *sent,
        )
    )


def decode_chunk(raw: bytes) -> Chunk:
    """What the message says; contexts and data are views of it. Fields that are not known are
    passed over. ChunkError."""
    view = memoryview(raw)
    found: dict[int, int | memoryview] = {}
    at = 0
    while at < len(view):
        tag, at = _read_varint(view, at)
        kind = tag & 7
        if kind == _VARINT:
            found[tag], at = _read_varint(view, at)
            continue
        if kind == _BYTES:
            size, at = _read_varint(view, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ChunkError(f"a field of kind {kind}")
        if size > len(view) - at:
            raise ChunkError(f"it ends {size - (len(view) - at)} bytes early")
        part = view[at : at + size]
        found[tag] = part if kind == _BYTES else int.from_bytes(part, "little")
        at += size
    return Chunk(
        _number(found, _FIRST_BLOCK),
        _part(found, _CONTEXTS),
        _part(found, _DATA),
        _number(found, _CHECKSUM),
        _number(found, _SENT_BYTES),
    )


def _number(found: dict[int, int | memoryview], tag: int) -> int:
    value = found.get(tag, 0)
    assert isinstance(value, int), "the kind is part of the tag"
    return value


def _part(found: dict[int, int | memoryview], tag: int) -> memoryview:
    value = found.get(tag, memoryview(b""))
    assert isinstance(value, memoryview), "the kind is part of the tag"
    return value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """The number, and where it ends."""
    value = 0
    for index in range(_VARINT_BYTES_MAX):
        if at + index >= len(view):
            raise ChunkError("it ends within a number")
        byte = view[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at + index + 1
    raise ChunkError("a number of more than ten bytes")
