"""Log pages: what they tell of what happened, whole and in parts; and the events that name them."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from vmmd.block.backend import BlockStatus
from vmmd.hw.nvme import bits
from vmmd.hw.nvme.bits import AdminOpcode, Feature, IoOpcode, LogPage

PAGE = 0x100000
ERROR_EVENT = 0 | 1 << 8 | LogPage.ERROR << 16
WARM_EVENT = 1 | 1 << 8 | LogPage.SMART << 16


def log(rig: Any, kind: int, length: int = 512, *, offset: int = 0, retain: bool = False) -> bytes:
    rig.ram.bytes[PAGE : PAGE + length] = b"\xee" * length
    dwords = length // 4 - 1
    cdw10 = kind | (bits.LOG_RETAIN_EVENT if retain else 0) | dwords << 16
    other = PAGE + 0x1000
    fields = {"prp1": PAGE, "prp2": other, "cdw10": cdw10, "cdw12": offset}
    assert rig.admin(AdminOpcode.GET_LOG_PAGE, **fields) == (0, 0)
    return bytes(rig.ram.bytes[PAGE : PAGE + length])


def counted(smart: bytes, offset: int) -> int:
    return int(struct.unpack_from("<Q", smart, offset)[0])


def test_the_error_log_tells_the_newest_first(rig: Any) -> None:
    first = rig.admin(0x7F) and rig.next_identifier - 1
    second = rig.io(IoOpcode.READ, cdw10=1 << 20, cdw11=5)
    assert rig.reap(1) == [(second, bits.LBA_OUT_OF_RANGE, 0)]
    rig.io(IoOpcode.WRITE, prp1=PAGE, cdw10=77)
    rig.answer(BlockStatus.FAILED)
    page = log(rig, LogPage.ERROR, 256)
    found = [struct.unpack_from("<QHHHHQI", page, at) for at in (0, 64, 128, 192)]
    assert [entry[0] for entry in found] == [3, 2, 1, 0]
    assert found[0][1] == 1
    assert found[0][3] == bits.WRITE_FAULT << 1
    assert found[0][5:] == (77, 1)
    assert found[1][1:4] == (1, second, bits.LBA_OUT_OF_RANGE << 1)
    assert found[1][5:] == (5 << 32 | 1 << 20, 1)
    assert found[2][1:4] == (0, first, bits.INVALID_OPCODE << 1)
    assert counted(log(rig, LogPage.SMART), 176) == 3


def test_the_error_log_keeps_the_last_64(rig: Any) -> None:
    for _ in range(100):
        rig.io(0x55)
        rig.reap(1)
    page = log(rig, LogPage.ERROR, 4096)
    assert [struct.unpack_from("<Q", page, 64 * n)[0] for n in range(64)] == [*range(100, 36, -1)]


def test_a_part_of_a_page_is_the_same_part(rig: Any) -> None:
    rig.admin(0x7F)
    whole = log(rig, LogPage.ERROR, 512)
    assert log(rig, LogPage.ERROR, 64, offset=8) == whole[8:72]
    # Behind the end there is nothing.
    assert log(rig, LogPage.SMART, 64, offset=500)[12:] == bytes(52)
    assert log(rig, LogPage.SMART, 64, offset=512) == bytes(64)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"cdw12": 2}, bits.INVALID_FIELD),
        ({"cdw12": 516}, bits.INVALID_FIELD),
        ({"cdw13": 1}, bits.INVALID_FIELD),
        ({"namespace": 2}, bits.INVALID_NAMESPACE),
        ({"prp1": 1 << 50}, bits.DATA_TRANSFER_ERROR),
    ],
)
def test_bad_requests_of_a_page(rig: Any, fields: dict[str, int], status: int) -> None:
    given = {"prp1": PAGE, "cdw10": LogPage.SMART, **fields}
    assert rig.admin(AdminOpcode.GET_LOG_PAGE, **given) == (status, 0)


def test_health_tells_what_was_done(rig: Any) -> None:
    rig.counters.reads, rig.counters.writes = 11, 22
    rig.counters.blocks_read, rig.counters.blocks_written = 126, 1250
    rig.counters.failures = 3
    page = log(rig, LogPage.SMART)
    assert page[0] == 0
    assert struct.unpack_from("<H", page, 1) == (310,)
    assert (page[3], page[4]) == (100, 10)
    # 126 blocks of 4096 are 1008 sectors, two units of a thousand.
    assert [counted(page, at) for at in (32, 48, 64, 80, 160)] == [2, 10, 11, 22, 3]


def test_power_cycles_and_unsafe_shutdowns(make_rig: Any) -> None:
    rig = make_rig()

    def cycle(*, safe: bool) -> None:
        rig.tails, rig.heads, rig.phases = {0: 0, 1: 0}, {0: 0, 1: 0}, {0: 1, 1: 1}
        rig.ram.bytes[0x1000:0xA000] = bytes(0x9000)
        rig.enable()
        if safe:
            rig.take(rig.core.register_write(bits.REG_CC, 4, 0x464001))
            rig.answer()
        rig.core.reset()

    rig.core.reset()  # before anything began
    cycle(safe=True)
    cycle(safe=False)
    rig.tails, rig.heads, rig.phases = {0: 0, 1: 0}, {0: 0, 1: 0}, {0: 1, 1: 1}
    rig.ram.bytes[0x1000:0xA000] = bytes(0x9000)
    rig.enable()
    page = log(rig, LogPage.SMART)
    assert (counted(page, 112), counted(page, 144)) == (3, 1)


def test_the_firmware_slot_and_the_changed_namespaces(rig: Any) -> None:
    page = log(rig, LogPage.FIRMWARE_SLOT)
    assert page[0] == 1
    assert page[8:16] == b"1".ljust(8)
    assert log(rig, LogPage.CHANGED_NAMESPACES, 4096) == bytes(4096)


@pytest.mark.parametrize("discard", [True, False])
def test_effects_are_told_of_the_commands_there_are(make_rig: Any, discard: bool) -> None:
    rig = make_rig(discard=discard)
    rig.enable()
    page = log(rig, LogPage.COMMAND_EFFECTS, 4096)
    admin = {n for n in range(256) if page[4 * n] & 1}
    assert admin == {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x7C}
    assert {n for n in range(256) if page[1024 + 4 * n] & 1} == {
        0,
        1,
        2,
        8,
        *([9] if discard else []),
    }
    assert {n for n in range(256) if page[1024 + 4 * n] & 2} == {1, 8, *([9] if discard else [])}
    assert page[2048:] == bytes(2048)


def test_a_refused_doorbell_is_told_until_the_log_was_read(rig: Any) -> None:
    held = [rig.queue(0, AdminOpcode.ASYNC_EVENT) for _ in range(2)]
    rig.ring(0)
    rig.take(rig.core.register_write(bits.REG_DOORBELLS + 8, 4, 999))
    assert rig.reap(0) == [(held[0], 0, ERROR_EVENT)]
    assert rig.vectors[-1] == 0
    rig.take(rig.core.register_write(bits.REG_DOORBELLS + 8, 4, 999))
    assert rig.reap(0) == []
    log(rig, LogPage.ERROR, retain=True)
    rig.take(rig.core.register_write(bits.REG_DOORBELLS + 8, 4, 999))
    assert rig.reap(0) == []
    page = log(rig, LogPage.ERROR)
    assert struct.unpack_from("<QHH", page) == (3, 1, 0xFFFF)
    rig.take(rig.core.register_write(bits.REG_DOORBELLS + 8 * 9, 4, 1))
    assert rig.reap(0) == [(held[1], 0, 0 | LogPage.ERROR << 16)]


def test_an_event_waits_for_a_request(make_rig: Any) -> None:
    rig = make_rig()
    rig.enable()
    rig.take(rig.core.register_write(bits.REG_DOORBELLS + 8, 4, 0))
    held = rig.queue(0, AdminOpcode.ASYNC_EVENT)
    rig.ring(0)
    assert rig.reap(0) == [(held, 0, LogPage.ERROR << 16)]


def test_an_event_waits_for_a_slot(make_rig: Any) -> None:
    rig = make_rig()
    rig.enable()
    held = rig.queue(0, AdminOpcode.ASYNC_EVENT)
    for _ in range(14):
        rig.queue(0, AdminOpcode.GET_FEATURES, cdw10=Feature.NUMBER_OF_QUEUES)
    rig.ring(0)
    rig.queue(0, AdminOpcode.GET_FEATURES, cdw10=Feature.NUMBER_OF_QUEUES)
    rig.ring(0)
    assert len(rig.reap(0, consume=False)) == 15
    rig.take(rig.core.register_write(bits.REG_DOORBELLS + 8, 4, 0))
    assert len(rig.reap(0)) == 15
    assert rig.reap(0) == [(held, 0, LogPage.ERROR << 16)]


def test_a_temperature_over_its_threshold_is_a_warning_and_an_event(rig: Any) -> None:
    held = rig.queue(0, AdminOpcode.ASYNC_EVENT)
    rig.ring(0)

    def threshold(value: int, kind: int = 0) -> None:
        cdw11 = value | kind << 20
        fields = {"cdw10": Feature.TEMPERATURE_THRESHOLD, "cdw11": cdw11}
        assert rig.admin(AdminOpcode.SET_FEATURES, **fields) == (0, 0)

    threshold(300)
    assert log(rig, LogPage.SMART)[0] == bits.WARNING_TEMPERATURE
    threshold(400)
    assert log(rig, LogPage.SMART)[0] == 0
    config = {"cdw10": Feature.ASYNC_EVENT_CONFIGURATION, "cdw11": bits.WARNING_TEMPERATURE}
    assert rig.admin(AdminOpcode.SET_FEATURES, **config) == (0, 0)
    fields = {"cdw10": Feature.TEMPERATURE_THRESHOLD, "cdw11": 320 | 1 << 20}
    asked = rig.queue(0, AdminOpcode.SET_FEATURES, **fields)
    rig.ring(0)
    assert rig.reap(0) == [(asked, 0, 0), (held, 0, WARM_EVENT)]
