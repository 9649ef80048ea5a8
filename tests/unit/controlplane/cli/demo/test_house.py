"""The demo's disk is the documented one."""

import json
from pathlib import Path

import pytest
from google.protobuf import json_format

from controlplane.cli.demo.house import DISK, House, check_space, construction
from controlplane.cli.demo.processes import Processes
from controlplane.cli.failure import CommandError
from stairwell.vcr.v1.volume_construction_request_pb2 import VolumeConstructionRequest

ROOT = Path(__file__).resolve().parents[5]
VOLUME = "0cedae45-3d6e-4d90-b2cb-56f1a1a42a89"
TARGETS = [f"127.0.0.1:{port}" for port in (8810, 8820, 8830, 8840)]


def documented(name: str) -> VolumeConstructionRequest:
    data = json.loads((ROOT / "examples" / name).read_text())
    inner = data[0]["volume_construction_request"] if isinstance(data, list) else data["vcr"]
    return json_format.ParseDict(inner, VolumeConstructionRequest())


def test_the_requests_equal_the_documents(tmp_path):
    house = House(Processes(tmp_path, keep=True), TARGETS, "v:1", "c:1", VOLUME)
    disk = house.disk()
    assert disk.volume_construction_request == documented("crucible-disks.json")
    assert (disk.name, disk.device, disk.slot) == (DISK, "nvme", 3)
    assert house.replacement(2) == documented("replace.json")
    assert house.spare == TARGETS[3]


def test_the_targets_are_in_slot_order():
    request = construction(VOLUME, 7, ["a:1", "b:2", "c:3"])
    assert list(request.sub_volumes[0].opts.target) == ["a:1", "b:2", "c:3"]
    assert request.sub_volumes[0].gen == 7


def test_too_little_space_is_said_before_anything_starts(tmp_path):
    processes = Processes(tmp_path, keep=True)
    check_space(processes, 1 << 20)
    with pytest.raises(CommandError, match="the demo needs"):
        check_space(processes, 1 << 50)
