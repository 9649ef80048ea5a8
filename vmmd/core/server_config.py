"""The machine host's configuration, as the walk-through's server.toml writes it.

    bootrom = "PATH"             # firmware, used by an engine that boots a guest
    engine = "qemu"              # or "none": devices run, no CPU. Left out: QEMU where it is
                                 # installed and the bootrom is there, none elsewhere

    file_directories = ["PATH"]  # files of requests, and those named here, are below one of these

    [[pci_bridge]]               # a bus behind a bridge, for devices of this host
    pci-path = "0.5.0"
    downstream-bus = 1           # devices behind it: "1.4.0"

    [block_dev.NAME]             # a backend
    type = "file"
    path = "PATH"
    readonly = false
    block_size = 512

    [dev.NAME]                   # a device of every machine on this host
    driver = "pci-nvme"
    block_dev = "NAME"
    pci-path = "0.4.0"

An unknown key is an error that names it. Text comes in, values go out: nothing is opened here.
"""

from __future__ import annotations

import enum
import json
import tomllib
from dataclasses import asdict, dataclass
from typing import Any

from stairlib.model.errors import FieldViolation, InvalidRequestError
from vmmd.core.pci_path import PciPath
from vmmd.engine.core.hypervisor import DiskDevice

TOP_KEYS = {
    "bootrom", "bootrom_version", "engine", "block_dev", "dev", "file_directories", "pci_bridge",
}  # fmt: skip
BRIDGE_KEYS = {"pci-path", "downstream-bus"}
BUSES_BEHIND_BRIDGES = range(1, 256)
BLOCK_KEYS = {"type", "path", "readonly", "block_size", "workers"}
DEVICE_KEYS = {"driver", "block_dev", "pci-path"}
DEVICE_OF_DRIVER = {"pci-nvme": DiskDevice.NVME, "pci-virtio-block": DiskDevice.VIRTIO}
WORKERS_MAX = 32
# 0.16.0 to 0.23.0 belong to the disks of the instance (slot 0 to 7).
DISK_DEVICES = range(16, 24)


class EngineName(enum.Enum):
    """What runs the machine's CPU."""

    NONE = "none"
    QEMU = "qemu"


@dataclass(frozen=True, slots=True)
class FileBlockDevice:
    """A file as a block device; block_size in bytes."""

    path: str
    read_only: bool = False
    block_size: int = 512
    workers: int = 8


@dataclass(frozen=True, slots=True)
class HostDevice:
    """A device of every machine, over one block device."""

    driver: str
    block_dev: str
    pci_path: str


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge of every machine, and the number of the bus behind it in pci-paths."""

    pci_path: str
    downstream_bus: int


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What a host gives to each of its machines."""

    engine: EngineName = EngineName.NONE
    # False: the host is to choose.
    engine_named: bool = False
    bootrom: str = ""
    # None: any; empty: none.
    file_directories: tuple[str, ...] | None = None
    # Whether members on other hosts may be spoken to without TLS.
    plain_text: bool = False
    block_devices: tuple[tuple[str, FileBlockDevice], ...] = ()
    devices: tuple[tuple[str, HostDevice], ...] = ()
    # Each after those that it is behind.
    bridges: tuple[Bridge, ...] = ()

    def to_json(self) -> str:
        """For the machine process; `from_json` reads it back."""
        return json.dumps({**asdict(self), "engine": self.engine.value})

    @classmethod
    def from_json(cls, text: str) -> ServerConfig:
        """What `to_json` wrote."""
        data = json.loads(text)
        return cls(
            engine=EngineName(data["engine"]),
            engine_named=data["engine_named"],
            bootrom=data["bootrom"],
            file_directories=(
                None if data["file_directories"] is None else tuple(data["file_directories"])
            ),
            plain_text=data["plain_text"],
            block_devices=tuple((n, FileBlockDevice(**d)) for n, d in data["block_devices"]),
            devices=tuple((n, HostDevice(**d)) for n, d in data["devices"]),
            bridges=tuple(Bridge(**bridge) for bridge in data["bridges"]),
        )


class _Reader:
    """Collects every problem before it complains, so that one run shows them all."""

    def __init__(self) -> None:
        self.violations: list[FieldViolation] = []

    def refuse(self, field: str, description: str) -> None:
        self.violations.append(FieldViolation(field, description))

    def table(self, value: Any, field: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        self.refuse(field, "must be a table")
        return {}

    def unknown(self, table: dict[str, Any], known: set[str], prefix: str) -> None:
        for key in table:
            if key not in known:
                self.refuse(
                    f"{prefix}{key}",
                    f"unknown key; known here: {', '.join(sorted(known))}",
                )

    def typed(self, table: dict[str, Any], key: str, prefix: str, kind: type, default: Any) -> Any:
        if key not in table:
            if default is None:
                self.refuse(f"{prefix}{key}", "is required")
            return kind() if default is None else default
        value = table[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.refuse(f"{prefix}{key}", f"must be {_KIND_NAMES[kind]}, not {value!r}")
            return kind()
        return value


_KIND_NAMES: dict[type, str] = {str: "a string", bool: "true or false", int: "a whole number"}


def parse_server_config(text: str, *, source: str = "server.toml") -> ServerConfig:
    """Reads a server.toml; InvalidRequestError names every wrong or unknown key."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequestError(f"{source} is not TOML: {error}", reason="NOT_TOML") from error
    reader = _Reader()
    reader.unknown(data, TOP_KEYS, "")
    engine = _engine(reader, reader.typed(data, "engine", "", str, "none"))
    bootrom = reader.typed(data, "bootrom", "", str, "")
    blocks = {
        name: _block_device(reader, reader.table(value, f"block_dev.{name}"), f"block_dev.{name}.")
        for name, value in reader.table(data.get("block_dev", {}), "block_dev").items()
    }
    devices = {
        name: _device(reader, reader.table(value, f"dev.{name}"), f"dev.{name}.", set(blocks))
        for name, value in reader.table(data.get("dev", {}), "dev").items()
    }
    bridges = _bridges(reader, data)
    _check_paths(reader, bridges, devices)
    directories = _directories(reader, data)
    if reader.violations:
        listed = "; ".join(f"{v.field}: {v.description}" for v in reader.violations)
        raise InvalidRequestError(
            f"{source}: {listed}", tuple(reader.violations), reason="BAD_CONFIGURATION"
        )
    return ServerConfig(
        engine=engine,
        engine_named="engine" in data,
        bootrom=bootrom,
        file_directories=directories,
        block_devices=tuple(blocks.items()),
        devices=tuple(devices.items()),
        bridges=tuple(bridges),
    )


def _bridges(reader: _Reader, data: dict[str, Any]) -> list[Bridge]:
    value = data.get("pci_bridge", [])
    if not isinstance(value, list):
        reader.refuse("pci_bridge", "must be tables, as [[pci_bridge]]")
        return []
    found: list[Bridge] = []
    buses = {0}
    for index, each in enumerate(value):
        prefix = f"pci_bridge[{index}]."
        table = reader.table(each, prefix.removesuffix("."))
        reader.unknown(table, BRIDGE_KEYS, prefix)
        path = _pci_path(reader, table, prefix)
        bus = reader.typed(table, "downstream-bus", prefix, int, None)
        if bus not in BUSES_BEHIND_BRIDGES or bus in buses:
            reader.refuse(f"{prefix}downstream-bus", "must be from 1 to 255, and no other bridge's")
        if path and PciPath.parse(path).bus not in buses:
            reader.refuse(
                f"{prefix}pci-path", f"{path}: no bridge before it has that bus behind it"
            )
        buses.add(bus)
        found.append(Bridge(path, bus))
    return found


def _pci_path(reader: _Reader, table: dict[str, Any], prefix: str) -> str:
    """Canonical; empty when there is none, which was told."""
    text = reader.typed(table, "pci-path", prefix, str, None)
    try:
        return str(PciPath.parse(text)) if text else ""
    except InvalidRequestError as error:
        reader.refuse(f"{prefix}pci-path", error.message)
        return ""


def _directories(reader: _Reader, data: dict[str, Any]) -> tuple[str, ...] | None:
    if "file_directories" not in data:
        return None
    value = data["file_directories"]
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        reader.refuse("file_directories", 'must be a list of paths, as ["/var/lib/images"]')
        return ()
    return tuple(value)


def _engine(reader: _Reader, value: str) -> EngineName:
    try:
        return EngineName(value)
    except ValueError:
        known = ", ".join(f'"{engine.value}"' for engine in EngineName)
        reader.refuse("engine", f'"{value}" is not offered by this version; it has {known}')
        return EngineName.NONE


def _block_device(reader: _Reader, table: dict[str, Any], prefix: str) -> FileBlockDevice:
    reader.unknown(table, BLOCK_KEYS, prefix)
    kind = reader.typed(table, "type", prefix, str, None)
    if kind and kind != "file":
        reader.refuse(f"{prefix}type", f'"{kind}" is not known; use "file"')
    path = reader.typed(table, "path", prefix, str, None)
    block_size = reader.typed(table, "block_size", prefix, int, 512)
    if block_size not in (512, 4096):
        reader.refuse(f"{prefix}block_size", "must be 512 or 4096 bytes")
    workers = reader.typed(table, "workers", prefix, int, 8)
    if not 1 <= workers <= WORKERS_MAX:
        reader.refuse(f"{prefix}workers", f"must be from 1 to {WORKERS_MAX}")
    return FileBlockDevice(
        path, reader.typed(table, "readonly", prefix, bool, default=False), block_size, workers
    )


def _device(reader: _Reader, table: dict[str, Any], prefix: str, blocks: set[str]) -> HostDevice:
    reader.unknown(table, DEVICE_KEYS, prefix)
    driver = reader.typed(table, "driver", prefix, str, None)
    if driver and driver not in DEVICE_OF_DRIVER:
        known = ", ".join(DEVICE_OF_DRIVER)
        reader.refuse(f"{prefix}driver", f'"{driver}" is not known; use {known}')
    block_dev = reader.typed(table, "block_dev", prefix, str, None)
    if block_dev and block_dev not in blocks:
        reader.refuse(f"{prefix}block_dev", f"there is no [block_dev.{block_dev}]")
    return HostDevice(driver, block_dev, _pci_path(reader, table, prefix))


def _check_paths(reader: _Reader, bridges: list[Bridge], devices: dict[str, HostDevice]) -> None:
    placed = [(f"pci_bridge[{index}]", each.pci_path) for index, each in enumerate(bridges)]
    placed += [(f"dev.{name}", device.pci_path) for name, device in devices.items()]
    buses = {0, *(bridge.downstream_bus for bridge in bridges)}
    taken: dict[str, str] = {}
    for name, text in placed:
        if not text:
            continue
        field = f"{name}.pci-path"
        if text in taken:
            reader.refuse(field, f"{text} is also {taken[text]}'s")
        taken[text] = name
        path = PciPath.parse(text)
        if path.bus == 0 and path.device in DISK_DEVICES:
            reader.refuse(field, "0.16.0 to 0.23.0 are kept for the disks of instances")
        elif path.bus not in buses and name.startswith("dev."):
            reader.refuse(field, f"{text}: there is no [[pci_bridge]] with that downstream-bus")
