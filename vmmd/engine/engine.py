"""What a machine asks of its engine, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias
from uuid import UUID

from vmmd.block.backend import Backend
from vmmd.core.guest_events import GuestEvent, GuestSignal
from vmmd.core.pci_path import PciPath
from vmmd.engine.core.hypervisor import DiskDevice

OnEvent: TypeAlias = Callable[[GuestEvent, str], None]


@dataclass(frozen=True, slots=True)
class EngineDisk:
    """A disk as an engine gets it: the backend itself, and where its exports listen. No two disks
    of a machine have the same `namespace_uuid`, over a restart each has its own again."""

    name: str
    device: DiskDevice
    pci_path: PciPath
    backend: Backend
    nbd_socket: str
    vhost_user_socket: str
    vfio_user_socket: str
    namespace_uuid: UUID
    # As an NVMe controller by vfio-user it has MSI in place of MSI-X, and can be unplugged: QEMU
    # 11.1 aborts when one with MSI-X is.
    removable: bool = False


class Engine(Protocol):
    """Built with the machine's disks, started once, halted once. The volumes are active and their
    exports listen from before `start` to after `halt`."""

    # Told of what happens by itself; set by the machine before `start`.
    on_event: OnEvent

    def describe(self, disk: EngineDisk) -> str:
        """How the guest sees the disk; empty where that needs no words."""
        ...

    async def start(self) -> None:
        """Returns once the guest runs; StairwellError says what prevents it. May be cancelled."""
        ...

    async def reset(self) -> None:
        """A reset of the whole machine; returns once the guest starts anew. May be cancelled."""
        ...

    async def halt(self) -> None:
        """The end of the guest, also of a half-started one. Always ends."""
        ...

    async def signal(self, signal: GuestSignal) -> None:
        """UnsupportedError without a processor."""
        ...

    def require_plugging(self, name: str) -> None:
        """UnsupportedError when no disk, as the one of this name, can be plugged into it. Asked
        before the volume is opened, which takes it from whoever else has it."""
        ...

    async def plug(self, disk: EngineDisk) -> None:
        """One more disk for a running guest."""
        ...

    async def unplug(self, disk: EngineDisk) -> None:
        """Returns once the guest has let it go; UnavailableError when it does not."""
        ...
