"""One PCI bus: 32 slots of 8 functions. What is not there reads all ones and swallows writes."""

from __future__ import annotations

from collections.abc import Iterator

from stairlib.model.errors import AlreadyExistsError
from vmmd.hw.pci import bits
from vmmd.hw.pci.device import PciFunction


class PciBus:
    """Functions by (slot, function)."""

    def __init__(self) -> None:
        self._functions: dict[tuple[int, int], PciFunction] = {}

    def attach(self, slot: int, function: int, device: PciFunction) -> None:
        """Puts `device` there; AlreadyExistsError when the place is taken.

        A second function of a slot sets the multifunction bit of all of them.
        """
        assert 0 <= slot < bits.SLOTS_PER_BUS
        assert 0 <= function < bits.FUNCTIONS_PER_SLOT
        if (slot, function) in self._functions:
            raise AlreadyExistsError(
                f"slot {slot} function {function} already has a device: give one another pci-path"
            )
        self._functions[slot, function] = device
        neighbours = [d for (s, _), d in self._functions.items() if s == slot]
        # A function other than 0 is only looked for behind a function 0 that says there are more.
        if len(neighbours) > 1:
            for neighbour in neighbours:
                neighbour.config.set_multifunction()

    def __iter__(self) -> Iterator[PciFunction]:
        return iter(self._functions.values())

    def items(self) -> Iterator[tuple[tuple[int, int], PciFunction]]:
        """((slot, function), device) in order of place."""
        return iter(sorted(self._functions.items(), key=lambda item: item[0]))

    def config_read(self, slot: int, function: int, offset: int, size: int) -> int:
        """A guest's read; all ones when nobody is there."""
        device = self._functions.get((slot, function))
        return bits.all_ones(size) if device is None else device.config_read(offset, size)

    def config_write(self, slot: int, function: int, offset: int, size: int, value: int) -> None:
        """A guest's write; vanishes when nobody is there."""
        device = self._functions.get((slot, function))
        if device is not None:
            device.config_write(offset, size, value)
