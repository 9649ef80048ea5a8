"""What holds of the compose file and its examples with no docker at hand."""

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
DAEMONS = ("controlplane", "vmmd", "ds1", "ds2", "ds3", "ds4", "ds5")


def command(service):
    return SERVICES[service]["command"].split()


@pytest.mark.parametrize("name", ["crucible-disks.json", "replace.json", "replace-link.json"])
def test_the_examples_are_the_walk_throughs_with_names_for_addresses(name):
    ours = (ROOT / "examples/compose" / name).read_text()
    names = ("ds1:8810", "ds2:8820", "ds3:8830", "link:8850" if "link" in name else "ds4:8840")
    for index, target in enumerate(names, 1):
        ours = ours.replace(target, f"127.0.0.1:88{index}0")
    theirs = ROOT / "examples" / name.replace("-link", "")
    assert json.loads(ours) == json.loads(theirs.read_text())


def test_every_target_of_the_examples_is_a_service_at_that_port():
    text = "".join(path.read_text() for path in (ROOT / "examples/compose").glob("*.json"))
    targets = set(re.findall(r'"(\w+):(\d+)"', text))
    assert {host for host, _ in targets} == {"ds1", "ds2", "ds3", "ds4", "link"}
    for host, port in targets - {("link", "8850")}:
        assert f"-p {port} --advertise {host} " in SERVICES[host]["command"]


def test_both_ports_of_a_member_behind_a_link_go_through_it():
    """It tells others the link's name, at the port that it has itself."""
    words = command("ds5")
    told = {flag: words[words.index(flag) + 1] for flag in ("-p", "--data-port", "--advertise")}
    assert told.pop("--advertise") == "link"
    forwards = [word for word in command("link") if "=" in word]
    assert forwards == [f"0.0.0.0:{port}=ds5:{port}" for port in told.values()]
    assert {name for name, each in SERVICES.items() if "profiles" in each} == {"ds5", "link"}


@pytest.mark.parametrize("service", DAEMONS)
def test_plain_text_between_containers_is_said_openly(service):
    """Each program listens for others without certificates: none would start otherwise."""
    assert "--insecure" in command(service)


def test_every_copy_has_a_region_id_of_its_own():
    ids = [command(name)[command(name).index("-u") + 1] for name in DAEMONS if name[:2] == "ds"]
    assert len(ids) == len(set(ids)) == 5
