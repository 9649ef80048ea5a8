"""Registers: capabilities, enabling, reset, shutdown, doorbells."""

from __future__ import annotations

from typing import Any

import pytest

from vmmd.block.backend import BlockOp, BlockStatus
from vmmd.hw.nvme import bits


def status(rig: Any) -> int:
    return int(rig.core.register_read(bits.REG_CSTS, 4))


def test_capabilities_and_version(make_rig: Any) -> None:
    core = make_rig().core
    capabilities = core.register_read(bits.REG_CAP, 8)
    assert capabilities & 0xFFFF == 4095
    assert capabilities >> 16 & 1 == 1
    assert capabilities >> 37 & 1 == 1
    assert core.register_read(bits.REG_CAP, 4) | core.register_read(4, 4) << 32 == capabilities
    assert core.register_read(bits.REG_VS, 4) == 0x00010400
    assert core.register_read(0xF00, 4) == 0


def test_enabling_makes_it_ready(make_rig: Any) -> None:
    rig = make_rig()
    assert status(rig) == 0
    rig.enable()
    assert status(rig) == bits.CSTS_READY


@pytest.mark.parametrize(
    "configuration",
    [0x460001 | 1 << 4, 0x460001 | 1 << 7, 0x460001 | 1 << 11, 0x450001, 0x360001],
    ids=["command set", "page size", "arbitration", "sq entry", "cq entry"],
)
def test_what_is_not_supported_is_fatal_until_reset(make_rig: Any, configuration: int) -> None:
    rig = make_rig()
    rig.enable(configuration)
    assert status(rig) == bits.CSTS_FATAL
    rig.core.register_write(bits.REG_CC, 4, 0)
    rig.enable()
    assert status(rig) == bits.CSTS_READY


def test_admin_queues_outside_memory_are_fatal(make_rig: Any) -> None:
    rig = make_rig()
    rig.core.register_write(bits.REG_AQA, 4, 15 << 16 | 15)
    rig.core.register_write(bits.REG_ASQ, 8, 0xFFFF_FFFF_FFFF_F000)
    rig.core.register_write(bits.REG_CC, 4, 0x460001)
    assert status(rig) == bits.CSTS_FATAL


def test_admin_queue_registers_only_change_while_disabled(make_rig: Any) -> None:
    rig = make_rig()
    rig.enable()
    rig.core.register_write(bits.REG_ASQ, 8, 0x777000)
    assert rig.core.register_read(bits.REG_ASQ, 8) == 0x1000


def test_reset_forgets_what_is_in_flight(rig: Any) -> None:
    rig.io(bits.IoOpcode.READ, prp1=0x100000)
    before = bytes(rig.ram.bytes)
    rig.core.register_write(bits.REG_CC, 4, 0)
    assert status(rig) == 0
    rig.answer(data=b"x" * 4096)
    assert bytes(rig.ram.bytes) == before
    assert rig.vectors == [0, 0]


def test_shutdown_flushes_before_it_is_complete(rig: Any) -> None:
    rig.take(rig.core.register_write(bits.REG_CC, 4, 0x460001 | 1 << 14))
    assert status(rig) & bits.CSTS_SHUTDOWN_MASK == bits.CSTS_SHUTDOWN_OCCURRING
    assert [r.op for r in rig.requests] == [BlockOp.FLUSH]
    rig.answer()
    assert status(rig) & bits.CSTS_SHUTDOWN_MASK == bits.CSTS_SHUTDOWN_COMPLETE


def test_doorbells_that_cannot_be_are_refused(rig: Any) -> None:
    core = rig.core
    for offset, value in ((8, 16), (12, 16), (12, 3), (0x400, 1), (0, 0xFFFF)):
        core.register_write(bits.REG_DOORBELLS + offset, 4, value)
    assert core.refused_doorbells == 5
    rig.io(bits.IoOpcode.FLUSH)
    rig.answer(BlockStatus.OK)
    assert [s for _, s, _ in rig.reap(1)] == [0]


def test_odd_accesses_change_nothing(rig: Any) -> None:
    for size in (1, 2):
        rig.core.register_write(bits.REG_CC, size, 0)
    rig.core.register_write(bits.REG_CC + 1, 4, 0)
    assert status(rig) == bits.CSTS_READY
