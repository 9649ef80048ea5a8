"""What holds of the compose file and its examples with no docker at hand."""

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def services(file):
    return yaml.safe_load((ROOT / file).read_text())["services"]


SERVICES = services("docker-compose.yml")
TLS = services("docker-compose.tls.yml")
POSTGRES = services("docker-compose.postgres.yml")
CONFINED = ("read_only", "tmpfs", "cap_drop", "security_opt")
# Plain text for whoever is on the network: not where certificates are.
METRICS = ("--metrics", "0.0.0.0:9464")
DAEMONS = ("controlplane", "vmmd", "ds1", "ds2", "ds3", "ds4", "ds5")


def command(service):
    return SERVICES[service]["command"].split()


def in_profile(profile):
    return {name for name, each in SERVICES.items() if profile in each.get("profiles", ())}


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
    assert in_profile("faults") == {"ds5", "link"}


@pytest.mark.parametrize("service", DAEMONS)
def test_plain_text_between_containers_is_said_openly(service):
    """Each program listens for others without certificates: none would start otherwise."""
    assert "--insecure" in command(service)


@pytest.mark.parametrize("service", DAEMONS)
def test_with_certificates_commands_are_the_same_and_no_plain_text_is_allowed(service):
    plain = [word for word in command(service) if word not in ("--insecure", *METRICS)]
    assert TLS[service]["command"].split() == plain
    assert f"tls-{service}:/etc/stairwell/tls:ro" in TLS[service]["volumes"]
    assert set(TLS) == {*DAEMONS, "pki"}


def test_certificates_are_for_what_each_is_reached_by():
    [_, _, script] = TLS["pki"]["command"]
    named = dict(re.findall(r"(\w+)=(\S+)", script))
    assert named == {name: name for name in DAEMONS} | {"ds5": "ds5,link"}
    [handed] = re.findall(r"for name in (.*); do", script)
    assert tuple(handed.split()) == DAEMONS


@pytest.mark.parametrize("name", ["crucible-disks.json", "replace.json"])
def test_with_certificates_requests_are_the_same_and_name_the_machine_hosts_files(name):
    text = (ROOT / "examples/compose/tls" / name).read_text()
    for file in ("cert", "key", "ca"):
        text = text.replace(f'"/etc/stairwell/tls/{file}.pem"', "null")
    assert text == (ROOT / "examples/compose" / name).read_text()


def test_control_planes_on_one_database_are_alike():
    one, two = POSTGRES["controlplane"], POSTGRES["controlplane2"]
    for key in ("command", "environment", "volumes", "depends_on"):
        assert one[key] == two[key]
    words = one["command"].split()
    assert "--data" not in words
    plain = command("controlplane")
    assert words[: plain.index("--data")] == plain[: plain.index("--data")]
    for key in ("image", "restart", "stop_grace_period", "pull_policy", *CONFINED):
        assert two[key] == SERVICES["controlplane"][key]
    checked = SERVICES["controlplane"]["healthcheck"]
    assert two["healthcheck"] == checked


def test_every_copy_has_a_region_id_of_its_own():
    ids = [command(name)[command(name).index("-u") + 1] for name in DAEMONS if name[:2] == "ds"]
    assert len(ids) == len(set(ids)) == 5


@pytest.mark.parametrize("service", SERVICES)
def test_no_program_writes_outside_of_what_it_is_given_or_becomes_more_than_it_is(service):
    each = SERVICES[service]
    assert each["read_only"] is True
    assert each["cap_drop"] == ["ALL"]
    assert each["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("file", [POSTGRES, TLS], ids=["postgres", "tls"])
def test_nor_does_what_another_file_adds(file):
    added = file.keys() - SERVICES.keys()
    assert added
    assert all(file[name]["read_only"] is True for name in added)


@pytest.mark.parametrize("file", [SERVICES, POSTGRES, TLS], ids=["plain", "postgres", "tls"])
def test_ports_are_this_machines_alone(file):
    ports = [port for each in file.values() for port in each.get("ports", ())]
    assert all(re.fullmatch(r"127\.0\.0\.1:\$\{STAIRWELL_\w+:-\d+\}:\d+", each) for each in ports)


@pytest.mark.parametrize("service", DAEMONS)
def test_every_program_serves_metrics_and_may_be_told_where_spans_go(service):
    words = command(service)
    at = words.index(METRICS[0])
    assert tuple(words[at : at + 2]) == METRICS
    spans = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "${STAIRWELL_TRACES:-}"}
    assert SERVICES[service]["environment"] == spans
    assert POSTGRES["controlplane2"]["environment"].items() >= spans.items()
