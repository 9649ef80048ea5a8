"""The engine without a processor: emulated devices, driven by the built-in guest."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from stairlib.model.errors import UnsupportedError
from stairlib.telemetry.logs import get_logger
from vmmd.core.guest_events import GuestEvent, GuestSignal
from vmmd.core.pci_path import PciPath
from vmmd.engine.engine import EngineDisk, OnEvent
from vmmd.guest.console import GuestConsole
from vmmd.guest.machine_guest import GuestSystem
from vmmd.guest.memory import GuestRam
from vmmd.hw.nvme.controller import NvmeController
from vmmd.hw.pci.topology import PciTopology
from vmmd.hw.pvpanic.bits import PANICKED
from vmmd.hw.pvpanic.core import PanicNews, PanicPort
from vmmd.machine.console import Console

log = get_logger(__name__)

# A controller pauses when its last request is answered; one whose volume is stuck must not hold up
# the end.
PAUSE_SECONDS = 10.0


class BuiltInEngine:
    """NVMe controllers on a PCI topology and a guest. Satisfies `engine.Engine`.

    Order of reset: the guest stops asking, devices pause until nothing is in flight, are reset and
    resume. Source: reference propolis.md §7.
    """

    def __init__(
        self,
        memory_mib: int,
        disks: Sequence[EngineDisk],
        names: Mapping[str, str],
        console: Console,
        bridges: Sequence[tuple[PciPath, int]] = (),
    ) -> None:
        """`names` maps PCI paths to what the guest calls a disk; `bridges` are places and the
        numbers of the buses behind them."""
        memory = GuestRam(memory_mib << 20)
        self._topology = PciTopology(memory)
        for path, bus in bridges:
            self._topology.add_bridge(path, bus)
        for disk in disks:
            controller = NvmeController(
                disk.backend, serial=disk.name, namespace_uuid=disk.namespace_uuid
            )
            self._topology.attach(disk.pci_path, controller)
        self.guest = GuestSystem(self._topology, memory, names=names)
        self.on_event: OnEvent = lambda _event, _reason: None
        self.panic_port = PanicPort()
        self._port = GuestConsole(console.said, self._panic)
        console.connect(self._port.typed)

    def _panic(self) -> None:
        """What the guest's kernel does in its last moment; this one goes on."""
        if self.panic_port.write(self.panic_port.read() & PANICKED) is PanicNews.PANICKED:
            self.on_event(GuestEvent.PANICKED, "the guest's kernel panicked")

    def describe(self, _disk: EngineDisk) -> str:
        """As Engine."""
        return ""

    async def start(self) -> None:
        """As Engine."""
        for _path, device in self._topology.devices():
            device.start()
        await self._guest_up("started")

    async def _guest_up(self, word: str) -> None:
        await self.guest.start()
        disks = {
            name: f"{disk.block_count} blocks of {disk.block_size} bytes"
            for name, disk in self.guest.disks.items()
        }
        self._port.greet(word, disks)

    async def reset(self) -> None:
        """As Engine."""
        self.guest.reboot_begun()
        await self._pause()
        self._topology.reset()
        self._port.reset()
        for _path, device in self._topology.devices():
            device.resume()
        await self._guest_up("started again")

    async def halt(self) -> None:
        """As Engine."""
        await self.guest.stop()
        await self._pause()
        for _path, device in self._topology.devices():
            device.halt()

    async def _pause(self) -> None:
        paused = []
        for _path, device in self._topology.devices():
            event = asyncio.Event()
            device.pause(event.set)
            paused.append(event.wait())
        try:
            await asyncio.wait_for(asyncio.gather(*paused), PAUSE_SECONDS)
        except TimeoutError:
            log.warning("devices still had requests in flight when they were halted")

    async def signal(self, signal: GuestSignal) -> None:
        """As Engine."""
        raise UnsupportedError(
            f'a machine with engine "none" has no processor that could take it ({signal.value}): '
            'set engine = "qemu" in the host\'s configuration',
            reason="NEEDS_PROCESSOR",
        )

    def require_plugging(self, name: str) -> None:
        """As Engine: it cannot."""
        raise _no_plugging(name)

    async def plug(self, disk: EngineDisk) -> None:
        """As Engine."""
        raise _no_plugging(disk.name)

    async def unplug(self, disk: EngineDisk) -> None:
        """As Engine."""
        raise _no_plugging(disk.name)


def _no_plugging(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"disk {name!r}: the built-in guest takes its disks at the start of the machine; "
        'plugging needs engine = "qemu" in the host\'s configuration',
        reason="NEEDS_PROCESSOR",
    )
