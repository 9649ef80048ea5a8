"""The topology: paths, absent devices, decode, multifunction slots."""

from __future__ import annotations

import pytest

from stairlib.model.errors import AlreadyExistsError, InvalidRequestError
from vmmd.core.pci_path import PciPath
from vmmd.hw.pci import bits
from vmmd.hw.pci.bar import Bar, BarKind
from vmmd.hw.pci.cfgspace import ConfigSpace, Identity
from vmmd.hw.pci.device import PciFunction
from vmmd.hw.pci.topology import PciTopology


class NoMemory:
    def view(self, address: int, length: int) -> memoryview | None:
        return None


class Scratch(PciFunction):
    """One register that keeps what is written, whatever the offset."""

    def __init__(self) -> None:
        identity = Identity(0x1234, 0x5678, 0xFF, 0, 0)
        config = ConfigSpace(identity, {0: Bar(BarKind.MEMORY32, 4096)})
        super().__init__(config, msix=None, msix_bar=0)
        self.log: list[tuple[int, int, int, int]] = []

    def register_read(self, index: int, offset: int, size: int) -> int:
        return 0x42

    def register_write(self, index: int, offset: int, size: int, value: int) -> None:
        self.log.append((index, offset, size, value))


@pytest.fixture
def topology() -> PciTopology:
    return PciTopology(NoMemory())


def place(topology: PciTopology, path: str, address: int) -> None:
    where = PciPath.parse(path)
    topology.config_write(where, bits.BAR0, 4, address)
    topology.config_write(where, bits.COMMAND, 2, bits.COMMAND_MEMORY)


def test_absent_devices_read_ones_and_swallow_writes(topology: PciTopology) -> None:
    for path in (PciPath(0, 5, 0), PciPath(9, 0, 0)):
        topology.config_write(path, 0, 4, 7)
        assert topology.config_read(path, 0, 4) == 0xFFFFFFFF
    topology.memory_write(0xC0000000, 4, 1)
    assert topology.memory_read(0xC0000000, 8) == 0xFFFFFFFF_FFFFFFFF


def test_accesses_reach_the_device_that_decodes_them(topology: PciTopology) -> None:
    first, second = Scratch(), Scratch()
    topology.attach("0.3.0", first)
    topology.attach("0.4.0", second)
    place(topology, "0.3.0", 0xC0000000)
    place(topology, "0.4.0", 0xC0001000)
    topology.memory_write(0xC0001010, 4, 9)
    assert first.log == []
    assert second.log == [(0, 0x10, 4, 9)]
    assert topology.memory_read(0xC0000FFC, 4) == 0x42
    # An access across two windows is nobody's.
    assert topology.memory_read(0xC0000FFC, 8) == 0xFFFFFFFF_FFFFFFFF


def test_moving_a_bar_moves_its_window(topology: PciTopology) -> None:
    device = Scratch()
    topology.attach("0.3.0", device)
    place(topology, "0.3.0", 0xC0000000)
    assert topology.memory_read(0xC0000000, 1) == 0x42
    place(topology, "0.3.0", 0xD0000000)
    assert topology.memory_read(0xC0000000, 1) == 0xFF
    assert topology.memory_read(0xD0000000, 1) == 0x42
    topology.reset()
    assert topology.memory_read(0xD0000000, 1) == 0xFF


def test_a_taken_place_is_refused(topology: PciTopology) -> None:
    topology.attach("0.16.0", Scratch())
    with pytest.raises(AlreadyExistsError, match=r"0\.16\.0"):
        topology.attach("0.16.0", Scratch())


def test_a_bus_that_is_not_there_is_refused(topology: PciTopology) -> None:
    with pytest.raises(InvalidRequestError, match="bus 1"):
        topology.attach("1.0.0", Scratch())


def test_a_second_function_marks_the_whole_slot(topology: PciTopology) -> None:
    one, two, elsewhere = Scratch(), Scratch(), Scratch()
    topology.attach("0.3.0", one)
    topology.attach("0.4.0", elsewhere)
    assert one.config_read(bits.HEADER_TYPE, 1) == 0
    topology.attach("0.3.1", two)
    assert one.config_read(bits.HEADER_TYPE, 1) == 0x80
    assert two.config_read(bits.HEADER_TYPE, 1) == 0x80
    assert elsewhere.config_read(bits.HEADER_TYPE, 1) == 0
    assert [str(path) for path, _ in topology.devices()] == ["0.3.0", "0.3.1", "0.4.0"]
