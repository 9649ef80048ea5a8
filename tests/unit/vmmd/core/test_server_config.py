"""server.toml: what is read, and how each wrong key is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from stairlib.model.errors import InvalidRequestError
from vmmd.core.server_config import EngineName, ServerConfig, parse_server_config

EXAMPLE = Path(__file__).resolve().parents[4] / "examples" / "server.toml"


def fields(text: str) -> list[str]:
    with pytest.raises(InvalidRequestError) as caught:
        parse_server_config(text)
    for violation in caught.value.violations:
        assert violation.field in caught.value.message
    return [violation.field for violation in caught.value.violations]


def test_the_walkthroughs_file_is_read() -> None:
    config = parse_server_config(EXAMPLE.read_text())
    assert config.bootrom.endswith("OVMF_CODE.fd")
    assert config.engine is EngineName.NONE
    assert dict(config.block_devices)["ubuntu"].path.endswith("large-focal.raw")
    device = dict(config.devices)["block0"]
    assert (device.driver, device.block_dev, device.pci_path) == ("pci-nvme", "ubuntu", "0.4.0")


def test_an_empty_file_is_a_host_with_no_devices() -> None:
    assert parse_server_config("") == ServerConfig()


def test_json_both_ways() -> None:
    config = parse_server_config(EXAMPLE.read_text())
    assert ServerConfig.from_json(config.to_json()) == config
    assert config.file_directories is None
    for text, directories in (("[]", ()), ('["/a", "b"]', ("/a", "b"))):
        confined = parse_server_config(f"file_directories = {text}")
        assert confined.file_directories == directories
        assert ServerConfig.from_json(confined.to_json()) == confined


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('botrom = "x"', ["botrom"]),
        ('engine = "kvm"', ["engine"]),
        ("bootrom = 5", ["bootrom"]),
        ('file_directories = "/x"', ["file_directories"]),
        ("file_directories = [5]", ["file_directories"]),
        ('file_directories = [""]', ["file_directories"]),
        ("block_dev = 5", ["block_dev"]),
        ('[block_dev.a]\ntype = "file"', ["block_dev.a.path"]),
        ('[block_dev.a]\ntype = "disk"\npath = "x"', ["block_dev.a.type"]),
        (
            '[block_dev.a]\ntype = "file"\npath = "x"\nread_only = true',
            ["block_dev.a.read_only"],
        ),
        ('[block_dev.a]\ntype = "file"\npath = "x"\nworkers = 99', ["block_dev.a.workers"]),
        ('[block_dev.a]\ntype = "file"\npath = "x"\nblock_size = 7', ["block_dev.a.block_size"]),
        ('[dev.d]\ndriver = "pci-nvme"\npci-path = "0.4.0"', ["dev.d.block_dev"]),
    ],
)
def test_each_wrong_key_is_named(text: str, wrong: list[str]) -> None:
    assert fields(text) == wrong


BLOCK = '[block_dev.a]\ntype = "file"\npath = "x"\n'


@pytest.mark.parametrize("path", ["4.0", "0.32.0", "0.4.8", "a.b.c", "0.18.0"])
def test_a_bad_pci_path_is_named(path: str) -> None:
    device = f'[dev.d]\ndriver = "pci-nvme"\nblock_dev = "a"\npci-path = "{path}"'
    assert fields(BLOCK + device) == ["dev.d.pci-path"]


def test_two_devices_at_one_path() -> None:
    one = 'driver = "pci-nvme"\nblock_dev = "a"\npci-path = "0.4.0"\n'
    assert fields(f"{BLOCK}[dev.x]\n{one}[dev.y]\n{one}") == ["dev.y.pci-path"]


BRIDGE = '[[pci_bridge]]\npci-path = "0.5.0"\ndownstream-bus = 1\n'


def behind(path: str) -> str:
    return f'{BLOCK}[dev.d]\ndriver = "pci-nvme"\nblock_dev = "a"\npci-path = "{path}"\n'


def test_a_device_behind_a_bridge() -> None:
    nested = '[[pci_bridge]]\npci-path = "1.2.0"\ndownstream-bus = 40\n'
    config = parse_server_config(f"{BRIDGE}{nested}{behind('40.3.0')}")
    assert [(each.pci_path, each.downstream_bus) for each in config.bridges] == [
        ("0.5.0", 1),
        ("1.2.0", 40),
    ]
    assert ServerConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (BRIDGE + BRIDGE, ["pci_bridge[1].downstream-bus", "pci_bridge[1].pci-path"]),
        (BRIDGE.replace("= 1", "= 256"), ["pci_bridge[0].downstream-bus"]),
        (BRIDGE.replace("= 1", "= true"), ["pci_bridge[0].downstream-bus"] * 2),
        (BRIDGE.replace("0.5.0", "3.5.0"), ["pci_bridge[0].pci-path"]),
        (BRIDGE.replace("0.5.0", "0.17.0"), ["pci_bridge[0].pci-path"]),
        (BRIDGE.replace("downstream-bus", "bus"), ["pci_bridge[0].bus"]),
        ("pci_bridge = 5", ["pci_bridge"]),
        (behind("1.4.0"), ["dev.d.pci-path"]),
        (BRIDGE + behind("0.5.0"), ["dev.d.pci-path"]),
    ],
)
def test_a_bridge_that_cannot_be(text: str, wrong: list[str]) -> None:
    assert fields(text)[: len(wrong)] == wrong


def test_all_problems_come_at_once() -> None:
    assert fields('a = 1\nb = 2\nengine = "x"') == ["a", "b", "engine"]


def test_what_is_not_toml_names_the_line() -> None:
    with pytest.raises(InvalidRequestError, match="line 2"):
        parse_server_config('bootrom = "x"\n= 5')
