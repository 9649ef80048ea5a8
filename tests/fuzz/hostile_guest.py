"""A guest out of its mind at an NVMe controller: any bytes are a run of accesses to everything it
has: configuration space, registers, doorbells, memory with queues, lists and shadow doorbells in
it. The disk behind answers late, wrongly, or not at all, and memory is mapped anew meanwhile.

What must hold of any run: nothing raises; the backend is only asked what it can do; a controller
that was reset works; an honest command is then answered once, and rightly.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from uuid import UUID

from vmmd.block.backend import BackendInfo, BlockOp, BlockStatus, Completion, Done, Request
from vmmd.hw.nvme import bits
from vmmd.hw.nvme.commands import ENTRY
from vmmd.hw.nvme.controller import InterruptKind, NvmeController
from vmmd.hw.nvme.doorbells import Beside

PAGE = 4096
PAGES = 64
BLOCK = 512
BLOCKS = 1 << 16
# Where an honest driver has its things; a hostile one finds them there.
ASQ, ACQ, SQ, CQ, SHADOW, EVENTS, DATA = (PAGE * n for n in range(1, 8))
ENTRIES = 8
LONGEST_RUN = 400
COMMAND_MEMORY_AND_MASTER = 6


class Ram:
    """Guest memory with holes: pages that are mapped or not."""

    def __init__(self) -> None:
        self.bytes = bytearray(PAGE * PAGES)
        self.there = [True] * PAGES

    def view(self, address: int, length: int) -> memoryview | None:
        """As GuestMemory.view."""
        end = address + length
        if end > len(self.bytes):
            return None
        if not all(self.there[address // PAGE : -(-end // PAGE)]):
            return None
        return memoryview(self.bytes)[address:end]


class Disk:
    """Keeps what it is asked until it is told to answer. Never asked for what cannot be."""

    def __init__(self) -> None:
        self.info = BackendInfo(BLOCK, BLOCKS, read_only=False, supports_discard=True)
        self.waiting: list[tuple[Request, Done]] = []

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        """As Backend.submit."""
        for request in batch:
            if request.op is not BlockOp.FLUSH:
                assert request.offset >= 0
                assert request.length > 0
                assert request.offset + request.length <= BLOCKS
            if request.op is BlockOp.WRITE:
                assert request.data is not None
                assert len(request.data) == request.length * BLOCK
        self.waiting += [(request, done) for request in batch]

    def answer(self, count: int, status: BlockStatus) -> None:
        """The oldest ones."""
        for request, done in self._first(count):
            reading = request.op is BlockOp.READ and status is BlockStatus.OK
            data = bytes(request.length * BLOCK) if reading else None
            done([Completion(request.token, status, data)])

    def _first(self, count: int) -> list[tuple[Request, Done]]:
        first, self.waiting = self.waiting[:count], self.waiting[count:]
        return first


class Bytes:
    """Reads numbers off the input; zeros behind its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> bool:
        """Whether there is more."""
        return self._at < len(self._data)

    def number(self, size: int) -> int:
        """`size` bytes, little-endian."""
        part = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(part, "little")


class HostileGuest:
    """Call it with bytes; AssertionError, or whatever the controller raised, when one is wrong."""

    def __init__(self) -> None:
        self._steps: tuple[Callable[[Bytes], None], ...] = (
            self._write_register,
            self._read_register,
            self._submit_admin,
            self._submit_io,
            self._ring,
            self._poke,
            self._write_config,
            self._read_config,
            self._answer,
            self._map,
            self._pause_or_resume,
            self._begin_honestly,
            self._leave_doorbell,
            self._access_table,
        )

    def __call__(self, data: bytes) -> None:
        """One run, on a controller of its own."""
        source = Bytes(data)
        self._ram, self._disk = Ram(), Disk()
        self._later: list[Callable[[], None]] = []
        self._tails: dict[int, int] = {}
        kind = InterruptKind.MSI if source.number(1) & 1 else InterruptKind.MSIX
        self._controller = NvmeController(
            self._disk,
            serial="one",
            namespace_uuid=UUID(int=1),
            interrupts=kind,
            beside=Beside(barrier=lambda: None, later=self._later.append),
        )
        self._sent = 0
        self._controller.attach(self._ram, self._took_message)
        self._begin_honestly(source)
        for _step in range(LONGEST_RUN):
            if not source.left:
                break
            self._steps[source.number(1) % len(self._steps)](source)
            later, self._later = self._later[:4], []
            for call in later:
                call()
        self._prove_it_works()

    def _took_message(self, _address: int, _data: int) -> None:
        self._sent += 1

    # --- what a guest does

    def _write_register(self, source: Bytes) -> None:
        where, size = source.number(1), (1, 2, 4, 8)[source.number(1) % 4]
        known = (bits.REG_CC, bits.REG_AQA, bits.REG_ASQ, bits.REG_ACQ, bits.REG_CSTS, 0x1000)
        offset = known[where] if where < len(known) else source.number(2) & 0x3FFF
        self._controller.bar_write(0, offset, size, source.number(size))

    def _read_register(self, source: Bytes) -> None:
        offset, size = source.number(2), (1, 2, 4, 8)[source.number(1) % 4]
        assert 0 <= self._controller.bar_read(0, offset, size) < 1 << 8 * size

    def _submit_admin(self, source: Bytes) -> None:
        self._submit(0, ASQ, source)

    def _submit_io(self, source: Bytes) -> None:
        self._submit(1, SQ, source)

    def _submit(self, queue: int, base: int, source: Bytes) -> None:
        """Fields of a few bytes each, so that most are near something that is there."""
        tail = self._tails.get(queue, 0)
        address = source.number(1) * PAGE // 4 if source.number(1) & 1 else source.number(8)
        second = source.number(1) * PAGE // 8 if source.number(1) & 1 else source.number(8)
        ENTRY.pack_into(
            self._ram.bytes, base + tail * 64, source.number(1), source.number(1) & 0x43,
            source.number(2), source.number(1) & 3, 0, 0, address, second, source.number(4),
            source.number(4), source.number(2), source.number(1), 0, 0,
        )  # fmt: skip
        self._tails[queue] = tail = (tail + 1) % ENTRIES
        struct.pack_into("<I", self._ram.bytes, SHADOW + 8 * queue, tail)
        self._controller.bar_write(0, 0x1000 + 8 * queue, 4, tail)

    def _ring(self, source: Bytes) -> None:
        self._controller.bar_write(0, 0x1000 + 4 * (source.number(1) & 0x1F), 4, source.number(2))

    def _poke(self, source: Bytes) -> None:
        place = source.number(3) % (len(self._ram.bytes) - 8)
        self._ram.bytes[place : place + 8] = source.number(8).to_bytes(8, "little")

    def _write_config(self, source: Bytes) -> None:
        offset, size = source.number(1), (1, 2, 4)[source.number(1) % 3]
        self._controller.config_write(offset, size, source.number(size))

    def _read_config(self, source: Bytes) -> None:
        offset, size = source.number(2), (1, 2, 4)[source.number(1) % 3]
        assert 0 <= self._controller.config_read(offset, size) < 1 << 8 * size

    def _access_table(self, source: Bytes) -> None:
        offset, size = source.number(2) & 0x1FFF, (1, 2, 4, 8)[source.number(1) % 4]
        self._controller.bar_write(4, offset, size, source.number(size))
        assert 0 <= self._controller.bar_read(4, offset, size) < 1 << 8 * size

    def _leave_doorbell(self, source: Bytes) -> None:
        """In the pages for shadow doorbells, which may be in use or not."""
        place = SHADOW + 4 * (source.number(1) & 0x1F)
        struct.pack_into("<I", self._ram.bytes, place, source.number(2))

    def _begin_honestly(self, _source: Bytes) -> None:
        """As a driver does it: reset, admin queue, one queue pair, shadow doorbells."""
        write = self._controller.bar_write
        self._tails = {}
        write(0, bits.REG_CC, 4, 0)
        self._ram.bytes[ASQ:EVENTS] = bytes(EVENTS - ASQ)
        write(0, bits.REG_AQA, 4, (ENTRIES - 1) << 16 | ENTRIES - 1)
        write(0, bits.REG_ASQ, 8, ASQ)
        write(0, bits.REG_ACQ, 8, ACQ)
        write(0, bits.REG_CC, 4, 0x460001)
        shape = (ENTRIES - 1) << 16 | 1
        for number, (opcode, first, second, cdw10, cdw11) in enumerate(
            (
                (bits.AdminOpcode.CREATE_CQ, CQ, 0, shape, 3),
                (bits.AdminOpcode.CREATE_SQ, SQ, 0, shape, 1 << 16 | 1),
                (bits.AdminOpcode.DOORBELL_BUFFER_CONFIG, SHADOW, EVENTS, 0, 0),
            )
        ):
            ENTRY.pack_into(
                self._ram.bytes, ASQ + 64 * number, opcode, 0, number, 0, 0, 0, first, second,
                cdw10, cdw11, 0, 0, 0, 0,
            )  # fmt: skip
        self._tails[0] = 3
        write(0, 0x1000, 4, 3)
        write(0, 0x1004, 4, 3)

    # --- what happens beside it

    def _answer(self, source: Bytes) -> None:
        statuses = (BlockStatus.OK, BlockStatus.OK, BlockStatus.OK, *BlockStatus)
        self._disk.answer(source.number(1) & 0xF, statuses[source.number(1) % len(statuses)])

    def _map(self, source: Bytes) -> None:
        page, count = source.number(1) % PAGES, source.number(1) & 7
        self._ram.there[page : page + count] = [bool(source.number(1) & 1)] * count
        self._ram.there = self._ram.there[:PAGES]
        self._controller.memory_changed()

    def _pause_or_resume(self, source: Bytes) -> None:
        what = source.number(1) % 3
        if what == 0:
            self._controller.pause(lambda: None)
        elif what == 1:
            self._controller.resume()
        else:
            self._controller.reset()
            self._controller.resume()

    # --- the proof

    def _prove_it_works(self) -> None:
        """After a reset, a flush of an honest driver is answered once."""
        self._ram.there = [True] * PAGES
        self._controller.memory_changed()
        self._controller.reset()
        self._controller.resume()
        while self._disk.waiting:
            self._disk.answer(len(self._disk.waiting), BlockStatus.FAILED)
        assert self._controller.in_flight == 0
        self._begin_honestly(Bytes(b""))
        ENTRY.pack_into(self._ram.bytes, SQ, bits.IoOpcode.FLUSH, 0, 0xABCD, 1, *[0] * 10)
        struct.pack_into("<I", self._ram.bytes, SHADOW + 8, 1)
        self._controller.bar_write(0, 0x1008, 4, 1)
        assert [request.op for request, _done in self._disk.waiting] == [BlockOp.FLUSH]
        self._disk.answer(1, BlockStatus.OK)
        raw = struct.unpack_from("<IIHHHH", self._ram.bytes, CQ)
        assert raw[2:] == (1, 1, 0xABCD, 1), raw
        assert not any(self._ram.bytes[CQ + 16 : CQ + 16 * ENTRIES])


def seeds() -> list[bytes]:
    """Runs that get somewhere: commands of each kind, with answers and changes of memory."""
    found = []
    for opcode in (*bits.IoOpcode, 0x7F):
        fields = bytes((1, 28, 0, 1, 36, 0, opcode, 0, 1, 0, 1)) + struct.pack("<IIHB", 8, 4, 15, 0)
        found.append(bytes((0, 3)) + fields[1:] + bytes((8, 4, 0)))
    for opcode in (*bits.AdminOpcode, 0x80):
        fields = bytes((28, 1, 36, 1, opcode, 0, 1, 0, 1)) + struct.pack("<IIHB", 1, 1, 0, 0)
        found.append(bytes((1, 2)) + fields + bytes((4, 1, 1, 0)))
    found.append(bytes((0, 9, 1, 3, 0, 3)) + bytes(20) + bytes((8, 15, 0, 9, 1, 3, 1, 8, 15, 0)))
    found.append(bytes((0, 10, 0, 3)) + bytes(20) + bytes((10, 1, 10, 2, 11, 12, 2, 5, 0)))
    found.append(b"".join(found))
    return found
