"""The units for systemd: that they start our programs as these take it, and how little they leave
them. Not run here: that takes a host with systemd."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from controlplane.config import parse
from downstaird.arguments import parser
from vmmd.config import parse_arguments

UNITS = sorted((Path(__file__).resolve().parents[2] / "deploy/systemd").glob("*.service"))
# systemd's own measure, from 0 (nothing to gain) to 10.
EXPOSURE_MAX = 2.5


def values(unit: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.read_text(), re.MULTILINE)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_command_is_one_that_the_program_takes(unit: Path) -> None:
    (command,) = values(unit, "ExecStart")
    program, *words = command.split()
    take = {
        "/usr/bin/controlplane": parse,
        "/usr/bin/vmmd": parse_arguments,
        "/usr/bin/downstaird": lambda given: parser().parse_args(given),
    }
    take[program](words)
    assert "--insecure" not in command


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_it_speaks_tls_and_keeps_its_privileges_to_itself(unit: Path) -> None:
    told = values(unit, "Environment")
    for name in ("CA", "CERT", "KEY"):
        assert any(each.startswith(f"STAIRWELL_DAEMON_TLS_{name}=/etc/stairwell/") for each in told)
    assert values(unit, "User") == ["stairwell"]
    assert values(unit, "NoNewPrivileges") == ["yes"]
    assert values(unit, "ProtectSystem") == ["strict"]
    assert values(unit, "CapabilityBoundingSet") == [""]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_it_and_finds_little_exposed(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Unknown" in done.stderr or "unrecognized option" in done.stderr:
        pytest.skip("this systemd cannot look at files")
    found = re.search(r"Overall exposure level.*: (\d+\.\d+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE_MAX
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    wrong = [
        line
        for line in verified.stderr.splitlines()
        if unit.name in line and "is not executable" not in line
    ]
    assert not wrong, wrong


def test_there_is_one_for_each_kind_of_host() -> None:
    assert [unit.stem for unit in UNITS] == [
        "stairwell-agent", "stairwell-controlplane", "stairwell-vmmd",
    ]  # fmt: skip
