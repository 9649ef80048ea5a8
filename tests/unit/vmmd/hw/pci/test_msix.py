"""MSI-X: enabling, the two masks, pending bits."""

from __future__ import annotations

import pytest

from vmmd.hw.pci import bits
from vmmd.hw.pci.msix import MsixTable


class Wire:
    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.table = MsixTable(4, 4, lambda address, data: self.sent.append((address, data)))

    def route(self, vector: int, *, masked: bool = False) -> None:
        entry = vector * bits.MSIX_ENTRY_BYTES
        self.table.write(entry, 8, 0xFEE00000)
        self.table.write(entry + 8, 4, 100 + vector)
        self.table.write(entry + 12, 4, int(masked))


@pytest.fixture
def wire() -> Wire:
    return Wire()


def test_nothing_is_sent_or_kept_while_off(wire: Wire) -> None:
    wire.route(1)
    wire.table.fire(1)
    wire.table.control_written(bits.MSIX_ENABLE)
    assert wire.sent == []


def test_a_routed_vector_is_sent(wire: Wire) -> None:
    wire.table.control_written(bits.MSIX_ENABLE)
    wire.route(2)
    wire.table.fire(2)
    assert wire.sent == [(0xFEE00000, 102)]


def test_entries_start_masked(wire: Wire) -> None:
    wire.table.control_written(bits.MSIX_ENABLE)
    wire.table.fire(0)
    assert wire.sent == []
    assert wire.table.read(0x1000, 8) == 1


def test_unmasking_an_entry_sends_its_pending_message_once(wire: Wire) -> None:
    wire.table.control_written(bits.MSIX_ENABLE)
    wire.route(3, masked=True)
    wire.table.fire(3)
    wire.table.fire(3)
    assert wire.table.read(0x1000, 1) == 1 << 3
    wire.route(3)
    assert wire.sent == [(0xFEE00000, 103)]
    assert wire.table.read(0x1000, 1) == 0


def test_the_function_mask_holds_everything_back(wire: Wire) -> None:
    wire.route(0)
    wire.table.control_written(bits.MSIX_ENABLE | bits.MSIX_FUNCTION_MASK)
    wire.table.fire(0)
    assert wire.sent == []
    wire.table.control_written(bits.MSIX_ENABLE)
    assert wire.sent == [(0xFEE00000, 100)]


def test_pending_bits_cannot_be_written(wire: Wire) -> None:
    wire.table.control_written(bits.MSIX_ENABLE)
    wire.table.fire(0)
    wire.table.write(0x1000, 8, 0)
    assert wire.table.read(0x1000, 8) == 1


def test_accesses_across_the_end_do_nothing(wire: Wire) -> None:
    wire.table.write(4 * bits.MSIX_ENTRY_BYTES - 4, 8, 0xFFFFFFFF_FFFFFFFF)
    assert wire.table.read(4 * bits.MSIX_ENTRY_BYTES - 4, 8) == 0
    assert wire.table.read(0x1008, 8) == 0
