"""What each block of a tormented volume may hold: the model that every read is checked against.

Content follows from (block, version, seed) by `vmmd.guest.pattern`, so a read tells which version
it saw. Version 0 is a block that was never written, or discarded: zeros.

A block is *exact* while the guest knows its content. After a loss (the upstairs vanished) it may be
what the last flush that ended well covered, or anything written since; what is seen then has to
stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vmmd.guest.pattern import Pattern, all_zero


@dataclass(slots=True)
class Block:
    """`versions[floor:]` are possible, the last is the newest; `unsure` are of writes whose outcome
    nobody has told."""

    versions: list[int] = field(default_factory=lambda: [0])
    floor: int = 0
    exact: bool = True
    unsure: list[int] = field(default_factory=list)


class WrongDataError(AssertionError):
    """A block holds what it may not hold."""


class Ledger:
    """All blocks of one volume."""

    def __init__(self, blocks: int, block_size: int, seed: int) -> None:
        self.blocks = [Block() for _ in range(blocks)]
        self._size = block_size
        self._pattern = Pattern(block_size, seed)
        self._next = 1

    def data(self, first: int, count: int) -> tuple[bytes, list[int]]:
        """Content for a write, and the versions it is of."""
        versions = list(range(self._next, self._next + count))
        self._next += count
        buffer = bytearray(count * self._size)
        self._pattern.fill(memoryview(buffer), first, np.array(versions, dtype=np.uint32))
        return bytes(buffer), versions

    def began(self, first: int, versions: list[int]) -> None:
        """A write or discard is on its way."""
        for number, version in enumerate(versions, first):
            self.blocks[number].unsure.append(version)

    def changed(self, first: int, versions: list[int]) -> None:
        """It was acknowledged: these are the newest."""
        for number, version in enumerate(versions, first):
            block = self.blocks[number]
            block.unsure.remove(version)
            block.versions.append(version)
            block.exact = True

    def failed(self, first: int, versions: list[int]) -> None:
        """It was refused: done in part, or not at all."""
        for number, version in enumerate(versions, first):
            block = self.blocks[number]
            block.unsure.remove(version)
            newest = block.versions.pop()
            block.versions += [version, newest]
            block.exact = False

    def mark(self) -> list[tuple[Block, list[int], int]]:
        """What a flush that begins now will cover."""
        return [
            (block, block.versions, len(block.versions) - 1 if block.exact else block.floor)
            for block in self.blocks
        ]

    def flushed(self, marks: list[tuple[Block, list[int], int]]) -> None:
        """A flush ended well: nothing older than what it covered comes back."""
        for block, versions, floor in marks:
            if block.versions is versions:
                block.floor = max(block.floor, floor)

    def lost(self) -> None:
        """What is not flushed may be gone, and what nobody has heard of may be there."""
        for block in self.blocks:
            block.versions = [*block.versions[block.floor :], *block.unsure]
            block.unsure = []
            block.floor = 0
            block.exact = len(block.versions) == 1

    def check(self, first: int, data: bytes) -> None:
        """A read of these blocks, during which none of them was written; WrongDataError."""
        size = self._size
        for number in range(first, first + len(data) // size):
            start = (number - first) * size
            self._check_one(number, memoryview(data)[start : start + size])

    def _check_one(self, number: int, data: memoryview) -> None:
        block = self.blocks[number]
        allowed = [block.versions[-1]] if block.exact else block.versions[block.floor :]
        for version in dict.fromkeys(reversed(allowed)):
            if self._is(number, version, data):
                if not block.exact:
                    block.versions = [version]
                    block.floor = 0
                    block.exact = True
                return
        older = next((v for v in block.versions if self._is(number, v, data)), None)
        what = "something that was never written there" if older is None else f"version {older}"
        raise WrongDataError(f"block {number} holds {what}, allowed is one of {allowed[-8:]}")

    def _is(self, number: int, version: int, data: memoryview) -> bool:
        if not version:
            return bool(all_zero(data, 1)[0])
        return bool(self._pattern.matching(data, number, np.array([version], dtype=np.uint32))[0])
