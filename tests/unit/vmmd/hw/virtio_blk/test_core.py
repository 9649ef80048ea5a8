"""A driver's requests against a disk in memory, and what the journal is told."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from vmmd.block.backend import BackendInfo, BlockOp, BlockStatus, Completion, Request
from vmmd.block.memory import MemoryBackend
from vmmd.hw.virtio.ring import Chain
from vmmd.hw.virtio_blk import bits, identify
from vmmd.hw.virtio_blk.bits import RequestStatus, RequestType
from vmmd.hw.virtio_blk.core import Change, Effects, VirtioBlkCore

BLOCK = 4096
SECTORS = BLOCK // 512
INFO = BackendInfo(BLOCK, 4096, read_only=False, supports_discard=True)
OK, IO_ERROR, UNSUPPORTED = RequestStatus.OK, RequestStatus.IO_ERROR, RequestStatus.UNSUPPORTED


class Disk:
    """A core with a backend that does what it is sent when `work` is called."""

    def __init__(self, info: BackendInfo = INFO, journal=None) -> None:
        self.backend = MemoryBackend(info.block_size, info.block_count, read_only=info.read_only)
        self.core = VirtioBlkCore(info, "serial-1", journal)
        self.sent: list[Request] = []
        self.done: dict[int, tuple[int, int]] = {}
        self._heads = 0

    def take(
        self, kind: int, sector: int = 0, out: bytes = b"", into: int = 0, ring: int = 0
    ) -> Chain:
        """Offers a request with `out` bytes of data and room for `into`."""
        header = struct.pack("<IIQ", kind, 0, sector)
        chain = Chain(self._heads, [memoryview(header)])
        self._heads += 1
        if out:
            chain.readable.append(memoryview(out))
        if into:
            chain.writable.append(memoryview(bytearray(into)))
        chain.writable.append(memoryview(bytearray(b"\xff")))
        self._note(self.core.take(ring, [chain]))
        return chain

    def _note(self, effects: Effects) -> None:
        self.sent += effects.requests
        for ring, head, written in effects.done:
            assert head not in self.done, "given back twice"
            self.done[head] = (ring, written)

    def work(self, count: int = 1 << 30, status: BlockStatus | None = None) -> None:
        """The backend answers the first `count` requests, and what follows from them."""
        while self.sent and count:
            request = self.sent.pop(0)
            count -= 1
            if status is None:
                self.backend.submit([request], lambda c: self._note(self.core.complete(c)))
            else:
                self._note(self.core.complete([Completion(request.token, status)]))

    def status(self, chain: Chain) -> RequestStatus:
        assert chain.head in self.done
        return RequestStatus(chain.writable[-1][-1])


class Held:
    """A journal of so many bytes that writes down what it was told."""

    def __init__(self, size: int = 1 << 30) -> None:
        self.size = size
        self.tail = self.head = 0
        self.changes: list[tuple[int, Change]] = []

    def hold(self, changes: Sequence[Change]):
        length = sum(64 + sum(map(len, change.data)) for change in changes)
        if self.tail + length - self.head > self.size:
            return None
        data = b""
        for change in changes:
            self.changes.append((self.tail, change))
            data = b"".join(bytes(part) for part in change.data)
            self.tail += 64 + len(data)
        return data

    def mark(self) -> int:
        return self.tail

    def let_go(self, mark: int) -> None:
        assert mark >= self.head
        self.head = mark

    def half_full(self) -> bool:
        return 2 * (self.tail - self.head) >= self.size


def test_what_is_written_is_read() -> None:
    disk = Disk()
    data = bytes(range(256)) * 32
    wrote = disk.take(RequestType.OUT, 3 * SECTORS, data)
    disk.work()
    assert (disk.status(wrote), disk.done[wrote.head]) == (OK, (0, 1))
    read = disk.take(RequestType.IN, 3 * SECTORS, into=len(data))
    disk.work()
    assert disk.status(read) == OK
    assert bytes(read.writable[0]) == data
    assert disk.done[read.head] == (0, len(data) + 1)


def test_buffers_may_be_cut_anywhere() -> None:
    disk = Disk()
    header = struct.pack("<IIQ", RequestType.OUT, 0, 0)
    data = bytes(range(256)) * 16
    whole = memoryview(header + data)
    chain = Chain(0, [whole[:5], whole[5:700], whole[700:]], [memoryview(bytearray(1))])
    disk._note(disk.core.take(0, [chain]))
    disk.work()
    assert disk.done == {0: (0, 1)}
    assert disk.backend.content[:BLOCK] == data
    # The state in the last byte of a buffer that is data otherwise.
    into = bytearray(BLOCK + 1)
    header = struct.pack("<IIQ", RequestType.IN, 0, 0)
    reading = Chain(1, [memoryview(header)], [memoryview(into)[:100], memoryview(into)[100:]])
    disk._note(disk.core.take(0, [reading]))
    disk.work()
    assert bytes(into) == data + b"\0"


def test_large_transfers_go_in_pieces_and_end_once() -> None:
    disk = Disk()
    data = bytes(range(256)) * (7 << 12)
    wrote = disk.take(RequestType.OUT, 0, data)
    assert len(disk.sent) == 4
    assert {len(request.data) for request in disk.sent} == {1 << 20}
    disk.work()
    assert disk.status(wrote) == OK
    read = disk.take(RequestType.IN, 0, into=len(data))
    disk.work()
    assert bytes(read.writable[0]) == data


def test_ranges_are_discarded_and_zeroed() -> None:
    disk = Disk()
    disk.take(RequestType.OUT, 0, b"x" * (8 * BLOCK))
    disk.work()
    ranges = struct.pack("<QII", 0, SECTORS, 0) + struct.pack("<QII", 4 * SECTORS, 2 * SECTORS, 0)
    discard = disk.take(RequestType.DISCARD, 0, ranges)
    assert {request.op for request in disk.sent} == {BlockOp.DISCARD}
    zero = disk.take(RequestType.WRITE_ZEROES, 0, struct.pack("<QII", 2 * SECTORS, SECTORS, 1))
    nothing = disk.take(RequestType.DISCARD, 0, struct.pack("<QII", 0, 0, 0))
    disk.work()
    assert [disk.status(one) for one in (discard, zero, nothing)] == [OK, OK, OK]
    left = [bool(disk.backend.content[block * BLOCK]) for block in range(8)]
    assert left == [False, True, False, True, False, False, True, True]


def test_it_says_who_it_is() -> None:
    disk = Disk()
    chain = disk.take(RequestType.GET_ID, into=20)
    assert disk.status(chain) == OK
    assert bytes(chain.writable[0]) == b"serial-1".ljust(20, b"\0")
    assert len(identify.config(INFO, 4)) == 60
    assert struct.unpack_from("<Q", identify.config(INFO, 4)) == (INFO.total_bytes // 512,)


@pytest.mark.parametrize(
    ("kind", "sector", "out", "into", "expected"),
    [
        (RequestType.IN, 1, b"", BLOCK, IO_ERROR),
        (RequestType.IN, 0, b"", BLOCK - 1, IO_ERROR),
        (RequestType.IN, 0, b"", 0, IO_ERROR),
        (RequestType.IN, 4096 * SECTORS, b"", BLOCK, IO_ERROR),
        (RequestType.IN, (1 << 64) - 1, b"", BLOCK, IO_ERROR),
        (RequestType.OUT, 4095 * SECTORS, bytes(2 * BLOCK), 0, IO_ERROR),
        (RequestType.OUT, 0, b"", 0, IO_ERROR),
        (RequestType.DISCARD, 0, bytes(15), 0, IO_ERROR),
        (RequestType.DISCARD, 0, b"", 0, UNSUPPORTED),
        (RequestType.DISCARD, 0, struct.pack("<QII", 0, SECTORS, 1), 0, UNSUPPORTED),
        (RequestType.DISCARD, 0, struct.pack("<QII", 1, SECTORS, 0), 0, IO_ERROR),
        (RequestType.WRITE_ZEROES, 0, struct.pack("<QII", 0, SECTORS, 2), 0, UNSUPPORTED),
        (RequestType.WRITE_ZEROES, 0, struct.pack("<QII", 0, 4097 * SECTORS, 0), 0, IO_ERROR),
        (RequestType.DISCARD, 0, bytes(16) * 65, 0, UNSUPPORTED),
        (2, 0, b"", 0, UNSUPPORTED),
        (0xFFFFFFFF, 0, b"", 0, UNSUPPORTED),
    ],
)
def test_bad_requests_are_answered_and_nothing_happens(kind, sector, out, into, expected) -> None:
    disk = Disk()
    chain = disk.take(kind, sector, out, into)
    assert not disk.sent
    assert disk.status(chain) == expected


def test_a_transfer_beyond_the_limit_is_refused() -> None:
    disk = Disk(BackendInfo(BLOCK, 5000, read_only=True, supports_discard=False))
    chain = disk.take(RequestType.IN, 0, into=identify.TRANSFER_BYTES_MAX + BLOCK)
    assert disk.status(chain) == IO_ERROR


def test_a_chain_without_room_for_a_state_or_without_a_header_comes_back() -> None:
    disk = Disk()
    none = Chain(0, [memoryview(bytes(16))], [])
    empty = Chain(1, [], [memoryview(bytearray(1))])
    short = Chain(2, [memoryview(bytes(15))], [memoryview(bytearray(1))])
    disk._note(disk.core.take(0, [none, empty, short]))
    assert disk.done == {0: (0, 0), 1: (0, 1), 2: (0, 1)}
    assert [one.writable[-1][0] for one in (empty, short)] == [IO_ERROR, IO_ERROR]


def test_a_read_only_disk_is_not_changed() -> None:
    disk = Disk(BackendInfo(BLOCK, 64, read_only=True, supports_discard=False))
    assert identify.features(disk.backend.info, 1) & bits.FEATURE_READ_ONLY
    for kind, out in ((RequestType.OUT, bytes(BLOCK)), (RequestType.DISCARD, bytes(16))):
        assert disk.status(disk.take(kind, 0, out)) == IO_ERROR
    assert not disk.sent


def test_failures_reach_the_driver_and_end_the_request() -> None:
    disk = Disk()
    read = disk.take(RequestType.IN, 0, into=8 << 20)
    disk.work(1, BlockStatus.FAILED)
    assert read.head not in disk.done, "three more are on their way"
    disk.work(3)
    assert disk.status(read) == IO_ERROR
    assert not disk.sent
    flush = disk.take(RequestType.FLUSH)
    disk.work(1, BlockStatus.UNSUPPORTED)
    assert disk.status(flush) == UNSUPPORTED


# ---- the journal


def test_changes_are_held_before_they_are_sent_and_let_go_by_a_flush() -> None:
    held = Held()
    disk = Disk(journal=held)
    disk.take(RequestType.OUT, 0, b"a" * BLOCK)
    disk.take(RequestType.DISCARD, 0, struct.pack("<QII", SECTORS, SECTORS, 0))
    disk.take(RequestType.WRITE_ZEROES, 0, struct.pack("<QII", 2 * SECTORS, SECTORS, 0))
    kept = [(change.op, change.first, change.blocks) for _place, change in held.changes]
    assert kept == [(BlockOp.WRITE, 0, 1), (BlockOp.DISCARD, 1, 1), (BlockOp.WRITE, 2, 1)]
    disk.work()
    assert held.head == 0, "acknowledged, not durable"
    flush = disk.take(RequestType.FLUSH)
    mark = held.tail
    disk.take(RequestType.OUT, 0, b"b" * BLOCK)
    disk.work()
    assert disk.status(flush) == OK
    assert held.head == mark < held.tail


def test_a_flush_lets_nothing_go_of_a_request_that_is_not_all_sent() -> None:
    held = Held()
    disk = Disk(journal=held)
    disk.take(RequestType.OUT, 0, b"a" * BLOCK)
    before = held.tail
    disk.take(RequestType.OUT, 0, bytes(6 << 20))
    disk.take(RequestType.FLUSH)
    disk.take(RequestType.OUT, 0, b"c" * BLOCK)
    flush = disk.sent.pop(5)
    assert flush.op is BlockOp.FLUSH
    disk._note(disk.core.complete([Completion(flush.token, BlockStatus.OK)]))
    assert held.head == before


def test_a_flush_that_fails_lets_nothing_go() -> None:
    held = Held()
    disk = Disk(journal=held)
    disk.take(RequestType.OUT, 0, b"a" * BLOCK)
    disk.work()
    disk.take(RequestType.FLUSH)
    disk.work(1, BlockStatus.FAILED)
    assert held.head == 0


def test_a_full_journal_makes_requests_wait_in_order_and_flushes() -> None:
    held = Held(size=4 * (BLOCK + 64))
    disk = Disk(journal=held)
    chains = [disk.take(RequestType.OUT, 0, bytes([number]) * BLOCK) for number in range(6)]
    read = disk.take(RequestType.IN, 0, into=BLOCK)
    assert disk.core.waiting == 3, "the read waits behind the writes that wait"
    assert [request.op for request in disk.sent].count(BlockOp.FLUSH) == 1
    disk.work()
    assert [disk.status(chain) for chain in chains] == [OK] * 6
    assert bytes(read.writable[0]) == bytes([5]) * BLOCK
    assert disk.core.waiting == 0


def test_when_there_can_be_no_room_changes_fail_and_reads_go_on() -> None:
    held = Held(size=2 * (BLOCK + 64))
    disk = Disk(journal=held)
    first = [disk.take(RequestType.OUT, 0, bytes(BLOCK)) for _ in range(2)]
    stuck = disk.take(RequestType.OUT, 0, bytes(BLOCK))
    read = disk.take(RequestType.IN, 0, into=BLOCK)
    flush = next(request for request in disk.sent if request.op is BlockOp.FLUSH)
    disk.sent.remove(flush)
    disk.work()
    disk._note(disk.core.complete([Completion(flush.token, BlockStatus.FAILED)]))
    assert not [request for request in disk.sent if request.op is BlockOp.FLUSH], "no endless loop"
    disk.work()
    assert [disk.status(one) for one in (*first, stuck, read)] == [OK, OK, IO_ERROR, OK]


def test_what_was_let_go_of_is_never_given_back_and_touches_nothing() -> None:
    held = Held()
    disk = Disk(journal=held)
    read = disk.take(RequestType.IN, 0, into=BLOCK)
    large = disk.take(RequestType.OUT, 0, bytes(8 << 20), ring=0)
    other = disk.take(RequestType.OUT, 0, b"x" * BLOCK, ring=1)
    disk.core.forget(0)
    disk.work()
    assert set(disk.done) == {other.head}
    assert read.writable[-1][0] == large.writable[-1][0] == 0xFF
    # What was at the backend is not counted for ever.
    assert not disk.core._bytes
    assert not disk.core._unsent
