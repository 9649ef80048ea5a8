"""Which engine this host's machines have, and with which hypervisor. Looked at once, at the start.

A configuration that names "qemu" gets it or an error. One that names none gets QEMU where it would
boot something: QEMU is installed, the bootrom is there, and so is every medium.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from stairlib.model.errors import InvalidRequestError, StairwellError
from stairlib.telemetry.logs import get_logger
from vmmd.config import missing_media
from vmmd.core.server_config import EngineName, ServerConfig
from vmmd.engine import probe
from vmmd.engine.core.hypervisor import Hypervisor
from vmmd.engine.host_check import check_host

log = get_logger(__name__)


async def choose_engine(config: ServerConfig) -> tuple[ServerConfig, Hypervisor | None]:
    """The configuration with its engine, and the hypervisor unless that is "none".

    UnavailableError when "qemu" is named and it, or the bootrom, is not there; InvalidRequestError
    when a medium is missing, or the board has no place for a device.
    """
    if config.engine_named:
        return config, None if config.engine is EngineName.NONE else await _hypervisor(config)
    found, why = None, _why_not(config)
    if not why:
        try:
            found = await _hypervisor(config)
        except StairwellError as error:
            why = error.message
    log.info("engine chosen", engine="qemu" if found else "none", why=why or "it can boot")
    engine = EngineName.QEMU if found else EngineName.NONE
    return dataclasses.replace(config, engine=engine, engine_named=True), found


async def _hypervisor(config: ServerConfig) -> Hypervisor:
    """That of this host, which has all that the configuration boots from."""
    check_host(config)
    missing = missing_media(config)
    if missing:
        listed = "; ".join(f"block_dev.{name}: no such file: {b.path}" for name, b in missing)
        raise InvalidRequestError(
            f'engine "qemu" boots from what the configuration names: {listed}',
            reason="MEDIA_MISSING",
        )
    return await probe.look()


def _why_not(config: ServerConfig) -> str:
    """Why a host that names no engine has none; empty when it can have QEMU."""
    if not config.bootrom:
        return "the configuration names no bootrom"
    if not Path(config.bootrom).is_file():
        return f"there is no bootrom {config.bootrom}"
    missing = missing_media(config)
    if missing:
        return f"there is no {missing[0][1].path}"
    if not probe.is_installed():
        return f"{probe.PROGRAM} is not installed"
    return ""
