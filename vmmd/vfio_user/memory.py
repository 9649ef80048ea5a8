"""The guest's memory as a hypervisor maps it piece by piece."""

from __future__ import annotations

import errno
import mmap
import os
from bisect import bisect_right
from typing import NamedTuple

from vmmd.vfio_user.core import wire
from vmmd.vfio_user.core.wire import DmaMap, RequestError

# Maps of a whole guest are a few dozen; a kernel has 65530 for a process.
PIECES_MAX = 4096


class _Piece(NamedTuple):
    address: int
    size: int
    view: memoryview


class MappedMemory:
    """Implements vmmd.hw.memory.GuestMemory; satisfies core.conversation.DmaMemory.

    Pieces do not overlap. A piece that only is readable is no memory for a device, which has to be
    able to write to what it is given. Mappings end when the last view of them does.
    """

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []
        self._starts: list[int] = []

    def view(self, address: int, length: int) -> memoryview | None:
        """As GuestMemory.view; None also where the range lies in two pieces."""
        at = bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        piece = self._pieces[at]
        start = address - piece.address
        if start + length > piece.size:
            return None
        return piece.view[start : start + length]

    def map(self, piece: DmaMap, file: int) -> None:
        """As DmaMemory.map."""
        end = piece.address + piece.size
        if piece.size == 0 or end > 1 << 64:
            raise RequestError(errno.EINVAL, f"{piece.size} bytes of memory at {piece.address:#x}")
        writable = wire.DMA_READABLE | wire.DMA_WRITABLE
        if piece.flags & writable != writable:
            return
        if len(self._pieces) >= PIECES_MAX:
            raise RequestError(errno.ENOSPC, f"more than {PIECES_MAX} pieces of memory")
        at = bisect_right(self._starts, piece.address)
        before = self._pieces[at - 1] if at else None
        if (before is not None and before.address + before.size > piece.address) or (
            at < len(self._starts) and self._starts[at] < end
        ):
            raise RequestError(errno.EEXIST, f"memory at {piece.address:#x} is mapped already")
        self._pieces.insert(at, _Piece(piece.address, piece.size, _mapped(piece, file)))
        self._starts.insert(at, piece.address)

    def unmap(self, address: int, size: int) -> None:
        """As DmaMemory.unmap."""
        end = address + size
        stay = []
        for piece in self._pieces:
            piece_end = piece.address + piece.size
            if piece_end <= address or end <= piece.address:
                stay.append(piece)
            elif piece.address < address or end < piece_end:
                text = f"memory at {piece.address:#x} cannot be unmapped in part"
                raise RequestError(errno.EINVAL, text)
        self._pieces = stay
        self._starts = [piece.address for piece in stay]

    def clear(self) -> None:
        """No memory is left."""
        self._pieces, self._starts = [], []


def _mapped(piece: DmaMap, file: int) -> memoryview:
    """Mappings begin at whole pages of a file."""
    inside = piece.offset % mmap.ALLOCATIONGRANULARITY
    try:
        whole = os.fstat(file).st_size
        # Beyond the file's end there is nothing, and touching it would end this process.
        if piece.offset + piece.size > whole:
            text = f"memory up to {piece.offset + piece.size} of a file of {whole}"
            raise RequestError(errno.EINVAL, text)
        mapped = mmap.mmap(file, piece.size + inside, offset=piece.offset - inside)
    except (OSError, ValueError, OverflowError) as error:
        raise RequestError(errno.EINVAL, f"memory cannot be mapped: {error}") from error
    return memoryview(mapped)[inside:]
