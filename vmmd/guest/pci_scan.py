"""What a guest does first: walks configuration space, sizes the BARs and gives them addresses.

Uses nothing but configuration accesses, as firmware and kernels do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stairlib.model.errors import LimitError
from vmmd.core.pci_path import PciPath
from vmmd.hw.pci import bits
from vmmd.hw.pci.topology import PciTopology

WINDOW32 = (0xC000_0000, 0xE000_0000)
WINDOW64 = (1 << 39, 1 << 40)
_NOBODY = 0xFFFF


@dataclass(frozen=True, slots=True)
class FoundBar:
    """A BAR with the address it was given."""

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class FoundFunction:
    """A function as enumeration found it. `class_code` is base class, sub-class, interface."""

    path: PciPath
    vendor: int
    device: int
    class_code: int
    bars: dict[int, FoundBar]
    capabilities: dict[int, int]


class _Window:
    def __init__(self, start: int, end: int) -> None:
        self._next = start
        self._end = end

    def take(self, size: int) -> int:
        """An address aligned to `size`, which is a power of two."""
        address = (self._next + size - 1) & ~(size - 1)
        if address + size > self._end:
            raise LimitError(f"no address space left for a BAR of {size} bytes")
        self._next = address + size
        return address


def scan(topology: PciTopology) -> list[FoundFunction]:
    """Every function of bus 0 and of the buses behind its bridges, memory BARs placed, memory
    decoding and bus mastering on. Paths are those the guest gives them: it numbers buses as it
    finds them."""
    window32, window64 = _Window(*WINDOW32), _Window(*WINDOW64)
    found = []
    for path in _walk(topology, 0, iter(range(1, bits.BUSES))):
        bars = _place_bars(topology, path, window32, window64)
        command = topology.config_read(path, bits.COMMAND, 2)
        command |= bits.COMMAND_MEMORY | bits.COMMAND_BUS_MASTER
        topology.config_write(path, bits.COMMAND, 2, command)
        found.append(
            FoundFunction(
                path=path,
                vendor=topology.config_read(path, bits.VENDOR_ID, 2),
                device=topology.config_read(path, bits.DEVICE_ID, 2),
                class_code=topology.config_read(path, bits.REVISION_ID, 4) >> 8,
                bars=bars,
                capabilities=_capabilities(topology, path),
            )
        )
    return found


def _walk(topology: PciTopology, bus: int, numbers: Iterator[int]) -> Iterator[PciPath]:
    """Functions of a bus, and below each bridge those behind it, as `numbers` last."""
    for path in _present(topology, bus):
        yield path
        if not _is_bridge(topology, path):
            continue
        number = next(numbers, None)
        if number is None:
            raise LimitError("no number left for a bus behind a bridge")
        topology.config_write(path, bits.PRIMARY_BUS, 1, bus)
        topology.config_write(path, bits.SECONDARY_BUS, 1, number)
        # Everything until it is known what is behind it.
        topology.config_write(path, bits.SUBORDINATE_BUS, 1, bits.BUSES - 1)
        last = number
        for below in _walk(topology, number, numbers):
            last = max(last, below.bus)
            yield below
        topology.config_write(path, bits.SUBORDINATE_BUS, 1, last)


def _is_bridge(topology: PciTopology, path: PciPath) -> bool:
    header = topology.config_read(path, bits.HEADER_TYPE, 1)
    return header & bits.HEADER_TYPE_MASK == bits.HEADER_TYPE_BRIDGE


def _present(topology: PciTopology, bus: int) -> Iterator[PciPath]:
    for slot in range(bits.SLOTS_PER_BUS):
        for function in range(bits.FUNCTIONS_PER_SLOT):
            path = PciPath(bus, slot, function)
            if topology.config_read(path, bits.VENDOR_ID, 2) == _NOBODY:
                if function == 0:
                    break
                continue
            yield path
            header = topology.config_read(path, bits.HEADER_TYPE, 1)
            if function == 0 and not header & bits.HEADER_TYPE_MULTIFUNCTION:
                break


def _place_bars(
    topology: PciTopology, path: PciPath, window32: _Window, window64: _Window
) -> dict[int, FoundBar]:
    placed = {}
    index = 0
    count = bits.BRIDGE_BAR_COUNT if _is_bridge(topology, path) else bits.BAR_COUNT
    while index < count:
        register = bits.BAR0 + 4 * index
        flags = topology.config_read(path, register, 4)
        wide = flags & (bits.BAR_TYPE_IO | bits.BAR_TYPE_MEMORY64) == bits.BAR_TYPE_MEMORY64
        width = 8 if wide else 4
        topology.config_write(path, register, 4, 0xFFFFFFFF)
        if wide:
            topology.config_write(path, register + 4, 4, 0xFFFFFFFF)
        probe = topology.config_read(path, register, width)
        if probe and not flags & bits.BAR_TYPE_IO:
            size = (~(probe & ~bits.BAR_MEMORY_FLAGS) & bits.all_ones(width)) + 1
            address = (window64 if wide else window32).take(size)
            topology.config_write(path, register, width, address)
            placed[index] = FoundBar(address, size)
        index += width // 4
    return placed


def _capabilities(topology: PciTopology, path: PciPath) -> dict[int, int]:
    """Offset of each capability by its identifier; the list's length is bounded against loops."""
    found: dict[int, int] = {}
    if not topology.config_read(path, bits.STATUS, 2) & bits.STATUS_CAPABILITY_LIST:
        return found
    offset = topology.config_read(path, bits.CAPABILITIES_POINTER, 1)
    for _ in range(bits.CONFIG_BYTES // 4):
        if offset < bits.HEADER_BYTES:
            break
        found.setdefault(topology.config_read(path, offset, 1), offset)
        offset = topology.config_read(path, offset + 1, 1)
    return found
