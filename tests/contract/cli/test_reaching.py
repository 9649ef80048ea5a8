"""Which daemon is asked, and what is said when it is not there or does not answer."""

from __future__ import annotations

import threading
from concurrent import futures
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from controlplane.cli.main import main
from stairwell.controlplane.v1 import fleet_service_pb2 as fleet_pb
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb

EXAMPLES = Path(__file__).parents[3] / "examples"
DISKS = str(EXAMPLES / "crucible-disks.json")
REPLACE = str(EXAMPLES / "replace.json")
VOLUME = "0cedae45-3d6e-4d90-b2cb-56f1a1a42a89"


def test_the_fleet(plane, client):
    one = fleet_pb.Downstairs(address="127.0.0.1:8840", region_id=VOLUME)
    plane.answers["RegisterDownstairs"] = fleet_pb.RegisterDownstairsResponse(downstairs=one)
    plane.answers["ListDownstairs"] = fleet_pb.ListDownstairsResponse(downstairs=[one])
    assert client.json("fleet", "register", "127.0.0.1:8840")["region_id"] == VOLUME
    assert client.json("fleet", "list")["downstairs"][0]["address"] == "127.0.0.1:8840"


class Health(health_pb2_grpc.HealthServicer):
    status = health_pb2.HealthCheckResponse.SERVING

    def Check(self, request, context):
        return health_pb2.HealthCheckResponse(status=self.status)


def test_health(capsys):
    server = grpc.server(futures.ThreadPoolExecutor(2))
    health = Health()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        assert main(["health", address]) == 0
        assert capsys.readouterr().out == "SERVING\n"
        health.status = health_pb2.HealthCheckResponse.NOT_SERVING
        assert main(["health", address]) == 1
    finally:
        server.stop(0).wait()
    assert main(["health", address]) == 1
    assert f"cannot reach the daemon at {address}" in capsys.readouterr().err


def test_no_control_plane(plane, client):
    plane.stop()
    for argv in (["list"], ["monitor"], ["vcr", "-u", VOLUME, "--vcr-replace", REPLACE]):
        code, out, err = client(*argv)
        assert (code, out) == (1, "")
        assert f"cannot reach the control plane at 127.0.0.1:{plane.port}" in err
        assert "controlplane run" in err
        assert "Traceback" not in err


def test_a_control_plane_that_does_not_answer(plane, client):
    release = threading.Event()

    class Never(list):
        """Call after call, none of which is answered before the test ends."""

        def pop(self, index):
            release.wait(30)

    plane.answers["GetInstance"] = Never([None])
    code, _, err = client("get", "--timeout", "0.2")
    release.set()
    assert code == 1
    assert "did not answer in time" in err
    assert "--timeout" in err


def test_an_older_control_plane_without_the_method(plane, client):
    code, _, err = client("get")
    assert code == 1
    assert "no answer scripted for GetInstance" in err
    assert "same version" in err


def test_the_server_may_come_from_the_environment(plane, capsys, monkeypatch):
    plane.answers["GetInstance"] = instance_pb.GetInstanceResponse(
        instance=instance_pb.Instance(name="crub")
    )
    monkeypatch.setenv("STAIRWELL_PORT", str(plane.port))
    monkeypatch.setenv("STAIRWELL_SERVER", "localhost")
    assert main(["get"]) == 0
    assert "crub" in capsys.readouterr().out
