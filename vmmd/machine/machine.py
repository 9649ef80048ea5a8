"""The machine itself: its devices on a PCI topology, its volumes, their exports and the built-in
guest.

Order of start: volumes become active (all at once), then the guest brings up the controllers
through their registers, then the exports listen. Order of halt: exports close, the guest stops
asking, controllers pause until nothing is in flight and are halted, volumes are deactivated (which
flushes them). Source: reference propolis.md §7.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from stairlib.model.errors import (
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    StairwellError,
    UnavailableError,
)
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.tracing import Tracing
from vmmd.block.backend import Backend
from vmmd.block.file import FileBackend
from vmmd.block.nbd import NbdExport
from vmmd.block.volume import Volume
from vmmd.core.machine import DiskSpec, MachineSpec
from vmmd.core.pci_path import PciPath
from vmmd.core.server_config import ServerConfig
from vmmd.guest.machine_guest import GuestSystem
from vmmd.guest.memory import GuestRam
from vmmd.hw.nvme.controller import NvmeController
from vmmd.hw.pci.topology import PciTopology
from vmmd.vhost_user.export import VhostUserExport

log = get_logger(__name__)

# A controller pauses when its last request is answered; one whose volume is stuck must not hold up
# the end.
PAUSE_SECONDS = 10.0
DEACTIVATE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Disk:
    """One replicated disk as built."""

    spec: DiskSpec
    volume: Volume
    controller: NvmeController
    export: NbdExport
    vhost_user: VhostUserExport


class Machine:
    """Built once, started once, halted once. Satisfies `driver.Parts`."""

    def __init__(
        self,
        spec: MachineSpec,
        config: ServerConfig,
        directory: Path,
        volumes: Sequence[Volume],
    ) -> None:
        """`volumes` in the order of the disks; `build` opens them."""
        self.spec = spec
        self._memory = GuestRam(spec.memory_mib << 20)
        self._topology = PciTopology(self._memory)
        self.disks: dict[str, Disk] = {}
        self._host_files: list[FileBackend] = []
        for disk, volume in zip(spec.disks, volumes, strict=True):
            self.disks[disk.name] = self._build_disk(disk, volume, directory)
        self._build_host_devices(config)
        names = {str(disk.pci_path): disk.name for disk in spec.disks}
        self.guest = GuestSystem(self._topology, self._memory, names=names)

    @classmethod
    async def build(
        cls, spec: MachineSpec, config: ServerConfig, directory: Path, tracing: Tracing
    ) -> Machine:
        """Opens the volumes, which asks for the size of files and URLs, and builds the machine.
        StairwellError names the disk and the part of its request that will not do."""
        volumes: list[Volume] = []
        try:
            for index, disk in enumerate(spec.disks):
                volume = await _opened(index, disk, tracing)
                volumes.append(volume)
            return cls(spec, config, directory, volumes)
        except BaseException:
            for volume in volumes:
                await volume.close()
            raise

    def _build_disk(self, disk: DiskSpec, volume: Volume, directory: Path) -> Disk:
        controller = NvmeController(volume, serial=disk.name, namespace_uuid=volume.id)
        self._topology.attach(disk.pci_path, controller)
        # Named by place, not by name: a disk's name may hold anything.
        export = NbdExport(volume, disk.name, socket=directory / f"nbd-{disk.pci_path}.sock")
        vhost_user = VhostUserExport(
            volume, serial=disk.name, socket=directory / f"vhost-{disk.pci_path}.sock"
        )
        return Disk(disk, volume, controller, export, vhost_user)

    def _build_host_devices(self, config: ServerConfig) -> None:
        blocks = dict(config.block_devices)
        for name, device in config.devices:
            block = blocks[device.block_dev]
            if not Path(block.path).is_file():
                # Said once by vmmd at its start; with no CPU nobody could read it.
                continue
            backend = FileBackend(
                Path(block.path),
                read_only=block.read_only,
                block_size=block.block_size,
                workers=block.workers,
            )
            self._host_files.append(backend)
            self._attach_host_device(name, device.pci_path, backend)

    def _attach_host_device(self, name: str, path: str, backend: Backend) -> None:
        self._topology.attach(PciPath.parse(path), NvmeController(backend, serial=name))

    def disk(self, name: str) -> Disk:
        """By disk name or volume UUID; NotFoundError when there is none."""
        if name in self.disks:
            return self.disks[name]
        with contextlib.suppress(ValueError):
            wanted = UUID(name)
            for disk in self.disks.values():
                if disk.volume.id == wanted:
                    return disk
        raise NotFoundError("disk", name)

    def volumes(self) -> Iterator[Volume]:
        """Every volume of the machine."""
        return (disk.volume for disk in self.disks.values())

    async def start(self) -> None:
        """Returns once the machine runs; StairwellError names what could not be started."""
        await asyncio.gather(*(volume.activate() for volume in self.volumes()))
        for _path, device in self._topology.devices():
            device.start()
        await self.guest.start()
        for disk in self.disks.values():
            await disk.export.start()
            try:
                await disk.vhost_user.start()
            except UnavailableError as error:
                # The machine needs it not; who looks for it finds no address, and this.
                log.warning("disk not there by vhost-user", disk=disk.spec.name, reason=str(error))

    async def reset(self) -> None:
        """A reboot: the devices as after power-on, the volumes untouched."""
        self.guest.reboot_begun()
        await self._pause()
        self._topology.reset()
        for _path, device in self._topology.devices():
            device.resume()
        await self.guest.start()

    async def halt(self) -> None:
        """Ends everything; what does not end in time is left, and said."""
        for disk in self.disks.values():
            await disk.export.stop()
            await disk.vhost_user.stop()
        await self.guest.stop()
        await self._pause()
        for _path, device in self._topology.devices():
            device.halt()
        for disk in self.disks.values():
            await self._deactivate(disk)
        for backend in self._host_files:
            backend.close()

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

    async def _deactivate(self, disk: Disk) -> None:
        try:
            await asyncio.wait_for(disk.volume.deactivate(), DEACTIVATE_SECONDS)
        except (StairwellError, TimeoutError) as error:
            log.warning("volume not deactivated cleanly", disk=disk.spec.name, reason=str(error))
        finally:
            await disk.volume.close()


async def _opened(index: int, disk: DiskSpec, tracing: Tracing) -> Volume:
    try:
        return await Volume.open(
            disk.construction,
            tracing=tracing,
            read_only=disk.read_only,
            activate_with_two_after=disk.activate_with_two_after,
        )
    except StairwellError as error:
        error.message = f"disk {disk.name!r}: {error.message}"
        error.args = (error.message,)
        if isinstance(error, InvalidRequestError):
            error.violations = tuple(
                FieldViolation(f"spec.disks[{index}].{v.field}", v.description, v.reason)
                for v in error.violations
            )
        raise
