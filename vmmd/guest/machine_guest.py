"""The built-in guest of a machine without a processor: what a machine process uses.

    ram = GuestRam(256 << 20)
    topology = PciTopology(ram)
    topology.attach("0.16.0", NvmeController(backend, serial="block2", namespace_uuid=volume_id))
    guest = GuestSystem(topology, ram, names={"0.16.0": "block2"})
    await guest.start()                        # after the devices' start()
    async for report in guest.run_workload(WorkloadSpec(WorkloadKind.FILL, disk="block2")):
        ...
    await guest.stop()                         # before the devices' pause() and halt()

`start` enumerates PCI, brings up a driver for each NVMe controller and makes `disks`. After `stop`
or `reboot_begun` (the machine resets: nothing more reaches the devices) it may be started again;
each disk's model of what was written is kept.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Mapping

from stairlib.model.errors import NotFoundError, StateError, UnavailableError
from stairlib.telemetry.logs import get_logger
from vmmd.guest.disk import GuestDisk
from vmmd.guest.interrupts import InterruptTable
from vmmd.guest.memory import GuestRam
from vmmd.guest.nvme_driver import NVME_CLASS, SLOTS_MAX, TRANSFER_BYTES_MAX, NvmeDriver
from vmmd.guest.pci_scan import scan
from vmmd.guest.workload import WorkloadReport, WorkloadSpec, check_workload, run_workload
from vmmd.hw.pci.topology import PciTopology

# Memory for transfer buffers, as a part of all memory; the rest is queues and air.
_BUFFERS_PART = 2

_log = get_logger(__name__)


class GuestSystem:
    """One guest. `names` maps PCI paths to disk names; a disk without one is called by its serial
    number."""

    def __init__(
        self, topology: PciTopology, memory: GuestRam, names: Mapping[str, str] | None = None
    ) -> None:
        self._topology = topology
        self._memory = memory
        self._names = dict(names or {})
        self._interrupts = InterruptTable()
        self._drivers: list[NvmeDriver] = []
        self._disks: dict[str, GuestDisk] = {}
        self._running = False
        topology.on_message = self._interrupts.deliver

    @property
    def disks(self) -> Mapping[str, GuestDisk]:
        """The disks found, by name; empty before the first start."""
        return self._disks

    @property
    def running(self) -> bool:
        """Between start and stop."""
        return self._running

    async def start(self) -> None:
        """Finds the devices and brings up their drivers; UnavailableError when one stays dead."""
        assert not self._running
        found = [f for f in scan(self._topology) if f.class_code == NVME_CLASS]
        # Every disk gets its share of the memory, so that the last one is not left without.
        room = self._memory.size // _BUFFERS_PART // max(1, len(found)) // TRANSFER_BYTES_MAX
        slots = max(1, min(SLOTS_MAX, room))
        for function in found:
            driver = NvmeDriver(
                self._topology, function, self._memory, self._interrupts, slots=slots
            )
            self._drivers.append(driver)
            await driver.start()
            name = self._names.get(str(function.path), driver.identity.serial)
            known = self._disks.get(name)
            if known is not None:
                known.renew(driver)
            else:
                self._disks[name] = GuestDisk(name, driver, zlib.crc32(name.encode()))
        self._running = True

    async def stop(self) -> None:
        """Shuts every controller down, which flushes, and ends what is in flight.

        A controller that does not answer (its volume is stuck) is left behind with a warning.
        """
        self._running = False
        drivers, self._drivers = self._drivers, []
        for driver in drivers:
            try:
                await driver.stop()
            except UnavailableError as error:
                _log.warning("controller not shut down cleanly", reason=error.message)
            finally:
                driver.abandon()

    def reboot_begun(self) -> None:
        """The machine is being reset: what is in flight ends with errors, nothing is flushed."""
        self._running = False
        drivers, self._drivers = self._drivers, []
        for driver in drivers:
            driver.abandon()

    def disk(self, name: str) -> GuestDisk:
        """NotFoundError when there is no such disk; an empty name means the only one."""
        if not name and len(self._disks) == 1:
            return next(iter(self._disks.values()))
        found = self._disks.get(name)
        if found is None:
            known = ", ".join(sorted(self._disks)) or "none"
            raise NotFoundError("disk", name, f'the guest has no disk "{name}"; it has {known}')
        return found

    def run_workload(self, spec: WorkloadSpec) -> AsyncGenerator[WorkloadReport, None]:
        """Checks `spec` at once (NotFoundError, InvalidRequestError, StateError), then runs it."""
        if not self._running:
            raise StateError("the machine is not running: start it before running a workload")
        disk = self.disk(spec.disk)
        check_workload(disk, spec)
        return run_workload(disk, spec)
