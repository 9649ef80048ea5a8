"""A controller core with queues in plain memory, driven by hand and answered by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable
from uuid import UUID

from vmmd.block.attachment import AttachmentCounters
from vmmd.block.backend import BackendInfo, BlockStatus, Completion, Request
from vmmd.hw.nvme import bits
from vmmd.hw.nvme.commands import ENTRY
from vmmd.hw.nvme.core import Effects, NvmeCore
from vmmd.hw.nvme.identify import NvmeIdentity

BLOCK = 4096
BLOCKS = 1 << 20
MEMORY = 8 << 20
ASQ, ACQ, SQ, CQ = 0x1000, 0x2000, 0x3000, 0x8000
DATA = 0x100000


class Ram:
    def __init__(self, size: int) -> None:
        self.bytes = bytearray(size)

    def view(self, address: int, length: int) -> memoryview | None:
        if address < 0 or address + length > len(self.bytes):
            return None
        return memoryview(self.bytes)[address : address + length]


class Rig:
    """One admin queue of 16 entries; `create_io` adds queue pair 1."""

    def __init__(
        self, *, read_only: bool = False, discard: bool = True, shadow: bool = True
    ) -> None:
        self.ram = Ram(MEMORY)
        self.info = BackendInfo(BLOCK, BLOCKS, read_only, discard)
        identity = NvmeIdentity(serial="S1", namespace_uuid=UUID(int=7))
        self.counters = AttachmentCounters()
        # Called between what the core stores for the guest and what it loads after that.
        self.at_barrier: Callable[[], None] = lambda: None
        barrier = (lambda: self.at_barrier()) if shadow else None
        self.core = NvmeCore(self.info, identity, self.counters, vectors=16, barrier=barrier)
        self.core.connect(self.ram)
        self.tails = {0: 0, 1: 0}
        self.heads = {0: 0, 1: 0}
        self.sizes = {0: 16, 1: 16}
        self.phases = {0: 1, 1: 1}
        self.next_identifier = 100
        self.requests: list[Request] = []
        self.vectors: list[int] = []

    def take(self, effects: Effects) -> Effects:
        self.requests += effects.requests
        self.vectors += sorted(effects.vectors)
        return effects

    def enable(self, configuration: int = 0x460001) -> None:
        self.core.register_write(bits.REG_AQA, 4, 15 << 16 | 15)
        self.core.register_write(bits.REG_ASQ, 8, ASQ)
        self.core.register_write(bits.REG_ACQ, 8, ACQ)
        self.take(self.core.register_write(bits.REG_CC, 4, configuration))

    def queue(self, queue: int, opcode: int, **fields: int) -> int:
        identifier = fields.pop("identifier", self.next_identifier)
        self.next_identifier += 1
        names = ("namespace", "prp1", "prp2", "cdw10", "cdw11", "cdw12", "cdw13")
        assert set(fields) <= {*names, "flags"}
        f = [fields.get(name, 0) for name in names]
        base = (ASQ if queue == 0 else SQ) + self.tails[queue] * 64
        ENTRY.pack_into(
            self.ram.bytes, base, opcode, fields.get("flags", 0), identifier, f[0], 0, 0, f[1],
            f[2], f[3], f[4], f[5], f[6], 0, 0,
        )  # fmt: skip
        self.tails[queue] = (self.tails[queue] + 1) % self.sizes[queue]
        return identifier

    def ring(self, queue: int) -> None:
        offset = bits.REG_DOORBELLS + 8 * queue
        self.take(self.core.register_write(offset, 4, self.tails[queue]))

    def reap(self, queue: int, *, consume: bool = True) -> list[tuple[int, int, int]]:
        """(identifier, status, result) of the new completions."""
        found = []
        head, phase = self.heads[queue], self.phases[queue]
        while True:
            base = (ACQ if queue == 0 else CQ) + head * 16
            result, _, _, sq, identifier, word = struct.unpack_from("<IIHHHH", self.ram.bytes, base)
            if word & 1 != phase:
                break
            assert sq == queue
            found.append((identifier, word >> 1, result))
            head += 1
            if head == self.sizes[queue]:
                head, phase = 0, phase ^ 1
        if consume:
            self.heads[queue], self.phases[queue] = head, phase
            offset = bits.REG_DOORBELLS + 8 * queue + 4
            self.take(self.core.register_write(offset, 4, head))
        return found

    def admin(self, opcode: int, **fields: int) -> tuple[int, int]:
        """(status, result) of one admin command."""
        identifier = self.queue(0, opcode, **fields)
        self.ring(0)
        [(found, status, result)] = self.reap(0)
        assert found == identifier
        return status, result

    def create_io(self, size: int = 16) -> None:
        self.sizes[1] = size
        shape = (size - 1) << 16 | 1
        create_cq, create_sq = bits.AdminOpcode.CREATE_CQ, bits.AdminOpcode.CREATE_SQ
        assert self.admin(create_cq, prp1=CQ, cdw10=shape, cdw11=1 << 16 | 3) == (0, 0)
        assert self.admin(create_sq, prp1=SQ, cdw10=shape, cdw11=1 << 16 | 1) == (0, 0)

    def io(self, opcode: int, **fields: int) -> int:
        """Submits one I/O command; its identifier."""
        identifier = self.queue(1, opcode, **{"namespace": 1, **fields})
        self.ring(1)
        return identifier

    def answer(self, status: BlockStatus = BlockStatus.OK, data: bytes | None = None) -> None:
        """Completes everything the core has asked for."""
        requests, self.requests = self.requests, []
        completions = [Completion(r.token, status, data) for r in requests]
        self.take(self.core.complete(completions))

    def status_of(self, opcode: int, **fields: int) -> int:
        """The status of a command that never reaches the backend."""
        identifier = self.io(opcode, **fields)
        assert self.requests == []
        [(found, status, _)] = self.reap(1)
        assert found == identifier
        return status
