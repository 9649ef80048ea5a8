"""The machine itself: its volumes, their exports, and the engine that runs its guest.

Order of start: volumes become active (all at once), then the exports listen, then the engine
starts the guest: a firmware that looks for disks finds them served. Order of halt: the engine ends
the guest, the exports close, volumes are deactivated (which flushes them). Source: reference
propolis.md §7; real-guests-and-containers.md §E.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid5

from stairlib.model.construction import join_path
from stairlib.model.errors import (
    AlreadyExistsError,
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    StairwellError,
    StateError,
    UnavailableError,
    UnsupportedError,
)
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.tracing import Tracing
from vmmd.block.backend import Backend
from vmmd.block.confinement import Confinement
from vmmd.block.file import FileBackend
from vmmd.block.hypervisor_export import is_served
from vmmd.block.nbd import NbdExport
from vmmd.block.volume import Volume
from vmmd.core.guest_events import GuestSignal
from vmmd.core.machine import DISKS_MAX, DiskSpec, MachineSpec
from vmmd.core.pci_path import PciPath
from vmmd.core.server_config import DEVICE_OF_DRIVER, EngineName, ServerConfig
from vmmd.engine.builtin import BuiltInEngine
from vmmd.engine.core.command_line import (
    MEMORY_MIB_MIN,
    Board,
    check_path,
)
from vmmd.engine.core.hypervisor import DiskDevice, Hypervisor
from vmmd.engine.engine import Engine, EngineDisk
from vmmd.engine.host_check import check_host
from vmmd.engine.qemu import QemuEngine
from vmmd.guest.machine_guest import GuestSystem
from vmmd.hw.nvme.controller import InterruptKind
from vmmd.machine.console import Console
from vmmd.mapping import CONSTRUCTION
from vmmd.vfio_user.export import VfioUserExport
from vmmd.vhost_user.export import VhostUserExport

log = get_logger(__name__)

DEACTIVATE_SECONDS = 20.0
# What the namespace UUIDs of host files are made in.
HOST_FILES = UUID("5e6e1c0b-5a0e-4b3c-9a55-0c9d7a3f2e41")


class Exports:
    """Where a backend is served: over NBD, and to a hypervisor by vhost-user and by vfio-user."""

    def __init__(
        self,
        backend: Backend,
        name: str,
        path: PciPath,
        directory: Path,
        namespace_uuid: UUID,
        *,
        removable: bool,
    ) -> None:
        # Named by place, not by name: a disk's name may hold anything.
        self.nbd_socket = directory / f"nbd-{path}.sock"
        self.nbd = NbdExport(backend, name, socket=self.nbd_socket)
        self.vhost_user = VhostUserExport(
            backend, serial=name, socket=directory / f"vhost-{path}.sock"
        )
        self.vfio_user = VfioUserExport(
            backend,
            serial=name,
            namespace_uuid=namespace_uuid,
            socket=directory / f"vfio-{path}.sock",
            interrupts=InterruptKind.MSI if removable else InterruptKind.MSIX,
        )

    async def start(self, name: str) -> None:
        """Listens; UnavailableError when the NBD socket cannot be had."""
        await self.nbd.start()
        for way, export in (("vhost-user", self.vhost_user), ("vfio-user", self.vfio_user)):
            try:
                await export.start()
            except UnavailableError as error:
                # The machine needs it not; who looks for it finds no address, and this.
                log.warning("disk not there by one way", way=way, disk=name, reason=str(error))

    async def stop(self) -> None:
        """Hangs up."""
        await self.nbd.stop()
        await self.vhost_user.stop()
        await self.vfio_user.stop()


@dataclass(frozen=True, slots=True)
class Disk:
    """One replicated disk as built."""

    spec: DiskSpec
    volume: Volume
    exports: Exports
    seen: EngineDisk


@dataclass(frozen=True, slots=True)
class HostFile:
    """One of the host's own block devices, as built."""

    backend: FileBackend
    exports: Exports
    seen: EngineDisk
    lock: int | None

    def close(self) -> None:
        """Lets the file go."""
        self.backend.close()
        if self.lock is not None:
            os.close(self.lock)


class Machine:
    """Built once, started once, halted once. Satisfies `driver.Parts`."""

    def __init__(
        self,
        spec: MachineSpec,
        config: ServerConfig,
        directory: Path,
        volumes: Sequence[Volume],
        hypervisor: Hypervisor | None,
        tracing: Tracing,
    ) -> None:
        """`volumes` in the order of the disks; `build` opens them."""
        self.spec = spec
        self.confinement = Confinement(config.file_directories, config.plain_text)
        self.console = Console()
        self.hypervisor = hypervisor
        self._directory = directory
        self._tracing = tracing
        self._plugging = asyncio.Lock()
        self._running = False
        self._halting = asyncio.Event()
        self.disks: dict[str, Disk] = {}
        for disk, volume in zip(spec.disks, volumes, strict=True):
            self.disks[disk.name] = self._build_disk(disk, volume)
        self._host_files = list(self._build_host_files(config))
        self.engine = self._build_engine(config)

    @classmethod
    async def build(
        cls,
        spec: MachineSpec,
        config: ServerConfig,
        directory: Path,
        tracing: Tracing,
        hypervisor: Hypervisor | None = None,
    ) -> Machine:
        """Opens the volumes, which asks for the size of files and URLs, and builds the machine.
        StairwellError names the disk and the part of its request that will not do."""
        check_for_engine(spec, config)
        confinement = Confinement(config.file_directories, config.plain_text)
        volumes: list[Volume] = []
        try:
            for index, disk in enumerate(spec.disks):
                volume = await _opened(f"spec.disks[{index}]", disk, tracing, confinement)
                volumes.append(volume)
            return cls(spec, config, directory, volumes, hypervisor, tracing)
        except BaseException:
            for volume in volumes:
                await volume.close()
            raise

    def _build_disk(self, disk: DiskSpec, volume: Volume) -> Disk:
        removable = disk.removable
        exports = Exports(
            volume, disk.name, disk.pci_path, self._directory, volume.id, removable=removable
        )
        device = DiskDevice(disk.device)
        seen = replace(
            _seen(disk.name, device, disk.pci_path, volume, exports, volume.id),
            removable=removable,
        )
        return Disk(disk, volume, exports, seen)

    def _build_host_files(self, config: ServerConfig) -> Iterator[HostFile]:
        blocks = dict(config.block_devices)
        for name, device in config.devices:
            block = blocks[device.block_dev]
            if not Path(block.path).is_file():
                # Said once by vmmd at its start; with no CPU nobody could read it.
                continue
            # A guest would destroy what another one has mounted.
            lock = _locked(block.path, read_only=block.read_only) if self.hypervisor else None
            backend = FileBackend(
                Path(block.path),
                read_only=block.read_only,
                block_size=block.block_size,
                workers=block.workers,
            )
            path = PciPath.parse(device.pci_path)
            # Guests know a disk by it: the file's is made of the machine's and where it is.
            identity = uuid5(HOST_FILES, f"{self.spec.id} {path}")
            exports = Exports(backend, name, path, self._directory, identity, removable=False)
            kind = DEVICE_OF_DRIVER[device.driver]
            seen = _seen(name, kind, path, backend, exports, identity)
            yield HostFile(backend, exports, seen, lock)

    def _build_engine(self, config: ServerConfig) -> Engine:
        own = [each.seen for each in self._host_files]
        disks = [each.seen for each in self.disks.values()]
        bridges = tuple(
            (PciPath.parse(each.pci_path), each.downstream_bus) for each in config.bridges
        )
        if self.hypervisor is None:
            names = {str(disk.pci_path): disk.name for disk in disks}
            offered = [each for each in (*disks, *own) if each.device is DiskDevice.NVME]
            return BuiltInEngine(self.spec.memory_mib, offered, names, self.console, bridges)
        bootrom = config.bootrom
        board = Board(
            name=self.spec.name or self.spec.id,
            cpus=self.spec.cpus,
            memory_mib=self.spec.memory_mib,
            console_socket=str(self._directory / "console.sock"),
            monitor_socket=str(self._directory / "qmp.sock"),
            bootrom=bootrom,
            bootrom_bytes=Path(bootrom).stat().st_size if bootrom else 0,
            bridges=bridges,
        )
        return QemuEngine(
            self.hypervisor, board, [*own, *disks], self.console, serves_vfio_user=is_served()
        )

    @property
    def guest(self) -> GuestSystem:
        """The built-in guest; UnsupportedError where the machine runs one of the user's."""
        if isinstance(self.engine, BuiltInEngine):
            return self.engine.guest
        raise UnsupportedError(
            "workloads are of the built-in guest, and this machine runs a guest of its own "
            '(engine "qemu"): use its console, `stairwell serial`',
            reason="NO_BUILT_IN_GUEST",
        )

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
        for disk in self.disks.values():
            await disk.exports.start(disk.spec.name)
        if self.hypervisor is not None:
            for file in self._host_files:
                await file.exports.start(file.seen.name)
        await self.engine.start()
        self._running = True

    async def reset(self) -> None:
        """A reboot: the devices as after power-on, the volumes untouched."""
        await self.engine.reset()

    async def halt(self) -> None:
        """Ends everything; what does not end in time is left, and said."""
        self._running = False
        self._halting.set()
        await self.engine.halt()
        # What was being plugged or unplugged has lost its guest, and ends.
        async with self._plugging:
            await asyncio.gather(*(self._end_disk(disk) for disk in self.disks.values()))
        for file in self._host_files:
            await file.exports.stop()
            file.close()
        self.console.close()

    async def _end_disk(self, disk: Disk) -> None:
        await disk.exports.stop()
        await self._deactivate(disk)

    async def _deactivate(self, disk: Disk) -> None:
        try:
            await asyncio.wait_for(disk.volume.deactivate(), DEACTIVATE_SECONDS)
        except (StairwellError, TimeoutError) as error:
            log.warning("volume not deactivated cleanly", disk=disk.spec.name, reason=str(error))
        finally:
            await disk.volume.close()

    # --- while it runs

    def _require_running(self, what: str) -> None:
        if not self._running:
            raise StateError(f"{what} needs a running machine", reason="NOT_RUNNING")

    async def signal(self, signal: GuestSignal) -> None:
        """Presses a button; UnsupportedError without a processor."""
        self._require_running(f"the {signal.value}")
        await self.engine.signal(signal)

    async def plug(self, spec: DiskSpec) -> None:
        """One more disk: active and served before the guest sees it. StairwellError when it cannot
        be, and then nothing of it is left."""
        async with self._plugging:
            self._require_running("a new disk")
            self._check_room(spec)
            self.engine.require_plugging(spec.name)
            volume = await _opened("disk", spec, self._tracing, self.confinement)
            disk = self._build_disk(replace(spec, removable=True), volume)
            try:
                await self._activate(volume)
                await disk.exports.start(spec.name)
                await self.engine.plug(disk.seen)
            except BaseException:
                await self._end_disk(disk)
                raise
            self.disks[spec.name] = disk

    async def _activate(self, volume: Volume) -> None:
        """Activates it; StateError when the machine ends first, since that may take for ever."""
        activating = asyncio.create_task(volume.activate())
        halting = asyncio.create_task(self._halting.wait())
        try:
            await asyncio.wait({activating, halting}, return_when=asyncio.FIRST_COMPLETED)
            if not activating.done():
                text = "the machine ended before the disk was active"
                raise StateError(text, reason="MACHINE_ENDED")
            await activating
        finally:
            for task in (activating, halting):
                task.cancel()
            await asyncio.gather(activating, halting, return_exceptions=True)

    def _check_room(self, spec: DiskSpec) -> None:
        wrong = tuple(spec.violations("disk"))
        if wrong:
            told = "; ".join(f"{v.field}: {v.description}" for v in wrong)
            raise InvalidRequestError(told, wrong)
        check_path(spec.pci_path, "disk.pci_path")
        if spec.name in self.disks:
            raise AlreadyExistsError(f"the machine has a disk {spec.name!r}", reason="DISK_EXISTS")
        if len(self.disks) >= DISKS_MAX:
            raise StateError(f"the machine has {DISKS_MAX} disks already", reason="DISKS_FULL")
        own = [each.seen for each in self._host_files]
        for disk in (*own, *(each.seen for each in self.disks.values())):
            if disk.pci_path == spec.pci_path:
                raise AlreadyExistsError(
                    f"{spec.pci_path} is taken by {disk.name!r}", reason="PCI_PATH_TAKEN"
                )

    async def unplug(self, name: str) -> None:
        """Returns once the guest has let the disk go and what it flushed is durable."""
        async with self._plugging:
            self._require_running("the unplugging of a disk")
            disk = self.disk(name)
            await self.engine.unplug(disk.seen)
            del self.disks[disk.spec.name]
            await self._end_disk(disk)


def _seen(
    name: str,
    device: DiskDevice,
    path: PciPath,
    backend: Backend,
    exports: Exports,
    namespace_uuid: UUID,
) -> EngineDisk:
    return EngineDisk(
        name=name,
        device=device,
        pci_path=path,
        backend=backend,
        nbd_socket=str(exports.nbd_socket),
        vhost_user_socket=exports.vhost_user.path,
        vfio_user_socket=exports.vfio_user.path,
        namespace_uuid=namespace_uuid,
    )


def _locked(path: str, *, read_only: bool) -> int:
    """A descriptor that keeps other machines from writing to the file; StateError when one has
    it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StateError(
            f"{path} is another machine's disk at present: give each host of guests images of "
            "their own, or make it readonly",
            reason="IMAGE_IN_USE",
        ) from error
    return descriptor


def check_for_engine(spec: MachineSpec, config: ServerConfig) -> None:
    """InvalidRequestError or UnavailableError names what the host's engine cannot give."""
    if config.engine is not EngineName.QEMU:
        for index, disk in enumerate(spec.disks):
            if DiskDevice(disk.device) is DiskDevice.VIRTIO:
                text = 'the device "virtio" needs engine = "qemu" in the host\'s configuration'
                field = f"spec.disks[{index}].device"
                raise InvalidRequestError(f"{field}: {text}", (FieldViolation(field, text),))
        return
    if spec.memory_mib < MEMORY_MIB_MIN:
        text = f"{spec.memory_mib} is too little for a guest: {MEMORY_MIB_MIN} MiB at least"
        raise InvalidRequestError(
            f"spec.memory_mib: {text}", (FieldViolation("spec.memory_mib", text),)
        )
    for index, disk in enumerate(spec.disks):
        check_path(disk.pci_path, f"spec.disks[{index}].pci_path")
    check_host(config)


async def _opened(field: str, disk: DiskSpec, tracing: Tracing, confinement: Confinement) -> Volume:
    """StairwellError names the disk and, below `field`, what of its request will not do."""
    try:
        confinement.check(disk.construction)
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
                replace(each, field=join_path(f"{field}.{CONSTRUCTION}", each.field))
                for each in error.violations
            )
        raise
