"""The built-in guest's NVMe driver: real commands through the emulated controller's queues.

Brings a found function up as a kernel does (reset, admin queue, identify, I/O queues, MSI-X),
then offers block I/O. All calls are made on one asyncio loop. Two ways to use it:

- `read write write_zeroes flush deallocate`: any length, raise NvmeError;
- slots, for workloads: `slot = await acquire()`, fill `slot.buffer`, `start_command(slot, ...)`,
  await the future's status, look at `slot.buffer`, `release(slot)`. Only the device copies.

A slot is one command identifier with a transfer buffer and its PRP list. Invariant: a slot in
flight is never handed out again, even when whoever awaited it was cancelled.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from stairlib.model.errors import DataError, LimitError, UnavailableError
from vmmd.guest.interrupts import MESSAGE_ADDRESS, InterruptTable
from vmmd.guest.memory import PAGE_BYTES, GuestRam
from vmmd.guest.pci_scan import FoundFunction
from vmmd.guest.queue_pair import QueuePair
from vmmd.hw.nvme import bits
from vmmd.hw.pci import bits as pci_bits
from vmmd.hw.pci.topology import PciTopology

NVME_CLASS = 0x010802
# Commands in flight per disk; each slot's megabyte is touched only when it is used.
SLOTS_MAX = 64
IO_QUEUES = 2
_ADMIN_ENTRIES = 32
_READY_SECONDS = 10.0
_READY_POLL_SECONDS = 0.002
TRANSFER_BYTES_MAX = 1 << 20
_RANGE = struct.Struct("<IIQ")
_RANGES_MAX = 256
_STOPPED = -1

_STATUS_TEXTS = {
    bits.INVALID_OPCODE: "invalid opcode",
    bits.INVALID_FIELD: "invalid field",
    bits.DATA_TRANSFER_ERROR: "data transfer error",
    bits.INTERNAL_ERROR: "internal error",
    bits.INVALID_NAMESPACE: "invalid namespace",
    bits.PRP_OFFSET_INVALID: "PRP offset invalid",
    bits.LBA_OUT_OF_RANGE: "LBA out of range",
    bits.READ_ONLY_RANGE: "the disk is read-only",
    bits.WRITE_FAULT: "write fault",
    bits.UNRECOVERED_READ: "unrecovered read error",
    _STOPPED: "the driver was stopped",
}


def status_text(status: int) -> str:
    """A completion status for people."""
    return _STATUS_TEXTS.get(status, f"status {status:#06x}")


class NvmeError(DataError):
    """A command ended with another status than success; `status` is it."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(f"{what}: {status_text(status)}", reason="NVME_STATUS")
        self.status = status


@dataclass(frozen=True, slots=True)
class DiskIdentity:
    """What Identify said. Sizes in bytes and blocks."""

    serial: str
    model: str
    namespace_uuid: UUID
    block_size: int
    block_count: int
    read_only: bool
    write_cache: bool
    can_deallocate: bool
    can_write_zeroes: bool


class IoSlot:
    """One command's identifier and memory. `buffer` is what the device reads or writes."""

    __slots__ = (
        "address",
        "buffer",
        "future",
        "identifier",
        "in_flight",
        "list_address",
        "on_complete",
        "queue",
        "released",
    )

    def __init__(self, identifier: int, queue: QueuePair, memory: GuestRam, size: int) -> None:
        self.identifier = identifier
        self.queue = queue
        self.address = memory.allocate(size)
        buffer = memory.view(self.address, size)
        assert buffer is not None
        self.buffer = buffer
        self.list_address = memory.allocate(PAGE_BYTES)
        pages = np.arange(self.address + PAGE_BYTES, self.address + size, PAGE_BYTES, dtype="<u8")
        page_list = memory.view(self.list_address, pages.nbytes)
        assert page_list is not None
        page_list[:] = pages.tobytes()
        self.in_flight = False
        self.released = False
        self.future: asyncio.Future[int] | None = None
        self.on_complete: Callable[[int], None] | None = None

    def give_back(self, memory: GuestRam) -> None:
        """Frees its memory; no device may use it any more."""
        memory.free(self.address, len(self.buffer))
        memory.free(self.list_address, PAGE_BYTES)

    def second_pointer(self, length: int) -> int:
        """PRP entry 2 of a transfer of `length` bytes from the buffer's start."""
        if length <= PAGE_BYTES:
            return 0
        return self.address + PAGE_BYTES if length <= 2 * PAGE_BYTES else self.list_address


class NvmeDriver:
    """One controller. `start` before anything else, `stop` at the end."""

    def __init__(
        self,
        topology: PciTopology,
        function: FoundFunction,
        memory: GuestRam,
        interrupts: InterruptTable,
        *,
        slots: int = SLOTS_MAX,
        io_queues: int = IO_QUEUES,
    ) -> None:
        assert 1 <= slots <= SLOTS_MAX
        self._topology = topology
        self._function = function
        self._memory = memory
        self._interrupts = interrupts
        self._registers = function.bars[0].address
        self._slots_wanted = slots
        self._io_queues_wanted = io_queues
        self._vectors: list[int] = []
        self._admin: QueuePair | None = None
        self._admin_waiting: dict[int, asyncio.Future[tuple[int, int]]] = {}
        self._admin_next = 0
        self._queues: list[QueuePair] = []
        self._slots: list[IoSlot] = []
        self._free: asyncio.LifoQueue[IoSlot] = asyncio.LifoQueue()
        self._identity: DiskIdentity | None = None
        self._stopping = False
        self._stopped = False
        self.transfer_bytes_max = TRANSFER_BYTES_MAX

    @property
    def identity(self) -> DiskIdentity:
        """The disk behind the controller; only after `start`."""
        assert self._identity is not None
        return self._identity

    @property
    def slots(self) -> int:
        """Commands that can be in flight."""
        return len(self._slots)

    @property
    def stopped(self) -> bool:
        """Whether it is stopping or has stopped: nobody is to begin a command any more, since the
        slots' memory will be somebody else's."""
        return self._stopping or self._stopped

    # --- bring-up and the end ---

    async def start(self) -> None:
        """Brings the controller up; UnavailableError when it does not become ready."""
        self._write(bits.REG_CC, 4, 0)
        await self._wait_status(bits.CSTS_READY, 0)
        self._admin = self._queue_pair(0, _ADMIN_ENTRIES, self._admin_complete)
        sizes = (_ADMIN_ENTRIES - 1) << 16 | (_ADMIN_ENTRIES - 1)
        self._write(bits.REG_AQA, 4, sizes)
        self._write(bits.REG_ASQ, 8, self._admin.submission_address)
        self._write(bits.REG_ACQ, 8, self._admin.completion_address)
        self._enable_interrupts()
        self._route_vector(0, self._admin.interrupt)
        entry_sizes = (
            bits.CQ_ENTRY_SHIFT << bits.CC_IOCQES_SHIFT
            | bits.SQ_ENTRY_SHIFT << bits.CC_IOSQES_SHIFT
        )
        self._write(bits.REG_CC, 4, entry_sizes | bits.CC_ENABLE)
        await self._wait_status(bits.CSTS_READY, bits.CSTS_READY)
        await self._identify()
        await self._make_io_queues()
        self._make_slots()

    async def stop(self) -> None:
        """Shuts the controller down as before a power-off (it flushes), then ends what waits."""
        self._stopping = True
        if not self._stopped and self._read(bits.REG_CSTS, 4) & bits.CSTS_READY:
            configuration = self._read(bits.REG_CC, 4)
            self._write(bits.REG_CC, 4, configuration | 1 << bits.CC_SHN_SHIFT)
            await self._wait_status(bits.CSTS_SHUTDOWN_MASK, bits.CSTS_SHUTDOWN_COMPLETE)
            self._write(bits.REG_CC, 4, 0)
        self.abandon()

    def abandon(self) -> None:
        """The machine is gone: everything in flight ends with an error, memory is given back."""
        if self._stopped:
            return
        self._stopped = True
        for data in self._vectors:
            self._interrupts.release(data)
        for queue in [*self._queues, *([self._admin] if self._admin else [])]:
            queue.close()
        for waiting in self._admin_waiting.values():
            if not waiting.done():
                waiting.set_result((_STOPPED, 0))
        for slot in self._slots:
            if slot.in_flight:
                self._finished(slot, _STOPPED)
            slot.give_back(self._memory)

    # --- slots ---

    async def acquire(self) -> IoSlot:
        """A free slot; waits for one when all are in use."""
        return await self._free.get()

    def release(self, slot: IoSlot) -> None:
        """Gives a slot back; one still in flight is free when its command ends."""
        if slot.in_flight:
            slot.released = True
        else:
            self._free.put_nowait(slot)

    def start_command(
        self,
        slot: IoSlot,
        opcode: int,
        *,
        lba: int = 0,
        blocks: int = 0,
        length: int = 0,
        control: int = 0,
        on_complete: Callable[[int], None] | None = None,
    ) -> asyncio.Future[int]:
        """Submits an I/O command; the future's result is its status (0 is success).

        `length` bytes of the slot's buffer are its data; `control` goes to dword 12's upper bits
        (dword 11 for Dataset Management). `on_complete` is called even when nobody awaits.
        """
        assert not slot.in_flight
        slot.in_flight = True
        slot.on_complete = on_complete
        future = asyncio.get_running_loop().create_future()
        slot.future = future
        if self._stopped:
            self._finished(slot, _STOPPED)
            return future
        if opcode == bits.IoOpcode.DATASET_MANAGEMENT:
            cdw10, cdw11, cdw12 = blocks - 1, control, 0
        else:
            cdw10, cdw11 = lba & 0xFFFFFFFF, lba >> 32
            cdw12 = (max(blocks, 1) - 1) | control
        slot.queue.put(
            opcode,
            slot.identifier,
            namespace=bits.NAMESPACE,
            prp1=slot.address if length else 0,
            prp2=slot.second_pointer(length),
            cdw10=cdw10,
            cdw11=cdw11,
            cdw12=cdw12,
        )
        return future

    # --- block I/O ---

    async def read(self, lba: int, count: int) -> bytes:
        """`count` >= 1 blocks from `lba`; NvmeError when any part fails."""
        assert count >= 1
        size = self.identity.block_size
        if count * size <= self.transfer_bytes_max:
            return await self._read_part(lba, count)
        parts = await asyncio.gather(
            *(self._read_part(a, n) for a, n in self._parts(lba, count, size))
        )
        return b"".join(parts)

    async def write(self, lba: int, data: bytes | memoryview, *, fua: bool = False) -> None:
        """Writes whole blocks; `fua` makes them durable before this returns."""
        size = self.identity.block_size
        assert data
        assert len(data) % size == 0
        view = memoryview(data)
        await asyncio.gather(
            *(
                self._write_part(a, view[(a - lba) * size : (a - lba + n) * size], n, fua=fua)
                for a, n in self._parts(lba, len(data) // size, size)
            )
        )

    async def write_zeroes(self, lba: int, count: int) -> None:
        """Zeroes `count` <= 65536 blocks without transferring them."""
        await self._plain("write zeroes", bits.IoOpcode.WRITE_ZEROES, lba=lba, blocks=count)

    async def flush(self) -> None:
        """Returns when everything written and completed before is durable."""
        await self._plain("flush", bits.IoOpcode.FLUSH)

    async def deallocate(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Discards up to 256 (lba, count) ranges."""
        assert 1 <= len(ranges) <= _RANGES_MAX
        slot = await self.acquire()
        try:
            for index, (lba, count) in enumerate(ranges):
                _RANGE.pack_into(slot.buffer, index * _RANGE.size, 0, count, lba)
            status = await self.start_command(
                slot,
                bits.IoOpcode.DATASET_MANAGEMENT,
                blocks=len(ranges),
                length=len(ranges) * _RANGE.size,
                control=bits.DSM_DEALLOCATE,
            )
        finally:
            self.release(slot)
        if status:
            raise NvmeError(f"deallocate of {len(ranges)} ranges", status)

    def _parts(self, lba: int, count: int, block_size: int) -> list[tuple[int, int]]:
        step = self.transfer_bytes_max // block_size
        return [(a, min(step, lba + count - a)) for a in range(lba, lba + count, step)]

    async def _read_part(self, lba: int, count: int) -> bytes:
        length = count * self.identity.block_size
        slot = await self.acquire()
        try:
            status = await self.start_command(
                slot, bits.IoOpcode.READ, lba=lba, blocks=count, length=length
            )
            if status:
                raise NvmeError(f"read of {count} blocks at {lba}", status)
            return bytes(slot.buffer[:length])
        finally:
            self.release(slot)

    async def _write_part(self, lba: int, data: memoryview, count: int, *, fua: bool) -> None:
        slot = await self.acquire()
        try:
            slot.buffer[: len(data)] = data
            status = await self.start_command(
                slot,
                bits.IoOpcode.WRITE,
                lba=lba,
                blocks=count,
                length=len(data),
                control=bits.RW_FUA if fua else 0,
            )
        finally:
            self.release(slot)
        if status:
            raise NvmeError(f"write of {count} blocks at {lba}", status)

    async def _plain(self, what: str, opcode: int, *, lba: int = 0, blocks: int = 0) -> None:
        slot = await self.acquire()
        try:
            status = await self.start_command(slot, opcode, lba=lba, blocks=blocks)
        finally:
            self.release(slot)
        if status:
            raise NvmeError(what, status)

    # --- the device ---

    def _read(self, offset: int, size: int) -> int:
        return self._topology.memory_read(self._registers + offset, size)

    def _write(self, offset: int, size: int, value: int) -> None:
        self._topology.memory_write(self._registers + offset, size, value)

    def _ring(self, index: int, value: int) -> None:
        self._write(bits.REG_DOORBELLS + 4 * index, 4, value)

    async def _wait_status(self, mask: int, wanted: int) -> None:
        deadline = asyncio.get_running_loop().time() + _READY_SECONDS
        while True:
            status = self._read(bits.REG_CSTS, 4)
            if status & mask == wanted:
                return
            if status & bits.CSTS_FATAL or asyncio.get_running_loop().time() > deadline:
                raise UnavailableError(
                    f"the NVMe controller at {self._function.path} did not reach status "
                    f"{wanted:#x} (it says {status:#x})"
                )
            await asyncio.sleep(_READY_POLL_SECONDS)

    def _queue_pair(
        self, identifier: int, entries: int, on_complete: Callable[[int, int, int], None]
    ) -> QueuePair:
        return QueuePair(identifier, entries, self._memory, self._ring, on_complete)

    def _enable_interrupts(self) -> None:
        capability = self._function.capabilities[pci_bits.CAPABILITY_MSIX]
        path = self._function.path
        control = self._topology.config_read(path, capability + 2, 2)
        self._topology.config_write(path, capability + 2, 2, control | pci_bits.MSIX_ENABLE)

    def _route_vector(self, vector: int, handler: Callable[[], None]) -> None:
        capability = self._function.capabilities[pci_bits.CAPABILITY_MSIX]
        place = self._topology.config_read(self._function.path, capability + 4, 4)
        table = self._function.bars[place & 7].address + (place & ~7)
        entry = table + vector * pci_bits.MSIX_ENTRY_BYTES
        data = self._interrupts.allocate(handler)
        self._vectors.append(data)
        self._topology.memory_write(entry, 8, MESSAGE_ADDRESS)
        self._topology.memory_write(entry + 8, 4, data)
        self._topology.memory_write(entry + 12, 4, 0)

    async def _admin_command(self, what: str, opcode: int, **fields: int) -> int:
        assert self._admin is not None
        identifier = self._admin_next
        # Start-up sends one at a time, so identifiers never meet.
        self._admin_next = (identifier + 1) % 0x10000
        future: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        self._admin_waiting[identifier] = future
        self._admin.put(opcode, identifier, **fields)
        async with asyncio.timeout(_READY_SECONDS):
            status, result = await future
        if status:
            raise NvmeError(what, status)
        return result

    def _admin_complete(self, identifier: int, status: int, result: int) -> None:
        waiting = self._admin_waiting.pop(identifier, None)
        if waiting is not None and not waiting.done():
            waiting.set_result((status, result))

    async def _identify_page(self, kind: bits.IdentifyKind, namespace: int = 0) -> bytes:
        address = self._memory.allocate(bits.IDENTIFY_BYTES)
        await self._admin_command(
            f"identify {kind.name.lower()}",
            bits.AdminOpcode.IDENTIFY,
            namespace=namespace,
            prp1=address,
            cdw10=kind,
        )
        view = self._memory.view(address, bits.IDENTIFY_BYTES)
        assert view is not None
        page = bytes(view)
        self._memory.free(address, bits.IDENTIFY_BYTES)
        return page

    async def _identify(self) -> None:
        controller = await self._identify_page(bits.IdentifyKind.CONTROLLER)
        active = await self._identify_page(bits.IdentifyKind.ACTIVE_NAMESPACES)
        (first,) = struct.unpack_from("<I", active)
        if first != bits.NAMESPACE:
            raise UnavailableError(f"the controller at {self._function.path} has no namespace 1")
        namespace = await self._identify_page(bits.IdentifyKind.NAMESPACE, bits.NAMESPACE)
        if controller[77]:
            self.transfer_bytes_max = min(PAGE_BYTES << controller[77], TRANSFER_BYTES_MAX)
        (optional,) = struct.unpack_from("<H", controller, 520)
        (blocks,) = struct.unpack_from("<Q", namespace)
        self._identity = DiskIdentity(
            serial=controller[4:24].decode("ascii").rstrip(),
            model=controller[24:64].decode("ascii").rstrip(),
            namespace_uuid=UUID(bytes=namespace[104:120]),
            block_size=1 << namespace[130],
            block_count=blocks,
            read_only=bool(namespace[99] & 1),
            write_cache=bool(controller[525] & 1),
            can_deallocate=bool(optional & 1 << 2),
            can_write_zeroes=bool(optional & 1 << 3),
        )

    async def _make_io_queues(self) -> None:
        wanted = self._io_queues_wanted - 1
        granted = await self._admin_command(
            "set number of queues",
            bits.AdminOpcode.SET_FEATURES,
            cdw10=bits.Feature.NUMBER_OF_QUEUES,
            cdw11=wanted << 16 | wanted,
        )
        count = min(wanted, granted & 0xFFFF, granted >> 16) + 1
        entries = self._slots_wanted + 1
        for identifier in range(1, count + 1):
            queue = self._queue_pair(identifier, entries, self._io_complete)
            self._queues.append(queue)
            self._route_vector(identifier, queue.interrupt)
            await self._admin_command(
                f"create completion queue {identifier}",
                bits.AdminOpcode.CREATE_CQ,
                prp1=queue.completion_address,
                cdw10=(entries - 1) << 16 | identifier,
                cdw11=identifier << 16 | 0x3,
            )
            await self._admin_command(
                f"create submission queue {identifier}",
                bits.AdminOpcode.CREATE_SQ,
                prp1=queue.submission_address,
                cdw10=(entries - 1) << 16 | identifier,
                cdw11=identifier << 16 | 0x1,
            )

    def _make_slots(self) -> None:
        """As many slots as wanted, or as memory holds: one is enough to work."""
        for identifier in range(self._slots_wanted):
            queue = self._queues[identifier % len(self._queues)]
            try:
                slot = IoSlot(identifier, queue, self._memory, self.transfer_bytes_max)
            except LimitError:
                if not self._slots:
                    raise
                break
            self._slots.append(slot)
            self._free.put_nowait(slot)

    def _io_complete(self, identifier: int, status: int, result: int) -> None:
        del result
        self._finished(self._slots[identifier], status)

    def _finished(self, slot: IoSlot, status: int) -> None:
        slot.in_flight = False
        if slot.on_complete is not None:
            slot.on_complete(status)
        if slot.future is not None and not slot.future.done():
            slot.future.set_result(status)
        if slot.released:
            slot.released = False
            self._free.put_nowait(slot)
