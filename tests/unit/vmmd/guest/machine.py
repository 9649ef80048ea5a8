"""A machine of memory: topology, one NVMe disk on a backend that can hold back or fail, a guest."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from vmmd.block.backend import BackendInfo, BlockOp, BlockStatus, Completion, Done, Request
from vmmd.block.memory import MemoryBackend
from vmmd.guest.disk import GuestDisk
from vmmd.guest.machine_guest import GuestSystem
from vmmd.guest.memory import GuestRam
from vmmd.hw.nvme.controller import NvmeController
from vmmd.hw.pci.topology import PciTopology

PATH = "0.16.0"


class MoodyBackend:
    """A memory backend that fails ops in `failing`, and keeps requests back while `holding`."""

    def __init__(self, block_size: int, block_count: int) -> None:
        self.memory = MemoryBackend(block_size, block_count)
        self.failing: set[BlockOp] = set()
        self.holding = False
        self.held: list[tuple[Sequence[Request], Done]] = []
        self.batches: list[int] = []

    @property
    def info(self) -> BackendInfo:
        return self.memory.info

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        self.batches.append(len(batch))
        if self.holding:
            self.held.append((batch, done))
            return
        failed = [r for r in batch if r.op in self.failing]
        if failed:
            done([Completion(r.token, BlockStatus.FAILED) for r in failed])
        rest = [r for r in batch if r.op not in self.failing]
        if rest:
            self.memory.submit(rest, done)

    def let_go(self) -> None:
        """Carries out what was kept back."""
        self.holding = False
        held, self.held = self.held, []
        for batch, done in held:
            self.submit(batch, done)


class Machine:
    """Call `start` first."""

    def __init__(self, blocks: int = 4096, block_size: int = 4096, memory: int = 64 << 20) -> None:
        self.ram = GuestRam(memory)
        self.topology = PciTopology(self.ram)
        self.backend = MoodyBackend(block_size, blocks)
        self.controller = NvmeController(
            self.backend, serial="serial-1", namespace_uuid=UUID(int=5)
        )
        self.topology.attach(PATH, self.controller)
        self.guest = GuestSystem(self.topology, self.ram, {PATH: "block2"})

    async def start(self) -> GuestDisk:
        """The guest's one disk."""
        await self.guest.start()
        return self.guest.disk("block2")
