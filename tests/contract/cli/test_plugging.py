"""Disks plugged and unplugged: what the client asks, prints and returns."""

from __future__ import annotations

import json
from pathlib import Path

from stairlib.model.errors import FieldViolation, InvalidRequestError, StateError
from stairwell.controlplane.v1 import instance_service_pb2 as pb

DISKS = Path(__file__).parents[3] / "examples/crucible-disks.json"


def test_plug_sends_the_one_disk_of_a_file(plane, client):
    plane.answers["PlugDisk"] = pb.PlugDiskResponse(
        instance=pb.Instance(name="crub", disks=["a", "block2"])
    )
    code, out, err = client("disk", "plug", str(DISKS), "crub")
    assert (code, err) == (0, "")
    assert out == "block2 plugged into crub: a, block2\n"
    (request,) = plane.requests("PlugDisk")
    assert (request.name, request.disk.name, request.disk.slot) == ("crub", "block2", 3)
    assert request.request_id


def test_a_refused_disk_is_shown_at_its_line(plane, client):
    text = "9 is not from 0 to 7"
    plane.answers["PlugDisk"] = InvalidRequestError(
        text, (FieldViolation("disk.slot", text, "SLOT_OUT_OF_RANGE"),)
    )
    code, _out, err = client("disk", "plug", str(DISKS))
    line = 1 + next(
        number for number, text in enumerate(DISKS.read_text().splitlines()) if '"slot"' in text
    )
    assert code != 0
    assert f"crucible-disks.json:{line}" in err


def test_two_disks_at_once_are_not_plugged(plane, client, tmp_path):
    file = tmp_path / "two.json"
    file.write_text(json.dumps(json.loads(DISKS.read_text()) * 2))
    code, _out, err = client("disk", "plug", str(file))
    assert code != 0
    assert "has 2 disks" in err
    assert not plane.requests("PlugDisk")


def test_unplug_says_what_is_left(plane, client):
    plane.answers["UnplugDisk"] = pb.UnplugDiskResponse(instance=pb.Instance(name="crub"))
    code, out, _err = client("disk", "unplug", "block2")
    assert (code, out) == (0, "block2 unplugged from crub, which has no disk\n")
    assert plane.requests("UnplugDisk")[0].disk == "block2"
    plane.answers["UnplugDisk"] = StateError("it stays", reason="DISK_NOT_REMOVABLE")
    code, _out, err = client("disk", "unplug", "block2")
    assert code != 0
    assert "it stays" in err
