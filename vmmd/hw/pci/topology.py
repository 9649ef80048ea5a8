"""The machine's PCI side: buses, who decodes which address, and where interrupt messages go.

A guest's accesses come in here: configuration reads and writes by bus, slot and function; memory
reads and writes by guest-physical address. Decode windows are worked out again after each
configuration write; where two overlap, the one attached first answers. Bus 0 is always there;
further buses are behind bridges.

A bus has two numbers: the one devices are attached by, fixed when the machine is built, and the one
that the guest gives it by programming its bridge, by which it is reached. A bus without the latter
is not reached; of two bridges that were given the same number the one added first has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stairlib.model.errors import AlreadyExistsError, FieldViolation, InvalidRequestError
from vmmd.core.pci_path import PciPath
from vmmd.hw.memory import GuestMemory
from vmmd.hw.pci import bits
from vmmd.hw.pci.bar import BarKind, BarWindow
from vmmd.hw.pci.bridge import PciBridge
from vmmd.hw.pci.bus import PciBus
from vmmd.hw.pci.device import PciFunction


def _ignore_message(address: int, data: int) -> None:
    """Before anybody listens, interrupts go nowhere, as on a machine without a processor."""
    del address, data


class PciTopology:
    """All buses of one machine. `memory` is what its devices reach by DMA.

    `on_message` is called with (address, data) of each interrupt message; set it before starting.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self.on_message: Callable[[int, int], None] = _ignore_message
        self._memory = memory
        self._buses = {0: PciBus()}
        self._bridges: list[PciBridge] = []
        # By the guest's numbers; None until they are worked out.
        self._routes: dict[int, PciBus] | None = None
        self._windows: list[tuple[BarWindow, PciFunction]] | None = None

    def attach(self, path: PciPath | str, device: PciFunction) -> None:
        """Plugs `device` in; InvalidRequestError for a bad path or missing bus, AlreadyExistsError
        for a taken place."""
        where = PciPath.parse(path) if isinstance(path, str) else path
        bus = self._buses.get(where.bus)
        if bus is None:
            text = f"{where}: bus {where.bus} is not there; this machine has {sorted(self._buses)}"
            raise InvalidRequestError(text, (FieldViolation("pci_path", text),))
        try:
            bus.attach(where.device, where.function, device)
        except AlreadyExistsError as error:
            raise AlreadyExistsError(
                f"pci-path {where} already has a device: give one another path", pci_path=str(where)
            ) from error
        device.attach(self._memory, self._message)
        self._windows = None

    def add_bridge(self, path: PciPath | str, downstream: int) -> None:
        """Plugs in a bridge with a new bus behind it; devices are attached to that by `downstream`,
        1 to 255. InvalidRequestError when that is no new one; as `attach` otherwise."""
        if not 0 < downstream < bits.BUSES or downstream in self._buses:
            text = f"bus {downstream} cannot be behind a bridge: 1 to 255, and each behind one"
            raise InvalidRequestError(text, (FieldViolation("downstream_bus", text),))
        bridge = PciBridge(downstream)
        self.attach(path, bridge)
        self._bridges.append(bridge)
        self._buses[downstream] = PciBus()
        self._routes = None

    def devices(self) -> Iterator[tuple[PciPath, PciFunction]]:
        """Everything plugged in, in order of path."""
        for number, bus in sorted(self._buses.items()):
            for (slot, function), device in bus.items():
                yield PciPath(number, slot, function), device

    def config_read(self, path: PciPath, offset: int, size: int) -> int:
        """A guest's configuration read; all ones when nobody is there."""
        bus = self._routed(path.bus)
        if bus is None:
            return bits.all_ones(size)
        return bus.config_read(path.device, path.function, offset, size)

    def config_write(self, path: PciPath, offset: int, size: int, value: int) -> None:
        """A guest's configuration write; vanishes when nobody is there."""
        bus = self._routed(path.bus)
        if bus is not None:
            bus.config_write(path.device, path.function, offset, size, value)
            self._windows = None
            self._routes = None

    def memory_read(self, address: int, size: int) -> int:
        """A guest's load from device memory; all ones when nobody decodes the address."""
        found = self._find(address, size)
        if found is None:
            return bits.all_ones(size)
        window, device = found
        return device.bar_read(window.bar, address - window.start, size)

    def memory_write(self, address: int, size: int, value: int) -> None:
        """A guest's store to device memory; vanishes when nobody decodes the address."""
        found = self._find(address, size)
        if found is not None:
            window, device = found
            device.bar_write(window.bar, address - window.start, size, value)

    def reset(self) -> None:
        """Resets every device; they must be paused."""
        for _, device in self.devices():
            device.reset()
        self._windows = None
        self._routes = None

    def _routed(self, number: int) -> PciBus | None:
        """The bus that the guest calls so."""
        if self._routes is None:
            self._routes = {0: self._buses[0]}
            for bridge in self._bridges:
                if bridge.secondary:
                    self._routes.setdefault(bridge.secondary, self._buses[bridge.downstream])
        return self._routes.get(number)

    def _message(self, address: int, data: int) -> None:
        self.on_message(address, data)

    def _find(self, address: int, size: int) -> tuple[BarWindow, PciFunction] | None:
        if self._windows is None:
            self._windows = [
                (window, device)
                for _, device in self.devices()
                for window in device.config.windows()
                if window.kind is not BarKind.IO
            ]
        for found in self._windows:
            if found[0].start <= address and address + size <= found[0].end:
                return found
        return None
