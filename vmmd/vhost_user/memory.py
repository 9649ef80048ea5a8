"""The guest's memory as a hypervisor shares it: some files, mapped."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple

from vmmd.vhost_user.core.wire import ProtocolError, Region


class _Mapped(NamedTuple):
    region: Region
    view: memoryview


class SharedMemory:
    """Implements vmmd.hw.memory.GuestMemory over a memory table.

    Mappings end when the last view of them does: a request that is still at work keeps what it
    needs.
    """

    def __init__(self) -> None:
        self._mapped: list[_Mapped] = []

    def map(self, regions: Sequence[Region], files: Sequence[int]) -> None:
        """Maps `files[i]` for `regions[i]`, in place of all that was mapped; the descriptors may be
        closed afterwards. ProtocolError when one cannot be mapped."""
        self._mapped = [
            _Mapped(region, _map(region, file)) for region, file in zip(regions, files, strict=True)
        ]

    def view(self, address: int, length: int) -> memoryview | None:
        """By guest-physical address; as GuestMemory.view."""
        for region, view in self._mapped:
            start = address - region.guest
            if start >= 0 and start + length <= region.size:
                return view[start : start + length]
        return None

    def at_user(self, address: int, length: int) -> memoryview | None:
        """By the hypervisor's own address, as rings are named."""
        for region, view in self._mapped:
            start = address - region.user
            if start >= 0 and start + length <= region.size:
                return view[start : start + length]
        return None


def _map(region: Region, file: int) -> memoryview:
    """From the beginning of the file: offsets of regions need not be whole pages."""
    whole = region.offset + region.size
    try:
        if whole > os.fstat(file).st_size:
            raise ProtocolError(f"a region up to {whole} of a file of {os.fstat(file).st_size}")
        return memoryview(mmap.mmap(file, whole))[region.offset :]
    except (OSError, ValueError, OverflowError) as error:
        raise ProtocolError(f"guest memory cannot be mapped: {error}") from error
