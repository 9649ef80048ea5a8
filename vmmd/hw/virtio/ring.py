"""A split virtqueue as its device sees it (virtio 1.2, section 2.7).

The three rings are views of the guest's memory: descriptors of 16 bytes, the driver's `avail` ring,
the device's `used` ring. Everything in them but `used` is the guest's word: a chain that points
outside of memory, runs in circles or mixes its directions is a broken chain and harms nothing else.

Stores become visible in the order they are made here, which holds on x86-64 for a process and its
guest. The device always notifies (one interrupt a batch) and never asks not to be kicked, so that
nothing depends on the order of a store and a later load.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from vmmd.hw.memory import GuestMemory

ENTRIES_MAX = 1024
_DESCRIPTOR = struct.Struct("<QIHH")
_USED_ENTRY = struct.Struct("<II")
# Indirect tables may be longer than the ring; nothing a driver sends needs more than this.
CHAIN_DESCRIPTORS_MAX = 1024

_NEXT = 1
_WRITE = 2
_INDIRECT = 4

DESCRIPTOR_BYTES = _DESCRIPTOR.size


def avail_bytes(entries: int) -> int:
    """Of the driver's ring: flags, index, heads."""
    return 4 + 2 * entries


def used_bytes(entries: int) -> int:
    """Of the device's ring: flags, index, (head, written)."""
    return 4 + 8 * entries


class BrokenChainError(Exception):
    """A chain that cannot be followed; the text says why."""


@dataclass(slots=True)
class Chain:
    """One request's buffers: what the guest gives, and where it wants answers. `head` names it."""

    head: int
    readable: list[memoryview] = field(default_factory=list)
    writable: list[memoryview] = field(default_factory=list)


class SplitRing:
    """One started virtqueue of `entries` (a power of two) entries.

    `taken` counts the chains taken since the ring was made, modulo 2^16; `used` those given back.
    """

    def __init__(
        self,
        entries: int,
        descriptors: memoryview,
        avail: memoryview,
        used: memoryview,
        memory: GuestMemory,
    ) -> None:
        """The views have the sizes that `entries` asks for, and are aligned to 2 bytes at least."""
        self.entries = entries
        self._descriptors = descriptors
        self._avail = avail[: avail_bytes(entries)].cast("H")
        self._used_index = used[:4].cast("H")
        self._used = used
        self._memory = memory
        self.used = self._used_index[1]
        self.taken = self.used

    @property
    def waiting(self) -> int:
        """Chains the guest offers that were not taken. More than `entries` is nonsense."""
        return (self._avail[1] - self.taken) & 0xFFFF

    def next_head(self) -> int:
        """Takes the next chain and returns its head, which may be any number. Only while
        `waiting`."""
        head = self._avail[2 + self.taken % self.entries]
        self.taken = (self.taken + 1) & 0xFFFF
        return head

    def chain(self, head: int) -> Chain:
        """Follows a chain; BrokenChainError when it leads nowhere."""
        chain = Chain(head)
        table = bytes(self._descriptors)
        index, left = head, CHAIN_DESCRIPTORS_MAX
        entries = self.entries
        indirect = False
        while True:
            if index >= entries or not left:
                raise BrokenChainError(f"descriptor {index} of {entries}, {left} left")
            left -= 1
            address, length, flags, following = _DESCRIPTOR.unpack_from(
                table, index * DESCRIPTOR_BYTES
            )
            if flags & _INDIRECT:
                if indirect or flags & _NEXT:
                    raise BrokenChainError("an indirect table within or before another descriptor")
                table, entries = self._indirect(address, length)
                index, indirect = 0, True
                continue
            self._add(chain, address, length, writable=bool(flags & _WRITE))
            if not flags & _NEXT:
                return chain
            index = following

    def _indirect(self, address: int, length: int) -> tuple[bytes, int]:
        """A copy of the table, so that what was checked is what is used; and its entries."""
        entries, rest = divmod(length, DESCRIPTOR_BYTES)
        if rest or not 0 < entries <= CHAIN_DESCRIPTORS_MAX:
            raise BrokenChainError(f"an indirect table of {length} bytes")
        view = self._memory.view(address, length)
        if view is None:
            raise BrokenChainError(f"an indirect table at {address:#x}, which is no memory")
        return bytes(view), entries

    def _add(self, chain: Chain, address: int, length: int, *, writable: bool) -> None:
        view = self._memory.view(address, length)
        if view is None:
            raise BrokenChainError(f"{length} bytes at {address:#x}, which is no memory")
        if writable:
            chain.writable.append(view)
        elif chain.writable:
            raise BrokenChainError("a readable buffer behind a writable one")
        else:
            chain.readable.append(view)

    def give_back(self, done: Sequence[tuple[int, int]]) -> None:
        """Returns chains, (head, bytes written) each; the guest sees all of them at once."""
        for head, written in done:
            place = 4 + 8 * (self.used % self.entries)
            _USED_ENTRY.pack_into(self._used, place, head, written)
            self.used = (self.used + 1) & 0xFFFF
        self._used_index[1] = self.used
