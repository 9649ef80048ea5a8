"""The context blocks of physical chunks: two files, written in turn, never in place.

Physical chunk `p` has one place in `contexts-0` and one in `contexts-1`, at `p * stride`:

    header    32 bytes, see HEADER
    contexts  chunk_blocks entries of 32 bytes
    padding   zeros to a multiple of 512, so that no sector holds parts of two chunks

The durable map says which of the two counts. A checkpoint writes the other one, so that a torn
write cannot hurt. The checksum covers header and contexts: an entry that turned to zeros would
otherwise read as "never written".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from downstaird.core.disk import File
from stairlib.model.context import CONTEXT_BYTES, ContextArray, empty_contexts, written
from stairlib.model.errors import DataError

CONTEXT_NAMES = ("contexts-0", "contexts-1")
MAGIC = 0x58435753  # "SWCX"
VERSION = 1
# magic, version, zero, logical chunk, physical chunk, region tag (low half), zero, checksum
HEADER = struct.Struct("<IHHIIIIQ")
HEADER_BYTES = HEADER.size
assert HEADER_BYTES == 32
_CHECKSUM = struct.Struct("<Q")
_CHECKSUM_AT = HEADER_BYTES - _CHECKSUM.size
_SECTOR = 512


@dataclass(frozen=True, slots=True)
class Home:
    """Contexts of one physical chunk, shape (chunk_blocks, 4); never changed once made.

    `full`: every block of the chunk has been written, so that its data can be given out as it is.
    """

    contexts: ContextArray
    full: bool

    def __post_init__(self) -> None:
        self.contexts.setflags(write=False)

    @classmethod
    def of(cls, contexts: ContextArray, blocks: int) -> Home:
        """`blocks`: how many of the entries belong to the chunk (the others are padding)."""
        # Most blocks have something in their first word; the others are looked at twice.
        full = (
            np.count_nonzero(contexts[:blocks, 0]) == blocks
            or np.count_nonzero(written(contexts[:blocks])) == blocks
        )
        return cls(contexts, full)


class ContextFiles:
    """Reads and writes context blocks. Used by the loop (read) and a checkpoint's worker (read and
    write)."""

    def __init__(self, files: Sequence[File], chunk_blocks: int, tag: int) -> None:
        self.files = files
        self._blocks = chunk_blocks
        self._tag = tag & 0xFFFFFFFF
        self._length = HEADER_BYTES + chunk_blocks * CONTEXT_BYTES
        self.stride = -(-self._length // _SECTOR) * _SECTOR

    def load(self, chunk: int, physical: int, side: int) -> ContextArray:
        """Shape (chunk_blocks, 4). DataError EXTENT_FAULTED when it is not what was stored."""
        file = self.files[side]
        offset = physical * self.stride
        try:
            raw = file.pread(self._length, offset)
        except DataError as error:
            raise self._damaged(file, offset, error.message) from error
        magic, version, _, logical, place, tag, _, checksum = HEADER.unpack_from(raw)
        if magic != MAGIC or tag != self._tag:
            raise self._damaged(file, offset, "there is no context block of this region there")
        if xxhash.xxh3_64_intdigest(raw[:_CHECKSUM_AT] + raw[HEADER_BYTES:]) != checksum:
            raise self._damaged(file, offset, "the checksum does not match")
        if version != VERSION:
            raise self._damaged(file, offset, f"its version is {version}, not {VERSION}")
        if (logical, place) != (chunk, physical):
            raise self._damaged(
                file, offset, f"it is of chunk {logical} at {place}, not of {chunk} at {physical}"
            )
        return np.frombuffer(raw, dtype=np.uint64, offset=HEADER_BYTES).reshape(-1, 4)

    def store(self, side: int, blocks: Sequence[tuple[int, int, ContextArray]]) -> None:
        """Writes (logical chunk, physical chunk, contexts), runs of physical chunks in one go. Not
        synced."""
        blocks = sorted(blocks, key=lambda block: block[1])
        start = 0
        while start < len(blocks):
            stop = start + 1
            while stop < len(blocks) and blocks[stop][1] == blocks[stop - 1][1] + 1:
                stop += 1
            raw = b"".join(self._encode(*block) for block in blocks[start:stop])
            self.files[side].pwritev([raw], blocks[start][1] * self.stride)
            start = stop

    def _encode(self, chunk: int, physical: int, contexts: ContextArray) -> bytes:
        head = HEADER.pack(MAGIC, VERSION, 0, chunk, physical, self._tag, 0, 0)[:_CHECKSUM_AT]
        body = contexts.tobytes()
        checksum = xxhash.xxh3_64_intdigest(head + body)
        padding = bytes(self.stride - self._length)
        return b"".join((head, _CHECKSUM.pack(checksum), body, padding))

    def _damaged(self, file: File, offset: int, why: str) -> DataError:
        return DataError(
            f"the block contexts in {file.name} at byte {offset} are damaged ({why}): "
            "the extent has to be repaired from another replica",
            reason="EXTENT_FAULTED",
            file=file.name,
            offset=str(offset),
        )


def zero_home(chunk_blocks: int) -> Home:
    """Contexts of a chunk where nothing is written yet."""
    return Home(empty_contexts(chunk_blocks), full=False)
