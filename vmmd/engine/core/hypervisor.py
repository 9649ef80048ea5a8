"""What is known of this host's QEMU, and by which way it gets each disk.

QEMU reaches a disk in one of three ways. Virtio disks go by vhost-user: rings in the guest's
memory, served by the machine's process. NVMe disks go by vfio-user, the machine's own controller,
where QEMU speaks that (10.1 and later, and built with it: "-device help" tells, versions do not);
elsewhere QEMU emulates its own controller, over the disk's NBD export.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

_VERSION = re.compile(r"version (\d+(?:\.\d+)*)")
OLDEST = (7, 2)
VFIO_USER_DEVICE = "vfio-user-pci"


class Accelerator(enum.Enum):
    """What runs the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


class Transport(enum.Enum):
    """How a disk reaches the guest."""

    VHOST_USER = "vhost-user"
    VFIO_USER = "vfio-user"
    NBD = "nbd"


class DiskDevice(enum.Enum):
    """What the guest sees; the values are those of a disk's specification."""

    NVME = "nvme"
    VIRTIO = "virtio"


@dataclass(frozen=True, slots=True)
class Hypervisor:
    """A QEMU that was looked at. `accelerator_reason` says how the accelerator was chosen."""

    program: str
    version: str
    accelerator: Accelerator
    accelerator_reason: str
    vfio_user: bool = False


def version_of(text: str) -> str:
    """The version in what `--version` prints; empty when there is none."""
    found = _VERSION.search(text)
    return found.group(1) if found else ""


def is_old(version: str) -> bool:
    """Whether a version is below OLDEST."""
    return tuple(map(int, version.split(".")[:2])) < OLDEST


def transport_of(
    device: DiskDevice, hypervisor: Hypervisor, *, serves_vfio_user: bool
) -> tuple[Transport, str]:
    """The way of a disk, and the sentence that tells users of it. `serves_vfio_user`: whether this
    machine's process offers its controllers that way."""
    if device is DiskDevice.VIRTIO:
        return Transport.VHOST_USER, "virtio-blk, by vhost-user"
    if hypervisor.vfio_user and serves_vfio_user:
        return Transport.VFIO_USER, "NVMe, the machine's own controller by vfio-user"
    why = (
        "this vmmd does not serve vfio-user"
        if hypervisor.vfio_user
        else f"QEMU {hypervisor.version} has no vfio-user (10.1 and later do)"
    )
    return Transport.NBD, f"NVMe, QEMU's own controller over the NBD export, since {why}"
