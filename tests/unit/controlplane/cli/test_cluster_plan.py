"""What a cluster.toml comes to, and everything that can be wrong with one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli.cluster.networks import Networks, tag_of
from controlplane.cli.cluster.plan import TEMPLATE, Layout, Plan, parse_plan
from controlplane.cli.failure import CommandError

ROOT = Path(__file__).resolve().parents[4]
FILE = Path("/somewhere/cluster.toml")


def layout(plan: Plan, *, netns: bool = False) -> Layout:
    regions = {name: f"id-of-{name}" for name in plan.member_names}
    return Layout(plan, netns, regions, Path("/tmp/sw"))


def test_the_template_says_what_is_so_anyway() -> None:
    assert parse_plan(TEMPLATE, FILE) == parse_plan("", FILE)
    # What is written there as a comment is a key as well.
    commented = re.findall(r"^# (\w+ = .*?)(?: {2,}#.*)?$", TEMPLATE, re.MULTILINE)
    assert len(commented) == 7
    for line in commented:
        assert line.partition(" ")[0] in ("metrics", "console", "flags", "config")


def test_it_is_the_cluster_of_docker_compose() -> None:
    whole = (ROOT / "docker-compose.yml").read_text()
    plan = parse_plan("", FILE)
    parts = re.findall(r"^  \w+:\n    <<: \*program\n(?:    .*\n|\n)*", whole, re.MULTILINE)
    # What is in a profile is not there unless it is asked for.
    plain = [part for part in parts if "    profiles:" not in part]
    assert [part.strip().partition(":")[0] for part in plain] == list(plan.names)
    compose = "".join(plain)
    found = dict(re.findall(r"-p (\d+) --advertise (ds\d)\n", compose))
    assert found == {str(plan.port(name)): name for name in plan.member_names}
    shape = plan.geometry
    assert compose.count(
        f"--block-size {shape.block_size} --extent-size {shape.blocks_per_extent} "
        f"--extent-count {shape.extent_count}"
    ) == len(plan.member_names)
    assert f"run 0.0.0.0:{plan.controlplane_port} " in compose
    assert f"0.0.0.0:{plan.vmmd_port} " in compose


@pytest.mark.parametrize("name", ["crucible-disks.json", "replace.json"])
def test_its_files_are_the_walk_throughs(name: str) -> None:
    told = json.loads((ROOT / "examples" / name).read_text())
    made = layout(parse_plan("", FILE))
    ours: Any = made.disks("x") if name.startswith("crucible") else made.replacement("x")

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: bare(each) for key, each in value.items() if each is not None and key != "id"
            }
        return [bare(each) for each in value] if isinstance(value, list) else value

    assert bare(ours) == bare(told)


def test_commands() -> None:
    plan = parse_plan(
        'directory = "d"\ntls = true\n[controlplane]\nmetrics = 9\n'
        'flags = ["--log-level", "debug"]\n'
        '[downstairs]\nflags = ["--lossy"]\n[vmmd]\nconfig = "mine.toml"',
        FILE,
    )
    made = layout(plan)
    plane = made.command("controlplane")
    assert plane[:3] == ["controlplane", "run", "127.0.0.1:55400"]
    assert plane[-4:] == ["--log-level", "debug", "--metrics", "127.0.0.1:9"]
    assert "/somewhere/d/pki/controlplane.key" in plane
    assert made.command("vmmd")[:4] == ["vmmd", "run", "/somewhere/mine.toml", "127.0.0.1:55401"]
    member = made.command("ds2")
    assert member[-1] == "--lossy"
    assert "id-of-ds2" in member
    assert "--insecure" not in member


def test_in_namespaces_each_has_an_address_and_plain_text_is_said() -> None:
    plan = parse_plan('subnet = "10.9.0.0/24"', FILE)
    made = layout(plan, netns=True)
    assert [made.host(name) for name in plan.names] == [f"10.9.0.{n}" for n in range(2, 8)]
    assert all("--insecure" in made.command(name) for name in plan.names)
    assert made.disks("x")[0]["volume_construction_request"]["sub_volumes"][0]["opts"][
        "target"
    ] == ["10.9.0.4:8810", "10.9.0.5:8820", "10.9.0.6:8830"]
    networks = Networks(tag_of(plan.directory))
    assert len(networks.cable) <= 15


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tls = 1", "tls: must be true or false, not 1"),
        ("tsl = true", "tsl: there is no such key; there are controlplane, directory"),
        ("controlplane = 7", "controlplane: must be a table"),
        ("[vmmd]\nprot = 7", "vmmd.prot: there is no such key; there are config, flags"),
        ("[vmmd]\nport = 0", "vmmd.port: must be a whole number from 1 to 65535, not 0"),
        ("[vmmd]\nport = true", "vmmd.port: must be a whole number"),
        ('[vmmd]\nflags = "--x"', "vmmd.flags: must be a list of texts"),
        ('directory = ""', "directory: must be a text"),
        ('subnet = "10.0.0.0/33"', "subnet: must be an IPv4 network"),
        ("subnet = 10", "subnet: must be an IPv4 network"),
        ('subnet = "10.0.0.0/30"', "10.0.0.0/30 has too few addresses, 9 are needed"),
        ("[downstairs]\ncount = 0", "downstairs.count: must be a whole number from 1 to 200"),
        ("[downstairs]\nblock_size = 1000", "downstairs.block_size: "),
        ("[downstairs]\nport = 65530", "ds2 would have port 65540"),
        ("[vmmd]\nport = 8811", "ds1 and vmmd would both have port 8811"),
        ("[controlplane]\nmetrics = 55400", "controlplane and controlplane would both have port"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(CommandError) as refused:
        parse_plan(text, FILE)
    assert any(said in detail for detail in refused.value.details), refused.value.details


def test_everything_at_once_and_no_toml_at_all() -> None:
    with pytest.raises(CommandError) as refused:
        parse_plan("tls = 1\n[vmmd]\nport = 0\n", FILE)
    assert len(refused.value.details) == 2
    with pytest.raises(CommandError, match=r"cluster\.toml: "):
        parse_plan("tls =", FILE)
