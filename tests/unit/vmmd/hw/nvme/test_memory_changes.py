"""Memory that is mapped anew under the controller: nothing of the old mapping is touched, and what
waits for memory goes on when that is there again."""

from __future__ import annotations

import struct
from typing import Any

from tests.unit.vmmd.hw.nvme.rig import DATA, MEMORY, Ram, Rig
from vmmd.block.backend import BlockStatus, Completion
from vmmd.hw.nvme import bits
from vmmd.hw.nvme.bits import IoOpcode

PAGE = 4096


def moved(rig: Any) -> bytes:
    """The guest's memory elsewhere, its content taken along; what the old one held is returned by
    the caller's own reference."""
    before = rig.ram.bytes
    rig.ram.bytes = bytearray(before)
    rig.take(rig.core.memory_changed())
    return before


def gone(rig: Rig, start: int, end: int) -> None:
    """[start, end) is no memory until `back`."""
    whole = Ram.view

    def view(address: int, length: int) -> memoryview | None:
        if address < end and start < address + length:
            return None
        return whole(rig.ram, address, length)

    rig.ram.view = view  # type: ignore[method-assign]
    rig.take(rig.core.memory_changed())


def back(rig: Rig) -> None:
    del rig.ram.view
    rig.take(rig.core.memory_changed())


def test_a_read_in_flight_goes_to_the_new_place(rig: Any) -> None:
    identifier = rig.io(IoOpcode.READ, prp1=DATA)
    old = moved(rig)
    untouched = bytes(old)
    rig.answer(data=b"x" * PAGE)
    assert rig.reap(1) == [(identifier, 0, 0)]
    assert rig.ram.bytes[DATA : DATA + PAGE] == b"x" * PAGE
    assert bytes(old) == untouched


def test_queues_and_shadow_doorbells_move_along(rig: Any) -> None:
    configure = bits.AdminOpcode.DOORBELL_BUFFER_CONFIG
    assert rig.admin(configure, prp1=0x20000, prp2=0x21000) == (0, 0)
    old = moved(rig)
    untouched = bytes(old)
    identifier = rig.queue(1, IoOpcode.FLUSH, namespace=1)
    struct.pack_into("<I", rig.ram.bytes, 0x20008, rig.tails[1])
    rig.ring(1)
    rig.answer()
    assert rig.reap(1, consume=False) == [(identifier, 0, 0)]
    assert bytes(old) == untouched


def test_a_read_waits_for_its_buffer(rig: Any) -> None:
    identifier = rig.io(IoOpcode.READ, prp1=DATA)
    lent = bytearray(b"y" * PAGE)
    gone(rig, DATA, DATA + PAGE)
    [request] = rig.requests
    rig.requests = []
    rig.take(rig.core.complete([Completion(request.token, BlockStatus.OK, lent)]))
    lent[:] = bytes(PAGE)  # it was valid until the callback returned
    assert rig.reap(1) == []
    other = rig.io(IoOpcode.FLUSH)
    rig.answer()
    assert rig.reap(1) == [(other, 0, 0)]
    back(rig)
    assert rig.reap(1) == [(identifier, 0, 0)]
    assert rig.ram.bytes[DATA : DATA + PAGE] == b"y" * PAGE


def test_queues_that_are_gone_are_left_alone_until_they_are_back(rig: Any) -> None:
    written = rig.io(IoOpcode.WRITE, prp1=DATA)
    gone(rig, 0, 0x10000)
    rig.answer()
    waiting = rig.io(IoOpcode.FLUSH)
    assert rig.requests == []
    back(rig)
    assert rig.reap(1) == [(written, 0, 0)]
    assert len(rig.requests) == 1
    rig.answer()
    assert rig.reap(1) == [(waiting, 0, 0)]


def test_a_reset_lets_go_of_what_waits(rig: Any) -> None:
    rig.io(IoOpcode.READ, prp1=DATA)
    gone(rig, DATA, DATA + PAGE)
    rig.answer(data=b"z" * PAGE)
    rig.core.register_write(bits.REG_CC, 4, 0)
    before = bytes(rig.ram.bytes)
    back(rig)
    assert bytes(rig.ram.bytes) == before


def test_all_memory_gone_while_disabled_and_while_enabling(make_rig: Any) -> None:
    rig = make_rig()
    gone(rig, 0, MEMORY)
    rig.enable()
    assert rig.core.register_read(bits.REG_CSTS, 4) == bits.CSTS_FATAL
    back(rig)
    rig.core.register_write(bits.REG_CC, 4, 0)
    rig.enable()
    assert rig.core.register_read(bits.REG_CSTS, 4) == bits.CSTS_READY


def test_a_transfer_over_the_seam_of_two_pieces_of_memory(rig: Any) -> None:
    """Neighbouring pages that no single view covers."""
    seam = DATA + 2 * PAGE
    whole = Ram.view

    def view(address: int, length: int) -> memoryview | None:
        if address < seam < address + length:
            return None
        return whole(rig.ram, address, length)

    rig.ram.view = view
    listed = [DATA + PAGE * n for n in range(1, 5)]
    rig.ram.bytes[0x40000:0x40020] = struct.pack("<4Q", *listed)
    data = bytes(range(256)) * 64
    rig.io(IoOpcode.READ, prp1=DATA + 0x800, prp2=0x40000, cdw12=3)
    rig.answer(data=data)
    rig.io(IoOpcode.READ, prp1=DATA + PAGE, prp2=seam, cdw12=1)
    rig.answer(data=data[: 2 * PAGE])
    assert [status for _, status, _ in rig.reap(1)] == [0, 0]
    assert rig.ram.bytes[DATA + PAGE : DATA + 3 * PAGE] == data[: 2 * PAGE]
    assert rig.ram.bytes[DATA + 0x800 : DATA + PAGE] == data[:0x800]
