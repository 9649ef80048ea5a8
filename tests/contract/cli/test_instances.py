"""Machines and disks: what the client asks, prints and returns."""

from __future__ import annotations

import json
from pathlib import Path

from controlplane.cli import session as sessions
from stairlib.model.errors import (
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    StateError,
    UnavailableError,
)
from stairwell.controlplane.v1 import (
    disk_service_pb2 as disk_pb,
)
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb

EXAMPLES = Path(__file__).parents[3] / "examples"
DISKS = str(EXAMPLES / "crucible-disks.json")
REPLACE = str(EXAMPLES / "replace.json")
VOLUME = "0cedae45-3d6e-4d90-b2cb-56f1a1a42a89"


def instance(state: str, generation: int = 1, **more) -> instance_pb.Instance:
    return instance_pb.Instance(
        id="i-1",
        name="crub",
        state=instance_pb.InstanceState.Value(f"INSTANCE_STATE_{state}"),
        state_generation=generation,
        disks=["block2"],
        **more,
    )


def seen(*states: instance_pb.Instance) -> list[instance_pb.WatchInstanceResponse]:
    return [instance_pb.WatchInstanceResponse(instance=one) for one in states]


def test_new_sends_the_documents_disks(plane, client):
    plane.answers["CreateInstance"] = instance_pb.CreateInstanceResponse(
        instance=instance("CREATING")
    )
    code, out, err = client("new", "crub", "--crucible-disks", DISKS)
    assert (code, err) == (0, "")
    assert "crub made with block2" in out
    (request,) = plane.requests("CreateInstance")
    assert request.name == "crub"
    assert not request.HasField("id")
    assert request.request_id
    (disk,) = request.disks
    assert (disk.name, disk.device, disk.slot) == ("block2", "nvme", 3)
    assert disk.volume_construction_request.sub_volumes[0].blocks_per_extent == 16384


def test_new_that_may_start_with_two_copies(plane, client):
    plane.answers["CreateInstance"] = instance_pb.CreateInstanceResponse(
        instance=instance("CREATING")
    )
    assert client("new", "crub", "--with-two-after", "30")[0] == 0
    assert client("new", "crub")[0] == 0
    first, second = plane.requests("CreateInstance")
    assert first.activate_with_two_after.seconds == 30
    assert not second.HasField("activate_with_two_after")


def test_a_snapshot_says_where_it_is(plane, client):
    region = volume_pb.RegionSnapshot(
        path="sub_volumes[0]", generation=3, flush_number=41, targets=["a:1", "b:1", "c:1"]
    )
    plane.answers["SnapshotDisk"] = disk_pb.SnapshotDiskResponse(regions=[region])
    code, out, err = client("disk", "snapshot", "block2", "monday")
    assert (code, err) == (0, "")
    assert "monday of block2 is taken" in out
    assert "flush 41, on a:1, b:1, c:1" in out
    (request,) = plane.requests("SnapshotDisk")
    assert (request.name, request.snapshot) == ("block2", "monday")
    assert request.request_id
    code, out, _ = client("--output", "json", "disk", "snapshot", "block2", "tuesday")
    assert code == 0
    assert json.loads(out)["regions"][0]["targets"] == ["a:1", "b:1", "c:1"]


def test_new_with_an_id_of_ones_own(plane, client):
    plane.answers["CreateInstance"] = instance_pb.CreateInstanceResponse(
        instance=instance("CREATING")
    )
    assert client("new", "crub", "--id", VOLUME.upper())[0] == 0
    assert plane.requests("CreateInstance")[0].id == VOLUME
    code, _, err = client("new", "crub", "--id", "seven")
    assert code == 1
    assert "--id seven: not a UUID" in err


def test_new_points_into_the_file_where_the_control_plane_objects(plane, client):
    field = "disks[0].volume_construction_request.sub_volumes[0].extent_count"
    plane.answers["CreateInstance"] = InvalidRequestError(
        "the disks cannot be built", (FieldViolation(field, "at least one extent", "TOO_FEW"),)
    )
    code, out, err = client("new", "crub", "--crucible-disks", DISKS)
    assert (code, out) == (1, "")
    assert f"{field} [crucible-disks.json:17]: at least one extent (TOO_FEW)" in err


def test_nothing_is_sent_of_a_file_with_a_mistake(plane, client, tmp_path):
    path = tmp_path / "disks.json"
    path.write_text('[{"name": "block2",\n"slots": 3}]')
    code, _, err = client("new", "crub", "--crucible-disks", str(path))
    assert code == 1
    assert f"{path}:2: [0].slots: unknown key 'slots'; did you mean 'slot'?" in err
    assert plane.asked == []


def test_state_returns_when_queued(plane, client):
    plane.answers["SetInstanceState"] = instance_pb.SetInstanceStateResponse(
        instance=instance("CREATING")
    )
    code, out, _ = client("state", "RUN")
    assert (code, out) == (0, "crub: run queued\n")
    (request,) = plane.requests("SetInstanceState")
    assert (request.name, request.state) == ("", instance_pb.RequestedState.REQUESTED_STATE_RUN)


def test_state_waits_until_running(plane, client):
    plane.answers["SetInstanceState"] = instance_pb.SetInstanceStateResponse(
        instance=instance("CREATING")
    )
    plane.answers["WatchInstance"] = [
        *seen(instance("CREATING", 1), instance("STARTING", 2), instance("RUNNING", 3)),
        plane.hang,
    ]
    assert client.json("state", "run", "crub", "--wait")["state"] == "running"
    assert plane.hung_up.wait(5)


def test_state_that_cannot_be_reached_says_why(plane, client):
    plane.answers["SetInstanceState"] = instance_pb.SetInstanceStateResponse(
        instance=instance("CREATING")
    )
    plane.answers["WatchInstance"] = seen(instance("FAILED", 2, reason="127.0.0.1:8830 is away"))
    code, _, err = client("state", "run", "--wait")
    assert code == 1
    assert "crub is failed and did not run: 127.0.0.1:8830 is away" in err


def test_a_wait_that_takes_long_says_where_to_look_and_may_be_bounded(plane, client, monkeypatch):
    monkeypatch.setattr("controlplane.cli.commands.instance.SLOW_SECONDS", 0.05)
    plane.answers["SetInstanceState"] = instance_pb.SetInstanceStateResponse(
        instance=instance("CREATING")
    )
    plane.answers["WatchInstance"] = [*seen(instance("STARTING", 2)), plane.hang]
    code, out, err = client("state", "run", "--wait", "--timeout", "0.5")
    assert (code, out) == (1, "")
    assert "still waiting; `stairwell disk status`" in err
    assert "crub did not run within 0.5 s; the request stays queued" in err


def test_a_state_change_that_is_refused(plane, client):
    plane.answers["SetInstanceState"] = StateError(
        "crub is destroyed; make it anew", reason="DESTROYED"
    )
    code, out, err = client("state", "run")
    assert (code, out) == (1, "")
    assert err == "error: crub is destroyed; make it anew (DESTROYED)\n"


def test_monitor_prints_each_state_once_until_destroyed(plane, client):
    plane.answers["WatchInstance"] = [
        *seen(
            instance("RUNNING", 3),
            instance("RUNNING", 3),
            instance("STOPPING", 4),
            instance("DESTROYED", 6),
        ),
        plane.hang,
    ]
    code, out, _ = client("monitor")
    assert code == 0
    assert out.splitlines() == [
        "crub InstanceState: running [3]",
        "crub InstanceState: stopping [4]",
        "crub InstanceState: destroyed [6]",
    ]


def test_monitor_as_json_lines(plane, client):
    plane.answers["WatchInstance"] = seen(instance("RUNNING", 3), instance("DESTROYED", 5))
    code, out, _ = client("--output", "json", "monitor", "crub")
    assert code == 0
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["running", "destroyed"]


def test_monitor_survives_a_restart_of_the_control_plane(plane, client, monkeypatch):
    monkeypatch.setattr(sessions, "RECONNECT_DELAY_FIRST", 0.01)
    plane.answers["WatchInstance"] = [
        [*seen(instance("RUNNING", 3)), UnavailableError("shutting down")],
        seen(instance("RUNNING", 3), instance("DESTROYED", 5)),
    ]
    code, out, err = client("monitor")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert "trying again" in err


def test_get_and_list(plane, client):
    plane.answers["GetInstance"] = instance_pb.GetInstanceResponse(instance=instance("RUNNING"))
    plane.answers["ListInstances"] = [
        instance_pb.ListInstancesResponse(instances=[instance("RUNNING")], next_page_token="2"),
        instance_pb.ListInstancesResponse(instances=[instance("FAILED")]),
    ]
    disk = disk_pb.Disk(name="block2", id=VOLUME, recorded_generation=2)
    plane.answers["ListDisks"] = disk_pb.ListDisksResponse(disks=[disk])
    assert client.json("get", "crub")["name"] == "crub"
    found = client.json("list")
    assert [one["state"] for one in found["instances"]] == ["running", "failed"]
    assert found["disks"][0]["recorded_generation"] == 2
    assert [one.page_token for one in plane.requests("ListInstances")] == ["", "2"]


def test_an_unknown_instance(plane, client):
    plane.answers["GetInstance"] = NotFoundError("instance", "nobody")
    code, _, err = client("get", "nobody")
    assert code == 1
    assert "there is no instance 'nobody' (INSTANCE_NOT_FOUND)" in err
    assert "stairwell list" in err


def test_delete(plane, client):
    plane.answers["DeleteInstance"] = instance_pb.DeleteInstanceResponse()
    assert client.json("delete", "crub") == {"deleted": "crub"}


def test_disk_status_of_one_and_of_all(plane, client):
    disk = disk_pb.Disk(name="block2", id=VOLUME, recorded_generation=1)
    disk.volume.nbd_uri = "nbd://127.0.0.1:10809/block2"
    disk.volume.regions.add(path="sub_volumes[0]").slots.add(slot=2, address="127.0.0.1:8830")
    plane.answers["GetDisk"] = disk_pb.GetDiskResponse(disk=disk)
    plane.answers["ListDisks"] = disk_pb.ListDisksResponse(disks=[disk])
    one = client.json("disk", "status", "block2")
    assert one["recorded_generation"] == 1
    assert one["volume"]["nbd_uri"] == "nbd://127.0.0.1:10809/block2"
    assert one["volume"]["regions"][0]["slots"][0]["address"] == "127.0.0.1:8830"
    assert client.json("disk", "status") == {"disks": [one]}
    _, out, _ = client("disk", "status")
    assert "127.0.0.1:8830" in out


def test_the_uri_alone_is_printed_for_other_commands(plane, client):
    disk = disk_pb.Disk(name="block2")
    plane.answers["GetDisk"] = disk_pb.GetDiskResponse(disk=disk)
    code, out, err = client("disk", "uri", "block2")
    assert (code, out) == (1, "")
    assert "block2 has no NBD export" in err
    assert "stairwell state run" in err
    # Longer than a line of the terminal is wide: it is not wrapped.
    long = f"nbd+unix:///block2?socket=/run/{'x' * 200}.sock"
    disk.volume.nbd_uri = long
    disk.volume.vhost_user_socket = "/run/vhost.sock"
    plane.answers["GetDisk"] = disk_pb.GetDiskResponse(disk=disk)
    assert client("disk", "uri", "block2")[1] == f"{long}\n"
    assert client("disk", "uri", "block2", "--vhost-user")[1] == "/run/vhost.sock\n"
    assert client.json("disk", "uri", "block2") == {"nbd_uri": long}
    code, out, err = client("disk", "uri", "block2", "--remote")
    assert (code, out) == (1, "")
    assert "--nbd-listen" in err
    disk.volume.nbd_gateway_uri = "nbds://storage7/block2"
    plane.answers["GetDisk"] = disk_pb.GetDiskResponse(disk=disk)
    assert client("disk", "uri", "block2", "--remote")[1] == "nbds://storage7/block2\n"
    assert "nbds://storage7/block2" in client("disk", "status", "block2")[1]
    assert client("disk", "uri", "block2", "--remote", "--vhost-user")[0] == 1


def test_verify_is_exit_1_when_members_differ(plane, client):
    plane.answers["VerifyDisk"] = disk_pb.VerifyDiskResponse()
    plane.answers["VerifyDisk"].report.members_compared = 3
    code, out, _ = client("disk", "verify", "block2", "--read-data")
    assert code == 1
    assert "DIFFER" in out
    assert plane.requests("VerifyDisk")[0].read_data
    plane.answers["VerifyDisk"].report.equal = True
    assert client("disk", "verify", "block2")[0] == 0
