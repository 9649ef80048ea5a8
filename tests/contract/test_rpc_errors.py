"""Each error class crosses a real gRPC call and comes back as itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from stairlib.model.errors import (
    AlreadyExistsError,
    ConflictError,
    DataError,
    FieldViolation,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    RefusedError,
    StairwellError,
    StateError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import CODES, rpc_failure, translated
from stairlib.rpc.server import RpcServer, Service
from stairlib.telemetry.tracing import Tracing
from stairwell.controlplane.v1 import vcr_service_pb2 as pb
from stairwell.controlplane.v1 import vcr_service_pb2_grpc as pb_grpc

NAME = "stairwell.controlplane.v1.VcrService"
VIOLATIONS = (
    FieldViolation("sub_volumes[0].opts.target[2]", "give a host and a port", "BAD_ADDRESS"),
    FieldViolation("block_size", "a power of two", "BAD_BLOCK_SIZE"),
)
ERRORS = [
    InvalidRequestError("two fields are wrong", VIOLATIONS, reason="BAD_VCR", disk="d1"),
    NotFoundError("disk", "crub"),
    AlreadyExistsError("there is a disk of that name", reason="DISK_EXISTS", name="crub"),
    StateError("it is stopped; start it first", reason="NOT_RUNNING", state="stopped"),
    ConflictError("a replacement is running", reason="REPLACEMENT_RUNNING", replacement="r-1"),
    UnavailableError("vmmd is away", reason="VMMD_AWAY", address="127.0.0.1:1"),
    RefusedError("only the owner may", reason="NOT_OWNER"),
    UnauthenticatedError("the token is not known", reason="TOKEN_UNKNOWN"),
    LimitError("eight volumes are the most", reason="TOO_MANY", limit="8"),
    UnsupportedError("not in this version", reason="NO_TLS"),
    DataError("extent 7 is damaged — repair it", reason="BAD_HASH", extent="7"),
]


class Raising(pb_grpc.VcrServiceServicer):
    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    async def CheckVcr(self, request, context):
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()


@asynccontextmanager
async def calling(servicer) -> AsyncIterator[pb_grpc.VcrServiceStub]:
    tracing = Tracing("test", "here")
    server = RpcServer(
        "127.0.0.1:0",
        [Service(NAME, lambda it: pb_grpc.add_VcrServiceServicer_to_server(servicer, it))],
        tracing,
    )
    await server.start()
    try:
        async with open_channel(server.address) as channel:
            yield pb_grpc.VcrServiceStub(channel)
    finally:
        await server.stop(0)
        tracing.shutdown()


async def failure(servicer) -> grpc.aio.AioRpcError:
    async with calling(servicer) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.CheckVcr(pb.CheckVcrRequest(), timeout=5)
    return raised.value


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_an_error_comes_back_as_itself(error):
    async with calling(Raising(error)) as stub:
        with pytest.raises(StairwellError) as raised, translated("the server"):
            await stub.CheckVcr(pb.CheckVcrRequest(), timeout=5)
    back = raised.value
    assert type(back) is type(error)
    assert (back.message, back.reason, back.metadata) == (
        error.message,
        error.reason,
        error.metadata,
    )
    assert getattr(back, "violations", ()) == getattr(error, "violations", ())
    assert isinstance(back.__cause__, grpc.aio.AioRpcError)
    assert back.__cause__.code() is CODES[type(error)]


def test_every_class_of_the_model_is_tried():
    assert {type(error) for error in ERRORS} == set(CODES) == set(StairwellError.__subclasses__())


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (ERRORS[0], error_details_pb2.BadRequest),
        (ERRORS[1], error_details_pb2.ResourceInfo),
        (ERRORS[3], error_details_pb2.PreconditionFailure),
        (ERRORS[5], error_details_pb2.RetryInfo),
        (ERRORS[9], None),
    ],
)
async def test_details_are_one_error_info_and_what_fits_the_kind(error, detail):
    status = rpc_status.from_call(await failure(Raising(error)))
    kinds = [each.type_url.rpartition(".")[2] for each in status.details]
    assert kinds == ["ErrorInfo"] + ([detail.DESCRIPTOR.name] if detail else [])
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert info.domain == "stairwell"
    assert status.message == error.message


async def test_a_subclass_has_the_code_of_its_base():
    class StaleError(ConflictError):
        reason = "STALE"

    error = await failure(Raising(StaleError("the generation moved on")))
    assert error.code() is grpc.StatusCode.ABORTED


async def test_an_unexpected_exception_tells_the_client_nothing(caplog):
    error = await failure(Raising(RuntimeError("secret key 0xfeed in /var/lib/x")))
    assert error.code() is grpc.StatusCode.INTERNAL
    seen = f"{error.details()} {error.trailing_metadata()}"
    assert "secret" not in seen
    assert "RuntimeError" not in seen
    logged = [record.msg for record in caplog.records if record.levelname == "ERROR"]
    assert [str(event["exc_info"]) for event in logged] == ["secret key 0xfeed in /var/lib/x"]
    with pytest.raises(StairwellError) as raised, translated("the server"):
        raise error
    assert type(raised.value) is StairwellError
    assert raised.value.reason == "INTERNAL"


async def test_more_violations_than_fit_are_counted_and_the_call_still_answers():
    many = tuple(
        FieldViolation(f"sub_volumes[{index}].opts.target[0]", "x" * 120) for index in range(500)
    )
    async with calling(Raising(InvalidRequestError("all wrong", many))) as stub:
        with pytest.raises(InvalidRequestError) as raised, translated("the server"):
            await stub.CheckVcr(pb.CheckVcrRequest(), timeout=5)
    kept = raised.value.violations
    assert 10 < len(kept) < 500
    assert kept == many[: len(kept)]
    assert int(raised.value.metadata["violations_omitted"]) == 500 - len(kept)


LONG = [
    StateError("é" * 20_000, reason="LONG", where="é" * 5_000),
    StateError("\n%" * 20_000, reason="LONG"),
    UnavailableError("x" * 20_000, **{f"key{index}": "é" * 300 for index in range(50)}),
    NotFoundError("disk", "\U0001f4be" * 3_000),
    InvalidRequestError("é" * 5_000, (FieldViolation("é" * 5_000, "é" * 5_000),) * 9),
]


@pytest.mark.parametrize("error", LONG, ids=range(len(LONG)))
async def test_a_very_long_error_still_answers(error):
    # Above 8 KiB a client refuses at random, the more the nearer to 16 KiB: count what is sent.
    failed = rpc_failure(error)
    (status,) = [value for _, value in failed.trailing_metadata]
    sent = len(quote(failed.text, safe=" /!")) + 4 * len(status) / 3
    assert sent < 7_800
    back = await failure(Raising(error))
    assert back.code() is CODES[type(error)]
    assert back.details().endswith("…")
    assert error.message.startswith(back.details()[:-1])
    assert len(back.details()) > 80


async def test_an_untranslated_error_of_a_peer_keeps_its_meaning():
    inner = await failure(Raising(ERRORS[3]))
    async with calling(Raising(inner)) as stub:
        with pytest.raises(StateError) as raised, translated("the server"):
            await stub.CheckVcr(pb.CheckVcrRequest(), timeout=5)
    assert raised.value.reason == "NOT_RUNNING"


async def test_a_method_without_code_is_unsupported():
    async with calling(Raising()) as stub:
        with pytest.raises(UnsupportedError), translated("the server"):
            await stub.CompareVcrs(pb.CompareVcrsRequest(), timeout=5)


async def test_a_deadline_is_unavailable_and_names_the_peer():
    async with calling(Raising()) as stub:
        with pytest.raises(UnavailableError) as raised, translated("vmmd at 1.2.3.4:5"):
            await stub.CheckVcr(pb.CheckVcrRequest(), timeout=0.05)
    assert raised.value.reason == "DEADLINE_EXCEEDED"
    assert "vmmd at 1.2.3.4:5" in str(raised.value)


async def test_nobody_there_names_the_peer(refusing_port):
    async with open_channel(f"127.0.0.1:{refusing_port}") as channel:
        with pytest.raises(UnavailableError) as raised, translated("vmmd at its address"):
            await pb_grpc.VcrServiceStub(channel).CheckVcr(pb.CheckVcrRequest(), timeout=5)
    assert "cannot reach vmmd at its address" in str(raised.value)
    assert raised.value.metadata == {"peer": "vmmd at its address"}


async def test_a_closed_channel_is_unavailable(refusing_port):
    channel = open_channel(f"127.0.0.1:{refusing_port}")
    await channel.close()
    with pytest.raises(UnavailableError) as raised, translated("vmmd"):
        await pb_grpc.VcrServiceStub(channel).CheckVcr(pb.CheckVcrRequest(), timeout=5)
    assert raised.value.reason == "CHANNEL_CLOSED"
