"""QEMU's command line for a machine, and the commands that plug a disk into a running one.

The board is QEMU's `pc` (i440fx): host bridge at 0.0.0, ISA bridge at 0.1.0, power management at
0.1.3, all other devices of bus 0 free, and that bus takes and gives back devices while the guest
runs. So a disk sits at its `pci-path` whether it was there at the start or came later. Source:
reference propolis.md §2, §10; real-guests-and-containers.md §C, §E.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from stairlib.model.errors import FieldViolation, InvalidRequestError
from vmmd.core.pci_path import PciPath
from vmmd.engine.core.hypervisor import Accelerator, Hypervisor, Transport

# What the board has at these devices of bus 0.
BOARD_DEVICES = {0: "the host bridge", 1: "the chipset"}
# A firmware that is no multiple of this cannot end at 4 GiB by `-bios`; flash takes it.
BIOS_MULTIPLE = 64 << 10
FLASH_MULTIPLE = 4 << 10
VHOST_QUEUES_MAX = 4
# QEMU gives up a vfio-user device for good when one answer is later than this; its own default is
# 5 s.
VFIO_USER_ANSWER_MILLISECONDS = 60_000
SERIAL_CHARACTERS = 20
MEMORY_MIB_MIN = 64


@dataclass(frozen=True, slots=True)
class AttachedDisk:
    """A disk as QEMU gets it; `socket` is where its transport listens."""

    name: str
    transport: Transport
    pci_path: PciPath
    socket: str
    block_size: int
    read_only: bool = False
    nbd_export: str = ""

    @property
    def id(self) -> str:
        """Its id in QEMU: by place, since a name may hold anything."""
        return f"disk-{self.pci_path}"


@dataclass(frozen=True, slots=True)
class Board:
    """A machine but for its disks; sockets are listened on before QEMU starts."""

    name: str
    cpus: int
    memory_mib: int
    console_socket: str
    monitor_socket: str
    bootrom: str = ""
    bootrom_bytes: int = 0
    # Where each is, and the number of the bus behind it; each after those that it is behind.
    bridges: tuple[tuple[PciPath, int], ...] = ()


def check_path(path: PciPath, field: str, buses: Collection[int] = (0,)) -> None:
    """InvalidRequestError where the board, with these buses, has no room for a device."""
    why = ""
    if path.bus not in buses:
        why = f"{path} is on a bus that this machine does not have; it has {sorted(buses)}"
    elif path.bus == 0 and path.device in BOARD_DEVICES:
        why = f"{path} is where the board has {BOARD_DEVICES[path.device]}"
    elif path.function != 0:
        why = f"{path} is function {path.function}; a device is function 0 of its place"
    if why:
        raise InvalidRequestError(f"{field}: {why}", (FieldViolation(field, why),))


def check_bootrom(path: str, size: int) -> None:
    """InvalidRequestError when firmware of this many bytes cannot be one."""
    if size == 0 or size % FLASH_MULTIPLE:
        raise InvalidRequestError(
            f"the bootrom {path} has {size} bytes: firmware is a multiple of {FLASH_MULTIPLE}",
            (FieldViolation("bootrom", "is not a whole number of 4 KiB pages"),),
            reason="BAD_BOOTROM",
        )


def command_line(
    hypervisor: Hypervisor, board: Board, disks: Sequence[AttachedDisk], queues: int
) -> list[str]:
    """The whole command. The machine is made and stands still: `cont` lets it run."""
    kvm = hypervisor.accelerator is Accelerator.KVM
    words = [
        hypervisor.program,
        "-name", "guest=" + board.name.replace(",", ",,"),
        "-machine", "pc,memory-backend=ram",
        "-accel", hypervisor.accelerator.value, "-cpu", "host" if kvm else "max",
        "-object", f"memory-backend-memfd,id=ram,size={board.memory_mib}M,share=on",
        "-m", f"{board.memory_mib}M", "-smp", str(board.cpus),
        "-nodefaults", "-no-user-config", "-display", "none", "-S",
        # A guest that powers off leaves QEMU for us to end; a panic is told and nothing else.
        "-action", "shutdown=pause,panic=none,reboot=reset",
        *_socket("console", board.console_socket), "-serial", "chardev:console",
        *_socket("monitor", board.monitor_socket), "-mon", "chardev=monitor,mode=control",
        "-device", "pvpanic",
    ]  # fmt: skip
    words += _firmware(board)
    for path, bus in board.bridges:
        words += ["-device", json.dumps(_bridge(path, bus))]
    for disk in disks:
        for command, arguments in plug_commands(disk, queues):
            words += _as_option(command, arguments)
    return words


def _bridge(path: PciPath, bus: int) -> dict[str, Any]:
    # Without its own hot-plug controller, which would take the first place behind it.
    place = {"bus": _bus(path.bus), "addr": _address(path)}
    return {"driver": "pci-bridge", "id": _bus(bus), "chassis_nr": bus, "shpc": False, **place}


def _bus(number: int) -> str:
    """QEMU's name of a bus: its own of the first one, and of others the id of their bridge."""
    return f"pci.{number}"


def _address(path: PciPath) -> str:
    # QEMU writes devices in hexadecimal.
    return f"{path.device:x}.{path.function}"


def _socket(identity: str, path: str) -> list[str]:
    """A connection to a socket that is listened on."""
    text = path.replace(",", ",,")
    return ["-chardev", f"socket,id={identity},path={text},server=off"]


def _firmware(board: Board) -> list[str]:
    if not board.bootrom:
        return []
    if board.bootrom_bytes % BIOS_MULTIPLE == 0:
        return ["-bios", board.bootrom]
    path = board.bootrom.replace(",", ",,")
    return ["-drive", f"if=pflash,format=raw,readonly=on,unit=0,file={path}"]


Command = tuple[str, dict[str, Any]]


def plug_commands(disk: AttachedDisk, queues: int) -> list[Command]:
    """What plugs a disk into a running machine, in order: monitor commands with arguments."""
    if disk.transport is Transport.VHOST_USER:
        address = {"type": "unix", "data": {"path": disk.socket}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        device = {
            "driver": "vhost-user-blk-pci",
            "chardev": disk.id,
            "num-queues": max(1, min(queues, VHOST_QUEUES_MAX)),
        }
        return [
            ("chardev-add", {"id": disk.id, "backend": backend}),
            ("device_add", {**device, **_place(disk)}),
        ]
    if disk.transport is Transport.VFIO_USER:
        device = {
            "driver": "vfio-user-pci",
            "socket": {"type": "unix", "path": disk.socket},
            "x-msg-timeout": VFIO_USER_ANSWER_MILLISECONDS,
        }
        return [("device_add", {**device, **_place(disk)})]
    node = {
        "driver": "nbd",
        "node-name": disk.id,
        "server": {"type": "unix", "path": disk.socket},
        "export": disk.nbd_export,
        "discard": "unmap",
        "read-only": disk.read_only,
    }
    device = {
        "driver": "nvme",
        "drive": disk.id,
        "serial": disk.name[:SERIAL_CHARACTERS],
        "logical_block_size": disk.block_size,
        "physical_block_size": disk.block_size,
        "write-cache": "on",
    }
    return [("blockdev-add", node), ("device_add", {**device, **_place(disk)})]


def unplug_commands(disk: AttachedDisk) -> list[Command]:
    """What is left to take away once the guest has let the device go."""
    if disk.transport is Transport.VHOST_USER:
        return [("chardev-remove", {"id": disk.id})]
    if disk.transport is Transport.NBD:
        return [("blockdev-del", {"node-name": disk.id})]
    return []


def _place(disk: AttachedDisk) -> dict[str, str]:
    path = disk.pci_path
    return {"id": disk.id, "bus": _bus(path.bus), "addr": _address(path)}


def _as_option(command: str, arguments: dict[str, Any]) -> list[str]:
    """The command-line form of a monitor command."""
    if command == "chardev-add":
        path = arguments["backend"]["data"]["addr"]["data"]["path"]
        return _socket(arguments["id"], path)
    option = {"blockdev-add": "-blockdev", "device_add": "-device"}[command]
    return [option, json.dumps(arguments)]
