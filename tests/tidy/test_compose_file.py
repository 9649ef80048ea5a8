"""What holds of the compose file and its examples with no docker at hand."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["crucible-disks.json", "replace.json"])
def test_the_examples_are_the_walk_throughs_with_names_for_addresses(name):
    ours = (ROOT / "examples/compose" / name).read_text()
    for index, port in enumerate((8810, 8820, 8830, 8840), 1):
        ours = ours.replace(f"ds{index}:{port}", f"127.0.0.1:{port}")
    assert json.loads(ours) == json.loads((ROOT / "examples" / name).read_text())


def test_every_target_of_the_examples_is_a_service_at_that_port():
    compose = (ROOT / "docker-compose.yml").read_text()
    text = "".join(path.read_text() for path in (ROOT / "examples/compose").glob("*.json"))
    targets = set(re.findall(r'"(\w+):(\d+)"', text))
    assert {host for host, _ in targets} == {"ds1", "ds2", "ds3", "ds4"}
    for host, port in targets:
        assert re.search(rf"^  {host}:$", compose, re.MULTILINE)
        assert f"-p {port} --advertise {host}\n" in compose


def test_plain_text_between_containers_is_said_openly():
    """Each program listens for others without certificates: none would start otherwise."""
    compose = (ROOT / "docker-compose.yml").read_text()
    commands = re.findall(r"^    command: (.*(?:\n      .*)*)", compose, re.MULTILINE)
    assert len(commands) == 6
    assert all("--insecure" in command for command in commands)


def test_every_copy_has_a_region_id_of_its_own():
    ids = re.findall(r"--create -u ([0-9a-f-]{36})", (ROOT / "docker-compose.yml").read_text())
    assert len(ids) == len(set(ids)) == 4
