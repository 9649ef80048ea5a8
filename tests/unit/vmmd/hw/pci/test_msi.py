"""MSI: messages, masks, pending bits, and fewer vectors than there are."""

from __future__ import annotations

import struct

import pytest

from vmmd.hw.pci import bits
from vmmd.hw.pci.cfgspace import ConfigSpace, Identity, express_capability
from vmmd.hw.pci.device import PciFunction
from vmmd.hw.pci.msi import Msi

ADDRESS = 0xFEE0_1000


class Function(PciFunction):
    """A function with nothing but MSI."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.msi = Msi(16, lambda address, data: self.sent.append((address, data)))
        config = ConfigSpace(Identity(1, 2, 1, 8, 2), {}, [self.msi.capability()])
        super().__init__(config, msi=self.msi)
        self.place = config.capability_offset(bits.CAPABILITY_MSI)

    def enable(self, vectors_log2: int = 4) -> None:
        self.config_write(self.place + 4, 4, ADDRESS | 3)
        self.config_write(self.place + 8, 4, 1)
        self.config_write(self.place + 12, 2, 0x4040)
        self.config_write(self.place + 2, 2, bits.MSI_ENABLE | vectors_log2 << 4)


@pytest.fixture
def function() -> Function:
    return Function()


def test_what_is_announced(function: Function) -> None:
    control = function.config_read(function.place + 2, 2)
    assert control == 4 << 1 | bits.MSI_64BIT | bits.MSI_MASKABLE
    function.config_write(function.place + 2, 2, 0xFFFF)
    assert function.config_read(function.place + 2, 2) == control | bits.MSI_ENABLE | 7 << 4
    function.config_write(function.place + 4, 8, (1 << 64) - 1)
    assert function.config_read(function.place + 4, 8) == (1 << 64) - 4


def test_vectors_are_told_apart_by_the_data(function: Function) -> None:
    function.msi.fire(3)
    assert function.sent == []
    function.enable()
    function.msi.fire(0)
    function.msi.fire(9)
    assert function.sent == [(1 << 32 | ADDRESS, 0x4040), (1 << 32 | ADDRESS, 0x4049)]


@pytest.mark.parametrize(("log2", "data"), [(0, 0x4040), (1, 0x4041), (2, 0x4043), (7, 0x404F)])
def test_fewer_vectors_wrap_around(function: Function, log2: int, data: int) -> None:
    function.enable(log2)
    function.msi.fire(15)
    assert function.sent == [(1 << 32 | ADDRESS, data)]


def test_a_masked_vector_is_pending_until_unmasked(function: Function) -> None:
    function.enable()
    mask, pending = function.place + 16, function.place + 20
    function.config_write(mask, 4, 1 << 5 | 1 << 6)
    function.msi.fire(5)
    function.msi.fire(5)
    function.msi.fire(4)
    assert [data & 0xF for _, data in function.sent] == [4]
    assert function.config_read(pending, 4) == 1 << 5
    function.config_write(pending, 4, 0)
    assert function.config_read(pending, 4) == 1 << 5
    function.config_write(mask, 4, 1 << 6)
    assert [data & 0xF for _, data in function.sent] == [4, 5]
    assert function.config_read(pending, 4) == 0


def test_a_reset_ends_it(function: Function) -> None:
    function.enable()
    function.config_write(function.place + 16, 4, 1)
    function.msi.fire(0)
    function.reset()
    assert function.config_read(function.place + 20, 4) == 0
    function.msi.fire(1)
    assert function.sent == []


def test_the_express_capability_says_endpoint() -> None:
    config = ConfigSpace(Identity(1, 2, 1, 8, 2), {}, [express_capability()])
    place = config.capability_offset(bits.CAPABILITY_EXPRESS)
    raw = struct.pack("<I", config.read(place, 4))
    assert raw == bytes((0x10, 0, 2, 0))
    assert config.read(place + 12, 4) & 0x3FF == 0x11
