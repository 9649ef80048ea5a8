"""Whether a host's configuration can boot anything with QEMU, before anything is booted."""

from __future__ import annotations

from pathlib import Path

from stairlib.model.errors import UnavailableError
from vmmd.core.pci_path import PciPath
from vmmd.core.server_config import ServerConfig
from vmmd.engine.core.command_line import check_bootrom, check_path


def check_host(config: ServerConfig) -> None:
    """InvalidRequestError names the key that the board has no place for; UnavailableError says
    where a bootrom is to be had."""
    buses = {0, *(bridge.downstream_bus for bridge in config.bridges)}
    for index, bridge in enumerate(config.bridges):
        check_path(PciPath.parse(bridge.pci_path), f"pci_bridge[{index}].pci-path", buses)
    for name, device in config.devices:
        check_path(PciPath.parse(device.pci_path), f"dev.{name}.pci-path", buses)
    if not config.bootrom:
        return
    try:
        with Path(config.bootrom).open("rb") as firmware:
            size = firmware.seek(0, 2)
    except OSError as error:
        raise UnavailableError(
            f"the bootrom {config.bootrom} cannot be read ({error.strerror}): Debian's package "
            "ovmf has one, /usr/share/OVMF/OVMF_CODE.fd",
            reason="BOOTROM_UNREADABLE",
        ) from error
    check_bootrom(config.bootrom, size)
