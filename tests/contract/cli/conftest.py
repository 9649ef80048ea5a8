"""A control plane that answers what a test tells it, and the client run against it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from controlplane.cli.main import main
from stairlib.model.errors import StairwellError
from stairlib.rpc.errors import rpc_failure
from stairwell.controlplane.v1 import (
    disk_service_pb2_grpc,
    fleet_service_pb2_grpc,
    instance_service_pb2_grpc,
    replacement_service_pb2_grpc,
    vcr_service_pb2_grpc,
)

SERVICES = (
    disk_service_pb2_grpc,
    fleet_service_pb2_grpc,
    instance_service_pb2_grpc,
    replacement_service_pb2_grpc,
    vcr_service_pb2_grpc,
)
STREAMS = {
    "WatchInstance", "WatchDisk", "WatchDiskExtents", "WatchReplacement", "RunGuestWorkload",
}  # fmt: skip


class ScriptedControlPlane:
    """`answers[method]` is a message, an error, or a list of these for a stream or for call after
    call; what is asked stands in `asked`."""

    # In a stream: wait until the client hangs up.
    hang = object()

    def __init__(self) -> None:
        self.answers: dict[str, object] = {}
        self.asked: list[tuple[str, object]] = []
        self.hung_up = threading.Event()
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        for module in SERVICES:
            self._add(module)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def requests(self, method: str) -> list:
        return [request for name, request in self.asked if name == method]

    def _add(self, module) -> None:
        (base,) = (
            value
            for name, value in vars(module).items()
            if name.endswith("Servicer") and isinstance(value, type)
        )
        methods = {
            name: self._stream(name) if name in STREAMS else self._unary(name)
            for name in vars(base)
            if name[0].isupper()
        }
        servicer = type("Scripted", (base,), methods)()
        getattr(module, f"add_{base.__name__}_to_server")(servicer, self._server)

    def _unary(self, name: str):
        def answer(_self, request, context):
            self.asked.append((name, request))
            found = self.answers.get(name)
            if isinstance(found, list):
                found = found.pop(0)
            return self._said(name, found, context)

        return answer

    def _stream(self, name: str):
        def answer(_self, request, context) -> Iterator[object]:
            self.asked.append((name, request))
            context.add_callback(self.hung_up.set)
            found = self.answers.get(name, [])
            # A list of lists is one stream after another.
            if found and isinstance(found[0], list):
                found = found.pop(0)
            for one in found:
                if one is self.hang:
                    self.hung_up.wait(30)
                    return
                yield self._said(name, one, context)

        return answer

    def _said(self, name: str, found: object, context):
        if isinstance(found, StairwellError):
            failure = rpc_failure(found)
            context.set_trailing_metadata(failure.trailing_metadata)
            context.abort(failure.code, failure.text)
        if found is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"no answer scripted for {name}")
        return found


class Client:
    """Runs the command line against the scripted control plane."""

    def __init__(self, plane: ScriptedControlPlane, capsys: pytest.CaptureFixture[str]) -> None:
        self.plane = plane
        self._capsys = capsys

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        code = main(["-p", str(self.plane.port), *argv])
        out, err = self._capsys.readouterr()
        return code, out, err

    def json(self, *argv: str) -> object:
        """The one document of a command that works."""
        code, out, err = self(*argv, "--output", "json")
        assert (code, err) == (0, "")
        return json.loads(out)


@pytest.fixture
def plane():
    one = ScriptedControlPlane()
    yield one
    one.stop()


@pytest.fixture
def client(plane, capsys):
    return Client(plane, capsys)
