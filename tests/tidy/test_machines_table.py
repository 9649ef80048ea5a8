"""The table of docs/machines.md, device by call by transport, leaves no call out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos" / "stairwell"
SERVICES = (
    "controlplane/v1/instance_service.proto",
    "controlplane/v1/disk_service.proto",
    "controlplane/v1/serial_service.proto",
    "vmmd/v1/machine_service.proto",
    "vmmd/v1/volume_service.proto",
    "vmmd/v1/guest_service.proto",
    "vmmd/v1/serial_service.proto",
)


@pytest.mark.parametrize("service", SERVICES)
def test_every_call_has_a_row(service: str) -> None:
    calls = set(re.findall(r"^  rpc (\w+)\(", (PROTOS / service).read_text(), re.MULTILINE))
    assert calls
    document = (ROOT / "docs" / "machines.md").read_text()
    table = document.partition("Call by call")[2].partition("## The disks' sockets")[0]
    firsts = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")]
    assert calls <= set(re.findall(r"`(\w+)`", " ".join(firsts)))
