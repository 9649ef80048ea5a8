"""I/O commands: what reaches the backend, what the guest gets back, and every refusal."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from vmmd.block.backend import BlockOp, BlockStatus, Completion
from vmmd.hw.nvme import bits
from vmmd.hw.nvme.bits import IoOpcode

PAGE = 4096
DATA = 0x100000


def test_write_gathers_pages_in_list_order(rig: Any) -> None:
    pages = [DATA + 0x5000, DATA + 0x3000, DATA + 0x4000, DATA + 0x9000]
    for number, address in enumerate(pages):
        rig.ram.bytes[address : address + PAGE] = bytes([number + 1]) * PAGE
    rig.ram.bytes[DATA + 0x800 : DATA + 0x818] = struct.pack("<QQQ", *pages[1:])
    identifier = rig.io(
        IoOpcode.WRITE, prp1=pages[0], prp2=DATA + 0x800, cdw10=10, cdw11=0, cdw12=3
    )
    [request] = rig.requests
    assert request[:1] + request[2:4] == (BlockOp.WRITE, 10, 4)
    assert request.data == b"".join(bytes([n]) * PAGE for n in (1, 2, 3, 4))
    assert rig.reap(1) == []
    rig.answer()
    assert rig.reap(1) == [(identifier, 0, 0)]
    assert rig.vectors[-1] == 1


def test_read_scatters_with_an_offset_and_a_chained_list(rig: Any) -> None:
    """A list that begins in the last slot of its page holds nothing but the chain pointer."""
    first = DATA + 0x10000
    listed = [DATA + 0x20000 + 0x2000 * n for n in range(4)]
    rig.ram.bytes[DATA + 0xFF8 : DATA + 0x1000] = struct.pack("<Q", DATA + 0x1000)
    rig.ram.bytes[DATA + 0x1000 : DATA + 0x1020] = struct.pack("<4Q", *listed)
    rig.io(IoOpcode.READ, prp1=first + 0x400, prp2=DATA + 0xFF8, cdw10=0, cdw12=3)
    data = bytes(range(256)) * 64
    rig.answer(data=data)
    assert [s for _, s, _ in rig.reap(1)] == [0]
    parts = [rig.ram.bytes[first + 0x400 : first + PAGE]]
    parts += [rig.ram.bytes[a : a + PAGE] for a in listed[:3]]
    parts.append(rig.ram.bytes[listed[3] : listed[3] + 0x400])
    assert b"".join(parts) == data
    assert rig.ram.bytes[listed[3] + 0x400 : listed[3] + PAGE] == bytes(PAGE - 0x400)


def test_one_and_two_page_transfers_need_no_list(rig: Any) -> None:
    rig.io(IoOpcode.READ, prp1=DATA, cdw12=0)
    rig.io(IoOpcode.READ, prp1=DATA + PAGE, prp2=DATA, cdw12=1)
    one, two = rig.requests
    rig.requests = []
    done = [
        Completion(two.token, BlockStatus.OK, b"b" * PAGE + b"a" * PAGE),
        Completion(one.token, BlockStatus.OK, b"c" * PAGE),
    ]
    rig.take(rig.core.complete(done[:1]))
    assert rig.ram.bytes[DATA : DATA + 2 * PAGE] == b"a" * PAGE + b"b" * PAGE
    rig.take(rig.core.complete(done[1:]))
    assert rig.ram.bytes[DATA : DATA + 1] == b"c"


def test_a_write_keeps_its_own_copy(rig: Any) -> None:
    rig.ram.bytes[DATA : DATA + PAGE] = b"1" * PAGE
    rig.io(IoOpcode.WRITE, prp1=DATA)
    rig.ram.bytes[DATA : DATA + PAGE] = b"2" * PAGE
    assert rig.requests[0].data == b"1" * PAGE


def test_fua_is_a_flush_before_the_completion(rig: Any) -> None:
    rig.io(IoOpcode.WRITE, prp1=DATA, cdw12=bits.RW_FUA)
    rig.answer()
    assert rig.reap(1) == []
    assert [r.op for r in rig.requests] == [BlockOp.FLUSH]
    rig.answer()
    assert [s for _, s, _ in rig.reap(1)] == [0]


def test_without_write_cache_every_write_flushes(rig: Any) -> None:
    feature = bits.Feature.VOLATILE_WRITE_CACHE
    assert rig.admin(bits.AdminOpcode.SET_FEATURES, cdw10=feature, cdw11=0) == (0, 0)
    rig.io(IoOpcode.WRITE, prp1=DATA)
    rig.answer()
    assert [r.op for r in rig.requests] == [BlockOp.FLUSH]


def test_a_failed_flush_fails_the_write(rig: Any) -> None:
    rig.io(IoOpcode.WRITE, prp1=DATA, cdw12=bits.RW_FUA)
    rig.answer()
    rig.answer(BlockStatus.FAILED)
    assert [s for _, s, _ in rig.reap(1)] == [bits.WRITE_FAULT]


def test_write_zeroes_goes_in_pieces_with_a_window(rig: Any) -> None:
    identifier = rig.io(IoOpcode.WRITE_ZEROES, cdw10=5, cdw12=0xFFFF | bits.RW_FUA)
    written, most = 0, 0
    while rig.requests and rig.requests[0].op is BlockOp.WRITE:
        most = max(most, len(rig.requests))
        for request in rig.requests:
            assert request.offset == 5 + written
            assert request.data is not None
            assert bytes(request.data) == bytes(request.length * PAGE)
            written += request.length
        rig.answer()
    assert written == 65536
    assert most == 4
    assert [r.op for r in rig.requests] == [BlockOp.FLUSH]
    rig.answer()
    assert rig.reap(1) == [(identifier, 0, 0)]


def test_deallocate_discards_each_range(rig: Any) -> None:
    ranges = struct.pack("<IIQIIQIIQ", 0, 8, 100, 0, 0, 5, 0, 1, 7)
    rig.ram.bytes[DATA : DATA + 48] = ranges
    rig.io(IoOpcode.DATASET_MANAGEMENT, prp1=DATA, cdw10=2, cdw11=bits.DSM_DEALLOCATE)
    asked = [(r.op, r.offset, r.length) for r in rig.requests]
    assert asked == [(BlockOp.DISCARD, 100, 8), (BlockOp.DISCARD, 7, 1)]
    rig.answer()
    assert [s for _, s, _ in rig.reap(1)] == [0]


def test_dataset_hints_do_nothing(rig: Any) -> None:
    assert rig.status_of(IoOpcode.DATASET_MANAGEMENT, prp1=DATA, cdw11=1) == 0


def test_flush_of_all_namespaces(rig: Any) -> None:
    rig.io(IoOpcode.FLUSH, namespace=0xFFFFFFFF)
    assert [r.op for r in rig.requests] == [BlockOp.FLUSH]


@pytest.mark.parametrize(
    ("opcode", "fields", "status"),
    [
        (IoOpcode.READ, {"namespace": 0}, bits.INVALID_NAMESPACE),
        (IoOpcode.WRITE, {"namespace": 2}, bits.INVALID_NAMESPACE),
        (IoOpcode.FLUSH, {"namespace": 3}, bits.INVALID_NAMESPACE),
        (IoOpcode.WRITE_ZEROES, {"namespace": 3}, bits.INVALID_NAMESPACE),
        (IoOpcode.READ, {"cdw10": 1 << 20}, bits.LBA_OUT_OF_RANGE),
        (IoOpcode.READ, {"cdw10": (1 << 20) - 1, "cdw12": 1, "prp2": 0}, bits.LBA_OUT_OF_RANGE),
        (IoOpcode.WRITE, {"cdw10": 0xFFFFFFFF, "cdw11": 0xFFFFFFFF}, bits.LBA_OUT_OF_RANGE),
        (IoOpcode.WRITE_ZEROES, {"cdw10": 1 << 20}, bits.LBA_OUT_OF_RANGE),
        (IoOpcode.READ, {"cdw12": 256}, bits.INVALID_FIELD),
        (IoOpcode.READ, {"cdw12": 0xFFFF}, bits.INVALID_FIELD),
        (IoOpcode.READ, {"prp1": DATA + 2}, bits.PRP_OFFSET_INVALID),
        (IoOpcode.READ, {"cdw12": 1, "prp2": DATA + 8}, bits.PRP_OFFSET_INVALID),
        (IoOpcode.READ, {"cdw12": 5, "prp2": DATA + 4}, bits.PRP_OFFSET_INVALID),
        (IoOpcode.READ, {"prp1": 1 << 50}, bits.DATA_TRANSFER_ERROR),
        (IoOpcode.READ, {"cdw12": 1, "prp2": 1 << 50}, bits.DATA_TRANSFER_ERROR),
        (IoOpcode.READ, {"cdw12": 5, "prp2": 1 << 50}, bits.DATA_TRANSFER_ERROR),
        (IoOpcode.READ, {"flags": 0x01}, bits.INVALID_FIELD),
        (IoOpcode.READ, {"flags": 0x80}, bits.INVALID_FIELD),
        (0x05, {}, bits.INVALID_OPCODE),
        (0xFF, {}, bits.INVALID_OPCODE),
        (IoOpcode.DATASET_MANAGEMENT, {"cdw11": 4, "prp1": 3}, bits.PRP_OFFSET_INVALID),
    ],
)
def test_bad_commands(rig: Any, opcode: int, fields: dict[str, int], status: int) -> None:
    assert rig.status_of(opcode, **{"prp1": DATA, **fields}) == status


def test_a_list_entry_with_an_offset_is_refused(rig: Any) -> None:
    rig.ram.bytes[DATA : DATA + 24] = struct.pack("<QQQ", DATA, DATA + 8, DATA)
    assert rig.status_of(IoOpcode.READ, prp1=DATA, prp2=DATA, cdw12=3) == bits.PRP_OFFSET_INVALID


def test_deallocate_out_of_range(rig: Any) -> None:
    rig.ram.bytes[DATA : DATA + 16] = struct.pack("<IIQ", 0, 2, (1 << 20) - 1)
    fields = {"prp1": DATA, "cdw11": bits.DSM_DEALLOCATE}
    assert rig.status_of(IoOpcode.DATASET_MANAGEMENT, **fields) == bits.LBA_OUT_OF_RANGE


def test_a_read_only_disk(make_rig: Any) -> None:
    rig = make_rig(read_only=True)
    rig.enable()
    rig.create_io()
    for opcode in (IoOpcode.WRITE, IoOpcode.WRITE_ZEROES):
        assert rig.status_of(opcode, prp1=DATA) == bits.READ_ONLY_RANGE
    rig.io(IoOpcode.READ, prp1=DATA)
    assert len(rig.requests) == 1


def test_a_backend_without_discard_does_not_offer_it(make_rig: Any) -> None:
    rig = make_rig(discard=False)
    rig.enable()
    rig.create_io()
    assert rig.status_of(IoOpcode.DATASET_MANAGEMENT, prp1=DATA, cdw11=4) == bits.INVALID_OPCODE


@pytest.mark.parametrize(
    ("status", "read", "write"),
    [
        (BlockStatus.FAILED, bits.UNRECOVERED_READ, bits.WRITE_FAULT),
        (BlockStatus.READ_ONLY, bits.READ_ONLY_RANGE, bits.READ_ONLY_RANGE),
        (BlockStatus.OUT_OF_RANGE, bits.LBA_OUT_OF_RANGE, bits.LBA_OUT_OF_RANGE),
        (BlockStatus.UNSUPPORTED, bits.INVALID_OPCODE, bits.INVALID_OPCODE),
        (BlockStatus.ABORTED, bits.INTERNAL_ERROR, bits.INTERNAL_ERROR),
    ],
)
def test_backend_failures(rig: Any, status: BlockStatus, read: int, write: int) -> None:
    for opcode, expected in ((IoOpcode.READ, read), (IoOpcode.WRITE, write)):
        rig.io(opcode, prp1=DATA)
        rig.answer(status)
        assert [s for _, s, _ in rig.reap(1)] == [expected]


def test_commands_wait_while_paused(rig: Any) -> None:
    rig.core.pause()
    rig.io(IoOpcode.FLUSH)
    assert rig.requests == []
    rig.take(rig.core.resume())
    assert len(rig.requests) == 1


def test_a_deleted_queue_completes_nowhere(rig: Any) -> None:
    rig.io(IoOpcode.READ, prp1=DATA)
    assert rig.admin(bits.AdminOpcode.DELETE_SQ, cdw10=1) == (0, 0)
    rig.answer(data=b"x" * PAGE)
    assert rig.reap(1) == []
    assert rig.ram.bytes[DATA : DATA + PAGE] == bytes(PAGE)
    assert rig.admin(bits.AdminOpcode.DELETE_CQ, cdw10=1) == (0, 0)


def test_completions_wrap_with_the_phase(rig: Any) -> None:
    for _ in range(100):
        identifier = rig.io(IoOpcode.FLUSH)
        rig.answer()
        assert rig.reap(1) == [(identifier, 0, 0)]


def test_a_full_completion_queue_corks_the_submission_queue(make_rig: Any) -> None:
    rig = make_rig()
    rig.enable()
    rig.create_io(size=4)
    for _ in range(3):
        rig.queue(1, IoOpcode.FLUSH, namespace=1)
    rig.ring(1)
    rig.answer()
    for _ in range(2):
        rig.queue(1, IoOpcode.FLUSH, namespace=1)
    rig.ring(1)
    assert rig.requests == []
    assert len(rig.reap(1)) == 3
    assert len(rig.requests) == 2
