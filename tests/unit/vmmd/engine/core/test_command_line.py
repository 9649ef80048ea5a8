"""QEMU's command line: what a machine with each kind of disk is started and plugged with."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from stairlib.model.errors import InvalidRequestError
from vmmd.core.pci_path import PciPath
from vmmd.engine.core.command_line import (
    AttachedDisk,
    Board,
    check_bootrom,
    check_path,
    command_line,
    plug_commands,
    unplug_commands,
)
from vmmd.engine.core.hypervisor import Accelerator, Hypervisor, Transport

TCG = Hypervisor("qemu", "7.2.22", Accelerator.TCG, "")
KVM = Hypervisor("qemu", "7.2.22", Accelerator.KVM, "")
BOARD = Board("one, two", 2, 512, "/run/c,1.sock", "/run/q.sock", "/fw/OVMF.fd", 30 << 16)


def disk(transport: Transport, path: str = "0.19.0") -> AttachedDisk:
    return AttachedDisk(
        name="a-disk-with-a-name-of-31-letters",
        transport=transport,
        pci_path=PciPath.parse(path),
        socket="/run/disk.sock",
        block_size=4096,
        nbd_export="a-disk-with-a-name-of-31-letters",
    )


def after(words: list[str], option: str) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words[:-1]) if word == option]


def test_a_machine_stands_still_and_its_memory_is_shared() -> None:
    words = command_line(TCG, BOARD, [], 2)
    assert words[0] == "qemu"
    assert "-S" in words
    assert after(words, "-object") == ["memory-backend-memfd,id=ram,size=512M,share=on"]
    assert after(words, "-machine") == ["pc,memory-backend=ram"]
    assert (after(words, "-accel"), after(words, "-cpu")) == (["tcg"], ["max"])
    assert after(words, "-name") == ["guest=one,, two"]
    assert after(words, "-bios") == ["/fw/OVMF.fd"]
    assert "socket,id=console,path=/run/c,,1.sock,server=off" in after(words, "-chardev")
    assert "pvpanic" in after(words, "-device")
    assert after(command_line(KVM, BOARD, [], 2), "-cpu") == ["host"]


def test_firmware_that_is_no_multiple_of_64_kib_goes_into_flash() -> None:
    board = Board("one", 1, 512, "c", "q", "/fw/OVMF_4M.fd", 3653632)
    words = command_line(TCG, board, [], 1)
    assert not after(words, "-bios")
    assert after(words, "-drive") == ["if=pflash,format=raw,readonly=on,unit=0,file=/fw/OVMF_4M.fd"]


def test_an_nvme_disk_over_nbd() -> None:
    words = command_line(TCG, BOARD, [disk(Transport.NBD)], 2)
    node = json.loads(after(words, "-blockdev")[0])
    device = json.loads(after(words, "-device")[-1])
    assert node["server"] == {"type": "unix", "path": "/run/disk.sock"}
    assert node["discard"] == "unmap"
    assert device["drive"] == node["node-name"] == device["id"] == "disk-0.19.0"
    # QEMU writes devices in hexadecimal, and a serial number has 20 characters.
    assert (device["bus"], device["addr"]) == ("pci.0", "13.0")
    assert device["serial"] == "a-disk-with-a-name-o"
    assert device["logical_block_size"] == 4096


def test_a_virtio_disk_by_vhost_user() -> None:
    words = command_line(TCG, BOARD, [disk(Transport.VHOST_USER)], 16)
    assert "socket,id=disk-0.19.0,path=/run/disk.sock,server=off" in after(words, "-chardev")
    device = json.loads(after(words, "-device")[-1])
    assert (device["driver"], device["num-queues"]) == ("vhost-user-blk-pci", 4)


def test_an_nvme_disk_by_vfio_user() -> None:
    ((name, device),) = plug_commands(disk(Transport.VFIO_USER, "0.4.0"), 2)
    assert name == "device_add"
    assert device["driver"] == "vfio-user-pci"
    assert device["socket"] == {"type": "unix", "path": "/run/disk.sock"}
    # Its own default makes an answer later than 5 s fatal.
    assert device["x-msg-timeout"] == 60_000
    assert device["addr"] == "4.0"


@pytest.mark.parametrize(
    ("transport", "plug", "unplug"),
    [
        (Transport.NBD, ["blockdev-add", "device_add"], ["blockdev-del"]),
        (Transport.VHOST_USER, ["chardev-add", "device_add"], ["chardev-remove"]),
        (Transport.VFIO_USER, ["device_add"], []),
    ],
)
def test_what_is_plugged_is_taken_away_again(
    transport: Transport, plug: list[str], unplug: list[str]
) -> None:
    assert [name for name, _ in plug_commands(disk(transport), 2)] == plug
    assert [name for name, _ in unplug_commands(disk(transport))] == unplug


def test_a_disk_behind_a_bridge_is_on_the_bridges_bus() -> None:
    bridges = ((PciPath(0, 18, 0), 1), (PciPath(1, 2, 0), 2))
    words = command_line(TCG, replace(BOARD, bridges=bridges), [disk(Transport.NBD, "2.4.0")], 2)
    devices = [json.loads(word) for word in after(words, "-device") if word.startswith("{")]
    assert [(each["driver"], each["id"], each["bus"], each["addr"]) for each in devices] == [
        ("pci-bridge", "pci.1", "pci.0", "12.0"),
        ("pci-bridge", "pci.2", "pci.1", "2.0"),
        ("nvme", "disk-2.4.0", "pci.2", "4.0"),
    ]
    check_path(PciPath(2, 0, 0), "dev.d.pci-path", {0, 1, 2})


@pytest.mark.parametrize("path", ["1.4.0", "0.0.0", "0.1.3", "0.4.1"])
def test_where_the_board_has_no_room(path: str) -> None:
    with pytest.raises(InvalidRequestError, match=path.replace(".", r"\.")):
        check_path(PciPath.parse(path), "disk.pci_path")


def test_the_disks_of_instances_and_the_walk_through_s_have_room() -> None:
    for path in ("0.4.0", *(f"0.{device}.0" for device in range(16, 24))):
        check_path(PciPath.parse(path), "disk.pci_path")


@pytest.mark.parametrize("size", [0, 100, 4097])
def test_what_is_no_firmware(size: int) -> None:
    with pytest.raises(InvalidRequestError, match="bootrom"):
        check_bootrom("/fw", size)
