"""Bridges: the type 1 header, buses by the numbers a guest gives them, and a guest behind one."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as some

from stairlib.model.errors import AlreadyExistsError, InvalidRequestError
from tests.unit.vmmd.hw.pci.test_topology import NoMemory, Scratch, place
from vmmd.block.memory import MemoryBackend
from vmmd.core.pci_path import PciPath
from vmmd.guest.machine_guest import GuestSystem
from vmmd.guest.memory import GuestRam
from vmmd.guest.pci_scan import scan
from vmmd.hw.nvme.controller import NvmeController
from vmmd.hw.pci import bits
from vmmd.hw.pci.topology import PciTopology

BRIDGE = PciPath(0, 5, 0)


@pytest.fixture
def topology() -> PciTopology:
    made = PciTopology(NoMemory())
    made.add_bridge(BRIDGE, 1)
    return made


def vendor(topology: PciTopology, path: str) -> int:
    return topology.config_read(PciPath.parse(path), bits.VENDOR_ID, 2)


def test_the_header_is_a_bridges(topology: PciTopology) -> None:
    read = topology.config_read
    assert read(BRIDGE, bits.HEADER_TYPE, 1) == 1
    assert read(BRIDGE, bits.REVISION_ID, 4) >> 8 == 0x060400
    assert read(BRIDGE, bits.STATUS, 2) == 0
    assert read(BRIDGE, bits.INTERRUPT_LINE, 1) == 0xFF
    topology.config_write(BRIDGE, bits.PRIMARY_BUS, 4, 0xFFFFFFFF)
    assert read(BRIDGE, bits.PRIMARY_BUS, 4) == 0x00FFFFFF
    topology.config_write(BRIDGE, bits.BRIDGE_MEMORY_BASE, 4, 0xFFFFFFFF)
    assert read(BRIDGE, bits.BRIDGE_MEMORY_BASE, 4) == 0xFFF0FFF0
    # No BARs, no I/O window, no prefetchable one.
    for register in (bits.BAR0, bits.BAR0 + 4, 0x1C, 0x24, 0x28, 0x2C, 0x30):
        topology.config_write(BRIDGE, register, 4, 0xFFFFFFFF)
        assert read(BRIDGE, register, 4) == 0


def test_a_bus_is_reached_by_the_number_the_guest_gave_it(topology: PciTopology) -> None:
    topology.attach("1.4.0", Scratch())
    assert vendor(topology, "1.4.0") == 0xFFFF
    topology.config_write(BRIDGE, bits.SECONDARY_BUS, 1, 7)
    assert vendor(topology, "7.4.0") == 0x1234
    assert vendor(topology, "1.4.0") == 0xFFFF
    place(topology, "7.4.0", 0xC0000000)
    assert topology.memory_read(0xC0000000, 1) == 0x42
    topology.config_write(BRIDGE, bits.SECONDARY_BUS, 1, 0)
    assert vendor(topology, "7.4.0") == 0xFFFF
    topology.config_write(BRIDGE, bits.SECONDARY_BUS, 1, 9)
    topology.reset()
    assert vendor(topology, "9.4.0") == 0xFFFF
    assert [str(path) for path, _ in topology.devices()] == ["0.5.0", "1.4.0"]


def test_of_two_bridges_with_one_number_the_first_has_it(topology: PciTopology) -> None:
    second = PciPath(0, 6, 0)
    topology.add_bridge(second, 2)
    topology.attach("1.4.0", Scratch())
    topology.attach("2.8.0", Scratch())
    topology.config_write(second, bits.SECONDARY_BUS, 1, 3)
    topology.config_write(BRIDGE, bits.SECONDARY_BUS, 1, 3)
    assert (vendor(topology, "3.4.0"), vendor(topology, "3.8.0")) == (0x1234, 0xFFFF)
    topology.config_write(BRIDGE, bits.SECONDARY_BUS, 1, 4)
    assert vendor(topology, "3.8.0") == 0x1234


@pytest.mark.parametrize("bus", [0, 1, 256])
def test_a_bus_that_cannot_be_behind_it_is_refused(topology: PciTopology, bus: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"bus {bus} "):
        topology.add_bridge("0.6.0", bus)
    with pytest.raises(AlreadyExistsError):
        topology.add_bridge(BRIDGE, 2)


def test_a_guest_numbers_the_buses_it_finds(topology: PciTopology) -> None:
    topology.add_bridge("1.2.0", 40)
    topology.add_bridge("0.3.0", 9)
    for path in ("0.4.0", "9.1.0", "1.0.0", "40.31.0"):
        topology.attach(path, Scratch())
    found = {str(each.path): each for each in scan(topology)}
    assert list(found) == ["0.3.0", "1.1.0", "0.4.0", "0.5.0", "2.0.0", "2.2.0", "3.31.0"]
    for path in ("1.1.0", "0.4.0", "2.0.0", "3.31.0"):
        assert topology.memory_read(found[path].bars[0].address, 1) == 0x42
    below = [
        topology.config_read(PciPath.parse(p), bits.PRIMARY_BUS, 3) for p in ("0.5.0", "2.2.0")
    ]
    assert below == [0x030200, 0x030302]


async def test_a_disk_behind_a_bridge_works() -> None:
    ram = GuestRam(64 << 20)
    topology = PciTopology(ram)
    topology.add_bridge("0.5.0", 1)
    disk = NvmeController(MemoryBackend(4096, 64), serial="deep", namespace_uuid=UUID(int=5))
    topology.attach("1.4.0", disk)
    guest = GuestSystem(topology, ram)
    await guest.start()
    assert guest.disk("deep").block_count == 64
    await guest.stop()


@given(
    some.lists(
        some.tuples(
            some.integers(0, 3), some.integers(0, 2), some.integers(0, 0x40),
            some.sampled_from((1, 2, 4)), some.integers(0, 2**32 - 1),
        ),
        max_size=40,
    )
)  # fmt: skip
def test_no_write_of_a_guest_is_too_much(
    accesses: list[tuple[int, int, int, int, int]],
) -> None:
    """Whatever is written, bus 0 is there, and reads fit."""
    made = PciTopology(NoMemory())
    made.add_bridge("0.0.0", 1)
    made.add_bridge("1.1.0", 2)
    made.attach("2.2.0", Scratch())
    for bus, slot, offset, size, value in accesses:
        path = PciPath(bus, slot, 0)
        made.config_write(path, offset, size, value)
        assert 0 <= made.config_read(path, offset, size) < 1 << 8 * size
    assert vendor(made, "0.0.0") == 0x1DE5
    made.reset()
    assert len(scan(made)) == 3
