"""What is read off a QEMU, and by which way it gets each disk."""

from __future__ import annotations

import pytest

from vmmd.engine.core.hypervisor import (
    Accelerator,
    DiskDevice,
    Hypervisor,
    Transport,
    is_old,
    transport_of,
    version_of,
)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright", "7.2.22"),
        ("QEMU emulator version 11.1.3", "11.1.3"),
        ("no such thing", ""),
    ],
)
def test_the_version(text: str, version: str) -> None:
    assert version_of(text) == version


def test_which_versions_are_too_old() -> None:
    assert is_old("6.2.0")
    assert is_old("7.1")
    assert not is_old("7.2.22")
    assert not is_old("11.1.3")


@pytest.mark.parametrize(
    ("device", "vfio_user", "serves", "transport", "told"),
    [
        (DiskDevice.VIRTIO, False, False, Transport.VHOST_USER, "vhost-user"),
        (DiskDevice.VIRTIO, True, True, Transport.VHOST_USER, "vhost-user"),
        (DiskDevice.NVME, True, True, Transport.VFIO_USER, "own controller by vfio-user"),
        (DiskDevice.NVME, False, True, Transport.NBD, "QEMU 7.2.22 has no vfio-user"),
        (DiskDevice.NVME, True, False, Transport.NBD, "does not serve vfio-user"),
    ],
)
def test_the_way_of_each_disk(
    device: DiskDevice, vfio_user: bool, serves: bool, transport: Transport, told: str
) -> None:
    hypervisor = Hypervisor("qemu", "7.2.22", Accelerator.TCG, "no KVM", vfio_user)
    way, words = transport_of(device, hypervisor, serves_vfio_user=serves)
    assert way is transport
    assert told in words
