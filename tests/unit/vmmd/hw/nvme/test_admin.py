"""Admin commands: what they return and every way they refuse."""

from __future__ import annotations

import struct
from typing import Any
from uuid import UUID

import pytest

from vmmd.hw.nvme import bits
from vmmd.hw.nvme.bits import AdminOpcode, Feature, IdentifyKind

PAGE = 0x100000
# Not offered: a disk is not lost by a word of a guest.
FORMAT_NVM = 0x80


@pytest.fixture
def bare(make_rig: Any) -> Any:
    made = make_rig()
    made.enable()
    return made


def page(rig: Any, length: int = 4096) -> bytes:
    return bytes(rig.ram.bytes[PAGE : PAGE + length])


def test_identify_controller(bare: Any) -> None:
    assert bare.admin(AdminOpcode.IDENTIFY, prp1=PAGE, cdw10=IdentifyKind.CONTROLLER) == (0, 0)
    data = page(bare)
    assert data[4:24] == b"S1".ljust(20)
    assert data[77] == 8
    assert (data[512], data[513]) == (0x66, 0x44)
    assert struct.unpack_from("<H", data, 520) == (0b11100,)
    assert struct.unpack_from("<HI", data, 78) == (1, 0x00010400)
    assert (data[261], data[262], data[525]) == (0b111, 63, 0b111)
    assert data[768:].startswith(b"nqn.2014-08.org.nvmexpress:uuid:")


def test_identify_namespace_list_and_descriptors(bare: Any) -> None:
    identify = AdminOpcode.IDENTIFY
    assert bare.admin(identify, prp1=PAGE, cdw10=0, namespace=1) == (0, 0)
    data = page(bare)
    assert struct.unpack_from("<QQQ", data) == (1 << 20, 1 << 20, 1 << 20)
    assert data[130] == 12
    assert data[99] == 0
    assert bare.admin(identify, prp1=PAGE, cdw10=2) == (0, 0)
    assert struct.unpack_from("<II", page(bare)) == (1, 0)
    assert bare.admin(identify, prp1=PAGE, cdw10=2, namespace=1) == (0, 0)
    assert struct.unpack_from("<I", page(bare)) == (0,)
    assert bare.admin(identify, prp1=PAGE, cdw10=3, namespace=1) == (0, 0)
    uuid = UUID(int=7).bytes
    assert page(bare, 41) == b"\x02\x10\0\0" + uuid + b"\x03\x10\0\0" + uuid + b"\0"
    assert bare.admin(identify, prp1=PAGE, cdw10=0x10) == (0, 0)
    assert struct.unpack_from("<II", page(bare)) == (1, 0)
    assert bare.admin(identify, prp1=PAGE, cdw10=0x11, namespace=1) == (0, 0)
    assert page(bare) == data


def test_identify_lists_of_controllers(bare: Any) -> None:
    """One, whose number is in its own page."""
    identify = AdminOpcode.IDENTIFY
    for kind, namespace in ((0x12, 1), (0x13, 0)):
        assert bare.admin(identify, prp1=PAGE, cdw10=kind, namespace=namespace) == (0, 0)
        assert struct.unpack_from("<HHH", page(bare)) == (1, 1, 0)
        assert bare.admin(identify, prp1=PAGE, cdw10=2 << 16 | kind, namespace=namespace) == (0, 0)
        assert struct.unpack_from("<H", page(bare)) == (0,)


def test_identify_over_two_unaligned_pages(bare: Any) -> None:
    other = 0x200000
    fields = {"prp1": PAGE + 0x800, "prp2": other, "cdw10": 1}
    assert bare.admin(AdminOpcode.IDENTIFY, **fields) == (0, 0)
    assert bare.ram.bytes[PAGE + 0x804 : PAGE + 0x806] == b"S1"
    assert bare.ram.bytes[other : other + 1] == b"\0"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"cdw10": 0, "namespace": 2}, bits.INVALID_NAMESPACE),
        ({"cdw10": 0, "namespace": 0}, bits.INVALID_NAMESPACE),
        ({"cdw10": 2, "namespace": 0xFFFFFFFF}, bits.INVALID_NAMESPACE),
        ({"cdw10": 3, "namespace": 9}, bits.INVALID_NAMESPACE),
        ({"cdw10": 0x11, "namespace": 2}, bits.INVALID_NAMESPACE),
        ({"cdw10": 0x12, "namespace": 0}, bits.INVALID_NAMESPACE),
        ({"cdw10": 0x06}, bits.INVALID_FIELD),
        ({"cdw10": 0x1F}, bits.INVALID_FIELD),
        ({"cdw10": 1, "prp1": PAGE + 1}, bits.PRP_OFFSET_INVALID),
        ({"cdw10": 1, "prp1": 1 << 40}, bits.DATA_TRANSFER_ERROR),
        ({"cdw10": 1, "flags": 0x01}, bits.INVALID_FIELD),
        ({"cdw10": 1, "flags": 0x40}, bits.INVALID_FIELD),
    ],
)
def test_bad_identify(bare: Any, fields: dict[str, int], status: int) -> None:
    assert bare.admin(AdminOpcode.IDENTIFY, **{"prp1": PAGE, **fields}) == (status, 0)


@pytest.mark.parametrize(
    ("cdw10", "cdw11", "prp1", "status"),
    [
        (15 << 16 | 0, 3, 0x8000, bits.QUEUE_ID_INVALID),
        (15 << 16 | 16, 3, 0x8000, bits.QUEUE_ID_INVALID),
        (0 << 16 | 1, 3, 0x8000, bits.QUEUE_SIZE_INVALID),
        (4096 << 16 | 1, 3, 0x8000, bits.QUEUE_SIZE_INVALID),
        (15 << 16 | 1, 2, 0x8000, bits.INVALID_FIELD),
        (15 << 16 | 1, 3, 0x8004, bits.PRP_OFFSET_INVALID),
        (15 << 16 | 1, 3, 1 << 40, bits.INVALID_FIELD),
        (15 << 16 | 1, 16 << 16 | 3, 0x8000, bits.INTERRUPT_VECTOR_INVALID),
    ],
)
def test_bad_completion_queues(bare: Any, cdw10: int, cdw11: int, prp1: int, status: int) -> None:
    fields = {"cdw10": cdw10, "cdw11": cdw11, "prp1": prp1}
    assert bare.admin(AdminOpcode.CREATE_CQ, **fields) == (status, 0)


def test_bad_submission_queues(rig: Any) -> None:
    def create(cdw10: int, cdw11: int) -> int:
        return int(rig.admin(AdminOpcode.CREATE_SQ, prp1=0x9000, cdw10=cdw10, cdw11=cdw11)[0])

    assert create(15 << 16 | 1, 1 << 16 | 1) == bits.QUEUE_ID_INVALID
    assert create(15 << 16 | 2, 0 << 16 | 1) == bits.COMPLETION_QUEUE_INVALID
    assert create(15 << 16 | 2, 7 << 16 | 1) == bits.COMPLETION_QUEUE_INVALID
    assert create(0 << 16 | 2, 1 << 16 | 1) == bits.QUEUE_SIZE_INVALID
    assert create(15 << 16 | 2, 1 << 16 | 1) == 0


def test_fifteen_queue_pairs_can_be_made(bare: Any) -> None:
    for n in range(1, 16):
        fields = {"prp1": 0x10000 * n, "cdw10": 15 << 16 | n}
        assert bare.admin(AdminOpcode.CREATE_CQ, cdw11=n << 16 | 3, **fields) == (0, 0)
        fields["prp1"] += 0x8000
        assert bare.admin(AdminOpcode.CREATE_SQ, cdw11=n << 16 | 1, **fields) == (0, 0)


def test_deleting_queues_in_the_right_order(rig: Any) -> None:
    delete_cq, delete_sq = AdminOpcode.DELETE_CQ, AdminOpcode.DELETE_SQ
    assert rig.admin(delete_cq, cdw10=1) == (bits.QUEUE_DELETION_INVALID, 0)
    assert rig.admin(delete_sq, cdw10=0) == (bits.QUEUE_ID_INVALID, 0)
    assert rig.admin(delete_sq, cdw10=5) == (bits.QUEUE_ID_INVALID, 0)
    assert rig.admin(delete_sq, cdw10=1) == (0, 0)
    assert rig.admin(delete_cq, cdw10=1) == (0, 0)
    assert rig.admin(delete_cq, cdw10=1) == (bits.QUEUE_ID_INVALID, 0)


def test_number_of_queues_is_clamped_and_only_before_there_are_any(bare: Any) -> None:
    fields = {"cdw10": Feature.NUMBER_OF_QUEUES}
    assert bare.admin(AdminOpcode.SET_FEATURES, cdw11=99 << 16 | 3, **fields) == (0, 14 << 16 | 3)
    bad = bare.admin(AdminOpcode.SET_FEATURES, cdw11=0xFFFF, **fields)
    assert bad == (bits.INVALID_FIELD, 0)
    assert bare.admin(AdminOpcode.GET_FEATURES, **fields) == (0, 14 << 16 | 14)
    bare.create_io()
    late = bare.admin(AdminOpcode.SET_FEATURES, cdw11=3 << 16 | 3, **fields)
    assert late == (bits.COMMAND_SEQUENCE_ERROR, 0)


def test_features_keep_what_is_set(bare: Any) -> None:
    for feature in (Feature.ARBITRATION, Feature.ASYNC_EVENT_CONFIGURATION):
        assert bare.admin(AdminOpcode.SET_FEATURES, cdw10=feature, cdw11=0x55) == (0, 0)
        assert bare.admin(AdminOpcode.GET_FEATURES, cdw10=feature) == (0, 0x55)
    assert bare.admin(AdminOpcode.GET_FEATURES, cdw10=Feature.VOLATILE_WRITE_CACHE) == (0, 1)


@pytest.mark.parametrize(
    ("opcode", "cdw10", "status"),
    [
        (AdminOpcode.SET_FEATURES, 0x80000001, bits.FEATURE_NOT_SAVEABLE),
        (AdminOpcode.SET_FEATURES, 0xC0, bits.INVALID_FIELD),
        (AdminOpcode.GET_FEATURES, 0xC0, bits.INVALID_FIELD),
        (AdminOpcode.GET_FEATURES, 0x401, bits.INVALID_FIELD),
        (AdminOpcode.GET_LOG_PAGE, 0xC0, bits.LOG_PAGE_INVALID),
        (AdminOpcode.GET_LOG_PAGE, 0xFFFF0002, bits.PRP_OFFSET_INVALID),
        (FORMAT_NVM, 0, bits.INVALID_OPCODE),
        (0x7F, 0, bits.INVALID_OPCODE),
        (0xC5, 0, bits.INVALID_OPCODE),
    ],
)
def test_bad_admin_commands(bare: Any, opcode: int, cdw10: int, status: int) -> None:
    assert bare.admin(opcode, prp1=PAGE, prp2=1, cdw10=cdw10) == (status, 0)


def test_log_pages(bare: Any) -> None:
    for kind in (1, 2, 3):
        bare.ram.bytes[PAGE : PAGE + 1024] = b"\xee" * 1024
        cdw10 = 255 << 16 | kind
        assert bare.admin(AdminOpcode.GET_LOG_PAGE, prp1=PAGE, cdw10=cdw10) == (0, 0)
        assert bare.ram.bytes[PAGE + 512 : PAGE + 1024] == bytes(512)
    huge = bare.admin(AdminOpcode.GET_LOG_PAGE, prp1=PAGE, cdw10=0xFFFF0002, cdw11=0xFFFF)
    assert huge == (bits.INVALID_FIELD, 0)


def test_event_requests_are_held_limited_and_aborted(bare: Any) -> None:
    held = [bare.queue(0, AdminOpcode.ASYNC_EVENT) for _ in range(4)]
    bare.ring(0)
    assert bare.reap(0) == []
    assert bare.admin(AdminOpcode.ASYNC_EVENT) == (bits.ASYNC_EVENT_LIMIT, 0)
    abort = bare.queue(0, AdminOpcode.ABORT, cdw10=held[1] << 16)
    bare.ring(0)
    assert bare.reap(0) == [(held[1], bits.ABORT_REQUESTED, 0), (abort, 0, 0)]
    assert bare.admin(AdminOpcode.ABORT, cdw10=held[1] << 16) == (0, 1)


def test_a_full_admin_completion_queue_corks_and_uncorks(bare: Any) -> None:
    for _ in range(15):
        bare.queue(0, AdminOpcode.GET_FEATURES, cdw10=7)
    bare.ring(0)
    assert len(bare.reap(0, consume=False)) == 15
    bare.queue(0, AdminOpcode.GET_FEATURES, cdw10=7)
    bare.ring(0)
    assert len(bare.reap(0)) == 15
    assert len(bare.reap(0)) == 1
