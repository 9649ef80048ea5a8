"""A disk whose answers a test holds back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from vmmd.block.backend import BackendInfo, Done, Request
from vmmd.block.memory import MemoryBackend

BLOCK = 4096
BLOCKS = 2048


class HeldBackend:
    """A disk in memory that answers when it is let to."""

    def __init__(self) -> None:
        self.disk = MemoryBackend(BLOCK, BLOCKS)
        self.open = True
        self.batches: list[int] = []
        self.changed = asyncio.Event()
        self._waiting: list[tuple[Request, Done]] = []

    @property
    def info(self) -> BackendInfo:
        return self.disk.info

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        self.batches.append(len(batch))
        self.changed.set()
        if self.open:
            self.disk.submit(batch, done)
        else:
            self._waiting += [(request, done) for request in batch]

    def let_go(self) -> None:
        self.open = True
        waiting, self._waiting = self._waiting, []
        for request, done in waiting:
            self.disk.submit([request], done)

    async def until_asked(self, count: int) -> None:
        async with asyncio.timeout(20):
            while sum(self.batches) < count:
                self.changed.clear()
                await self.changed.wait()
