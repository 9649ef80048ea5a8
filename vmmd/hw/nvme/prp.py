"""Physical region pages: from the two pointers of a command to the guest's buffers.

`walk` never trusts an entry: alignment is checked on each, and every buffer must be memory. Entries
of a list are read in one go and neighbouring pages joined, since guests mostly use runs of pages.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vmmd.hw.memory import GuestMemory
from vmmd.hw.nvme import bits

_PAGE = bits.PAGE_BYTES
_OFFSET = _PAGE - 1
_ENTRY_BYTES = 8


class PrpError(Exception):
    """The pointers are wrong; `status` is what the command completes with."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status:#x}")
        self.status = status


def walk(memory: GuestMemory, prp1: int, prp2: int, length: int) -> list[memoryview]:
    """The guest's buffers of a transfer of `length` > 0 bytes, in order; PrpError if wrong.

    The caller has bounded `length`, which bounds the work done here.
    """
    assert length > 0
    if prp1 & 3:
        raise PrpError(bits.PRP_OFFSET_INVALID)
    first = min(length, _PAGE - (prp1 & _OFFSET))
    rest = length - first
    if rest == 0:
        return [_view(memory, prp1, first)]
    if rest <= _PAGE:
        if prp2 & _OFFSET:
            raise PrpError(bits.PRP_OFFSET_INVALID)
        if prp2 == prp1 + first:
            return _views(memory, prp1, length)
        return [_view(memory, prp1, first), _view(memory, prp2, rest)]
    pages = _list_pages(memory, prp2, -(-rest // _PAGE))
    return _joined(memory, prp1, first, pages, rest)


def _view(memory: GuestMemory, address: int, length: int) -> memoryview:
    view = memory.view(address, length)
    if view is None:
        raise PrpError(bits.DATA_TRANSFER_ERROR)
    return view


def _list_pages(memory: GuestMemory, address: int, count: int) -> npt.NDArray[np.uint64]:
    """The `count` page addresses of a PRP list: may start inside a page and chain to others."""
    if address & (_ENTRY_BYTES - 1):
        raise PrpError(bits.PRP_OFFSET_INVALID)
    parts = []
    while count:
        room = (_PAGE - (address & _OFFSET)) // _ENTRY_BYTES
        # The last entry of a list page points to the next one when more is to come.
        here = count if count <= room else room - 1
        taken = min(count, room)
        raw = _view(memory, address, taken * _ENTRY_BYTES)
        entries = np.frombuffer(bytes(raw), dtype="<u8")
        parts.append(entries[:here])
        count -= here
        if count:
            address = int(entries[-1])
            # Chained lists start at the beginning of a page, so each step uses up entries.
            if address & _OFFSET:
                raise PrpError(bits.PRP_OFFSET_INVALID)
    pages = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if (pages & np.uint64(_OFFSET)).any():
        raise PrpError(bits.PRP_OFFSET_INVALID)
    return pages


def _joined(
    memory: GuestMemory, prp1: int, first: int, pages: npt.NDArray[np.uint64], rest: int
) -> list[memoryview]:
    """Buffers of the first page and the listed ones, runs of neighbouring pages joined."""
    # Wrap-around of the subtraction only makes a difference that is not one page.
    breaks = np.flatnonzero(np.diff(pages) != np.uint64(_PAGE)) + 1
    starts = [0, *breaks.tolist()]
    ends = [*breaks.tolist(), len(pages)]
    runs: list[tuple[int, int]] = []
    for start, end in zip(starts, ends, strict=True):
        size = min((end - start) * _PAGE, rest)
        runs.append((int(pages[start]), size))
        rest -= size
    assert rest == 0
    if runs[0][0] == prp1 + first:
        runs[0] = (prp1, first + runs[0][1])
    else:
        runs.insert(0, (prp1, first))
    return [view for address, size in runs for view in _views(memory, address, size)]


def _views(memory: GuestMemory, address: int, size: int) -> list[memoryview]:
    """A run of pages; where no single view covers it, the pieces of memory that do together."""
    whole = memory.view(address, size)
    if whole is not None:
        return [whole]
    found = []
    while size:
        step = min(_PAGE - (address & _OFFSET), size)
        found.append(_view(memory, address, step))
        address += step
        size -= step
    return found
