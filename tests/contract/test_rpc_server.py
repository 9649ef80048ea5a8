"""What every daemon's server offers: reflection, health, an address of its own, a clean stop."""

import asyncio
import gc
import os
import socket
import stat
import weakref

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from stairlib.model.errors import NotFoundError, UnavailableError
from stairlib.rpc import health_check
from stairlib.rpc.channel import open_channel
from stairlib.rpc.server import RpcServer, Service
from stairlib.telemetry.tracing import Tracing
from stairwell.controlplane.v1 import vcr_service_pb2 as pb
from stairwell.controlplane.v1 import vcr_service_pb2_grpc as pb_grpc

NAME = "stairwell.controlplane.v1.VcrService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Waiting(pb_grpc.VcrServiceServicer):
    """Answers when `release` is set; `entered` says that a call is inside."""

    def __init__(self):
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def CheckVcr(self, request, context):
        self.entered.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return pb.CheckVcrResponse(valid=True)


def make(address="127.0.0.1:0", servicer=None):
    servicer = servicer or Waiting()
    service = Service(NAME, lambda it: pb_grpc.add_VcrServiceServicer_to_server(servicer, it))
    return RpcServer(address, [service], Tracing("test", "here"), insecure=True)


@pytest.fixture
async def server():
    made = make()
    await made.start()
    yield made
    await made.stop(0)


async def reflect(address, version, **request):
    async with open_channel(address) as channel:
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(iter([reflection_pb2.ServerReflectionRequest(**request)]), timeout=5)
        return [answer async for answer in call]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_and_describes_every_service(server, version):
    (answer,) = await reflect(server.address, version, list_services="")
    listed = {each.name for each in answer.list_services_response.service}
    assert listed == {
        NAME,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    for name in listed:
        (answer,) = await reflect(server.address, version, file_containing_symbol=name)
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(each)
            for each in answer.file_descriptor_response.file_descriptor_proto
        ]
        services = {f"{file.package}.{service.name}" for file in files for service in file.service}
        assert name in services
        # Self-contained: a client can build every type from the files it got.
        assert {name for file in files for name in file.dependency} <= {f.name for f in files}


async def test_health_follows_set_serving(server):
    async with open_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=NAME), timeout=5
        )
        assert (await watch.read()).status == SERVING
        server.set_serving(False)
        assert (await watch.read()).status == NOT_SERVING
        assert await health_check.check(server.address) == "NOT_SERVING"
        server.set_serving(True)
        assert (await watch.read()).status == SERVING
        watch.cancel()
    assert await health_check.check(server.address, NAME) == "SERVING"


async def test_not_serving_may_be_set_before_the_start():
    server = make()
    server.set_serving(False)
    await server.start()
    assert await health_check.check(server.address) == "NOT_SERVING"
    await server.stop(0)


async def test_health_of_an_unknown_service_is_not_found(server):
    with pytest.raises(NotFoundError):
        await health_check.check(server.address, "no.such.Service")


async def test_a_port_in_use_is_an_error_that_names_it(server):
    with pytest.raises(UnavailableError) as raised:
        await make(server.address).start()
    assert raised.value.reason == "PORT_IN_USE"
    assert server.address in raised.value.message


async def test_a_port_held_by_something_else_is_in_use():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UnavailableError) as raised:
            await make(f"127.0.0.1:{port}").start()
    assert raised.value.reason == "PORT_IN_USE"


async def test_a_port_is_free_again_after_the_stop(server):
    address = server.address
    assert server.port
    assert address == f"127.0.0.1:{server.port}"
    await server.stop(0)
    again = make(address)
    await again.start()
    assert again.address == address
    await again.stop(0)


@pytest.mark.parametrize("address", ["no-such-host.invalid:0", "192.0.2.1:0", "unix:/nowhere/x/s"])
async def test_an_address_that_is_not_here_is_an_error(address):
    with pytest.raises(UnavailableError) as raised:
        await make(address).start()
    assert raised.value.reason == "CANNOT_LISTEN"
    assert address in raised.value.message


async def test_a_unix_socket_is_private_exclusive_and_removed(tmp_path):
    path = tmp_path / "rpc.sock"
    server = make(f"unix:{path}")
    await server.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert await health_check.check(server.address) == "SERVING"
    with pytest.raises(UnavailableError) as raised:
        await make(f"unix:{path}").start()
    assert raised.value.reason == "PORT_IN_USE"
    assert await health_check.check(server.address) == "SERVING"
    await server.stop(0)
    assert not path.exists()


async def test_a_unix_socket_left_by_a_killed_daemon_is_replaced(tmp_path):
    path = tmp_path / "rpc.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = make(f"unix:{path}")
    await server.start()
    assert await health_check.check(server.address) == "SERVING"
    await server.stop(0)


async def test_a_plain_file_is_not_overwritten_by_a_socket(tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(UnavailableError):
        await make(f"unix:{path}").start()
    assert path.read_text() == "data"


async def test_a_stop_lets_a_running_call_finish():
    servicer = Waiting()
    server = make(servicer=servicer)
    await server.start()
    async with open_channel(server.address) as channel:
        call = pb_grpc.VcrServiceStub(channel).CheckVcr(pb.CheckVcrRequest(), timeout=5)
        await servicer.entered.wait()
        stopping = asyncio.create_task(server.stop(5))
        servicer.release.set()
        assert (await call).valid
        await stopping


async def test_a_stop_cancels_what_outlives_its_grace():
    servicer = Waiting()
    server = make(servicer=servicer)
    await server.start()
    async with open_channel(server.address) as channel:
        call = pb_grpc.VcrServiceStub(channel).CheckVcr(pb.CheckVcrRequest(), timeout=5)
        await servicer.entered.wait()
        await server.stop(0.05)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
    assert raised.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    await asyncio.wait_for(servicer.cancelled.wait(), 5)


async def test_health_is_off_while_a_stop_waits():
    servicer = Waiting()
    server = make(servicer=servicer)
    await server.start()
    async with open_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=5
        )
        assert (await watch.read()).status == SERVING
        stopping = asyncio.create_task(server.stop(0.2))
        assert (await watch.read()).status == NOT_SERVING
        await stopping


async def test_a_message_above_the_limit_is_refused(server):
    async with open_channel(server.address) as channel:
        stub = pb_grpc.VcrServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.CheckVcr(pb.CheckVcrRequest(vcr_json="x" * (5 << 20)), timeout=5)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_client_finds_a_restarted_server_soon(server):
    address = server.address
    async with open_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        await server.stop(0)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        again = make(address)
        await again.start()
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5, wait_for_ready=True)
        assert answer.status == SERVING
        await again.stop(0)


async def test_the_health_command_says_how_a_daemon_is(server):
    async def command(*arguments):
        process = await asyncio.create_subprocess_exec(
            os.sys.executable,
            "-m",
            "stairlib.rpc.health_check",
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode, out.decode().strip(), err.decode().strip()

    assert await command(server.address) == (0, "SERVING", "")
    server.set_serving(False)
    assert await command(server.address) == (1, "NOT_SERVING", "")
    status, out, err = await command("127.0.0.1:1", "--timeout", "1")
    assert (status, out) == (1, "")
    assert "cannot reach the daemon at 127.0.0.1:1" in err
    status, _, err = await command("nonsense")
    assert status == 1
    assert "is not an address" in err


class Held:
    """Something that a call has while it lasts."""


class Holding(Waiting):
    """`gone` is set when nobody has what the call had."""

    def __init__(self):
        super().__init__()
        self.gone = asyncio.Event()

    async def CheckVcr(self, request, context):
        held = Held()
        weakref.finalize(held, self.gone.set)
        return await super().CheckVcr(request, context)


async def test_a_call_that_was_left_leaves_no_frames_behind():
    """Without a search for garbage, of which full ones are seldom."""
    servicer = Holding()
    server = make(servicer=servicer)
    await server.start()
    gc.disable()
    try:
        async with open_channel(server.address) as channel, asyncio.timeout(5):
            call = pb_grpc.VcrServiceStub(channel).CheckVcr(pb.CheckVcrRequest())
            await servicer.entered.wait()
            call.cancel()
            await servicer.gone.wait()
    finally:
        gc.enable()
        await server.stop(0)
