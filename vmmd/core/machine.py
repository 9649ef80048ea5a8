"""What a machine is asked to be, and what is known of one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from stairlib.model.construction import Construction
from stairlib.model.errors import FieldViolation, InvalidRequestError
from vmmd.core.lifecycle import Published
from vmmd.core.pci_path import PciPath
from vmmd.engine.core.hypervisor import DiskDevice, Hypervisor

DISKS_MAX = 8
DEVICES = tuple(device.value for device in DiskDevice)

# It names a directory, too.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """One replicated disk of a machine."""

    device: str
    name: str
    read_only: bool
    pci_path: PciPath
    construction: Construction
    # Seconds until two members of a region serve without the third; 0 = never.
    activate_with_two_after: float = 0.0
    # Plugged into a machine that ran, this one or the one it was before it was made again.
    removable: bool = False

    def violations(self, field: str) -> Iterator[FieldViolation]:
        """What is wrong with the disk by itself."""
        if self.device not in DEVICES:
            text = f'"{self.device}" is not one of: {", ".join(DEVICES)}'
            yield FieldViolation(f"{field}.device", text)
        if not self.name:
            yield FieldViolation(f"{field}.name", "must be given")
        if self.activate_with_two_after < 0:
            yield FieldViolation(f"{field}.activate_with_two_after", "must not be negative")


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A machine to be; memory in MiB."""

    id: str
    name: str
    cpus: int
    memory_mib: int
    disks: tuple[DiskSpec, ...]

    def check(self) -> None:
        """InvalidRequestError names every field that cannot be."""
        found = []
        if not _ID.fullmatch(self.id):
            text = "a machine needs an id: 1 to 64 letters, digits, '.', '_', '-'"
            found.append(FieldViolation("spec.id", text))
        if len(self.disks) > DISKS_MAX:
            found.append(FieldViolation("spec.disks", f"at most {DISKS_MAX} disks"))
        names: set[str] = set()
        paths: set[PciPath] = set()
        for index, disk in enumerate(self.disks):
            field = f"spec.disks[{index}]"
            found += disk.violations(field)
            if disk.name in names:
                found.append(FieldViolation(f"{field}.name", "is another disk's, too"))
            if disk.pci_path in paths:
                found.append(FieldViolation(f"{field}.pci_path", f"{disk.pci_path} is taken"))
            names.add(disk.name)
            paths.add(disk.pci_path)
        if found:
            raise InvalidRequestError(
                "; ".join(f"{v.field}: {v.description}" for v in found), tuple(found)
            )


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """A machine as its watchers see it."""

    id: str
    name: str
    engine: str
    disks: tuple[str, ...]
    published: Published
    process_id: int = 0
    hypervisor: Hypervisor | None = None
