"""Which engine a configuration comes to, and what it says where it cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from stairlib.model.errors import InvalidRequestError, UnavailableError
from vmmd.core.server_config import EngineName, ServerConfig, parse_server_config
from vmmd.engine import probe
from vmmd.engine.host_check import check_host
from vmmd.supervisor.engine_choice import choose_engine

IMAGE = """
bootrom = "{rom}"
[block_dev.u]
type = "file"
path = "{image}"
[dev.block0]
driver = "pci-virtio-block"
block_dev = "u"
pci-path = "{place}"
"""


def config(folder: Path, place: str = "0.4.0", engine: str = "") -> ServerConfig:
    text = IMAGE.format(rom=folder / "rom", image=folder / "image", place=place)
    return parse_server_config((f'engine = "{engine}"\n' if engine else "") + text)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A host without QEMU."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


async def test_what_cannot_boot_has_no_engine_unless_it_insists(nowhere: Path) -> None:
    assert not probe.is_installed()
    (nowhere / "rom").write_bytes(bytes(4096))
    (nowhere / "image").touch()
    for given in (ServerConfig(), config(nowhere)):
        chosen, hypervisor = await choose_engine(given)
        assert (chosen.engine, hypervisor) == (EngineName.NONE, None)
    with pytest.raises(UnavailableError, match=r"install it \(Debian: qemu-system-x86") as caught:
        await choose_engine(config(nowhere, engine="qemu"))
    assert caught.value.reason == "QEMU_MISSING"


@pytest.mark.parametrize(("version", "place"), [("6.2.0", "0.4.0"), ("7.2.22", "0.1.0")])
async def test_a_host_whose_qemu_will_not_do_starts_all_the_same(
    nowhere: Path, version: str, place: str
) -> None:
    """It names no engine: QEMU is too old, or its board has no place for a device."""
    (nowhere / "rom").write_bytes(bytes(4096))
    (nowhere / "image").touch()
    (nowhere / "bin").mkdir()
    qemu = nowhere / "bin" / probe.PROGRAM
    qemu.write_text(f"#!/bin/sh\necho QEMU emulator version {version}\n")
    qemu.chmod(0o755)
    chosen, hypervisor = await choose_engine(config(nowhere, place))
    assert (chosen.engine, hypervisor) == (EngineName.NONE, None)
    with pytest.raises((UnavailableError, InvalidRequestError)):
        await choose_engine(config(nowhere, place, engine="qemu"))


async def test_media_that_are_not_there_are_named(nowhere: Path) -> None:
    (nowhere / "rom").write_bytes(bytes(4096))
    with pytest.raises(InvalidRequestError, match=r"block_dev\.u: no such file: .*/image"):
        await choose_engine(config(nowhere, engine="qemu"))


def test_a_host_whose_machines_could_not_boot(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"package ovmf has one") as caught:
        check_host(config(tmp_path))
    assert caught.value.reason == "BOOTROM_UNREADABLE"
    (tmp_path / "rom").write_bytes(b"no firmware")
    with pytest.raises(InvalidRequestError, match="11 bytes"):
        check_host(config(tmp_path))
    (tmp_path / "rom").write_bytes(bytes(8192))
    check_host(config(tmp_path))
    with pytest.raises(InvalidRequestError, match=r"dev\.block0\.pci-path: 0\.1\.0"):
        check_host(config(tmp_path, "0.1.0"))
