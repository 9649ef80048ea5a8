"""VcrService over real gRPC: answers, errors with field paths, and the document's own files."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf import json_format

from controlplane.services.vcr import VcrServicer
from stairlib.model.errors import InvalidRequestError
from stairlib.model.violations import VIOLATIONS_MAX
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import from_rpc_error
from stairlib.rpc.server import RpcServer, Service
from stairlib.telemetry.tracing import Tracing
from stairwell.controlplane.v1 import vcr_service_pb2 as pb
from stairwell.controlplane.v1 import vcr_service_pb2_grpc as pb_grpc

EXAMPLES = Path(__file__).parents[2] / "examples"
TIMEOUT = 10


@pytest.fixture
async def stub() -> AsyncIterator[Any]:
    tracing = Tracing.configure("controlplane", "test")
    service = Service(
        "stairwell.controlplane.v1.VcrService",
        lambda server: pb_grpc.add_VcrServiceServicer_to_server(VcrServicer(), server),
    )
    server = RpcServer("127.0.0.1:0", [service], tracing)
    await server.start()
    channel = open_channel(server.address)
    yield pb_grpc.VcrServiceStub(channel)
    await channel.close()
    await server.stop(0)
    tracing.shutdown()


@pytest.fixture
def original() -> dict[str, Any]:
    disks = json.loads((EXAMPLES / "crucible-disks.json").read_text())
    return disks[0]["volume_construction_request"]


@pytest.fixture
def replacement() -> dict[str, Any]:
    return json.loads((EXAMPLES / "replace.json").read_text())["vcr"]


def compare_request(old: dict[str, Any], new: dict[str, Any]) -> pb.CompareVcrsRequest:
    """Through protobuf's JSON reader, as grpcurl does it."""
    text = {"original": old, "replacement": new}
    return json_format.ParseDict(text, pb.CompareVcrsRequest())


async def refused(call: Any) -> InvalidRequestError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidRequestError)
    return error


async def test_the_documents_replacement(stub: Any, original: Any, replacement: Any) -> None:
    reply = await stub.CompareVcrs(compare_request(original, replacement), timeout=TIMEOUT)
    assert reply.outcome == pb.VCR_OUTCOME_REPLACE
    assert reply.changed.path == "sub_volumes[0].opts.target[2]"
    assert reply.changed.slot == 2
    assert (reply.changed.old, reply.changed.new) == ("127.0.0.1:8830", "127.0.0.1:8840")
    assert not reply.violations


async def test_generation_only_and_unchanged(stub: Any, original: Any, replacement: Any) -> None:
    replacement["sub_volumes"][0]["opts"]["target"][2] = "127.0.0.1:8830"
    reply = await stub.CompareVcrs(compare_request(original, replacement), timeout=TIMEOUT)
    assert reply.outcome == pb.VCR_OUTCOME_GENERATION_ONLY
    assert not reply.HasField("changed")
    reply = await stub.CompareVcrs(compare_request(original, original), timeout=TIMEOUT)
    assert reply.outcome == pb.VCR_OUTCOME_UNCHANGED
    assert [v.reason for v in reply.violations] == ["NO_DIFFERENCE"]


async def test_a_rejection_lists_every_violation(stub: Any, original: Any) -> None:
    bad = json.loads(json.dumps(original))
    bad["sub_volumes"][0]["gen"] = 0
    bad["sub_volumes"][0]["opts"]["target"][:2] = ["127.0.0.1:1", "127.0.0.1:2"]
    reply = await stub.CompareVcrs(compare_request(original, bad), timeout=TIMEOUT)
    assert reply.outcome == pb.VCR_OUTCOME_REJECT
    assert {v.field: v.reason for v in reply.violations} == {
        "sub_volumes[0].gen": "GENERATION_LOWERED",
        "sub_volumes[0].opts.target[0]": "TWO_TARGETS_CHANGED",
        "sub_volumes[0].opts.target[1]": "TWO_TARGETS_CHANGED",
    }
    assert reply.violations[0].description == "is 0, must be at least 1"


async def test_what_cannot_be_read_is_named_on_both_sides(stub: Any, original: Any) -> None:
    bad = json.loads(json.dumps(original))
    bad["sub_volumes"][0]["opts"]["target"][2] = "nowhere"
    request = compare_request(bad, original)
    request.replacement.ClearField("block_size")
    error = await refused(stub.CompareVcrs(request, timeout=TIMEOUT))
    assert {v.field: v.reason for v in error.violations} == {
        "original.sub_volumes[0].opts.target[2]": "INVALID_ADDRESS",
        "replacement.block_size": "REQUIRED",
    }
    error = await refused(stub.CompareVcrs(pb.CompareVcrsRequest(), timeout=TIMEOUT))
    assert [v.field for v in error.violations] == ["original.type", "replacement.type"]


async def test_check_answers_a_summary(stub: Any, original: Any) -> None:
    by_message = json_format.ParseDict({"vcr": original}, pb.CheckVcrRequest())
    by_text = pb.CheckVcrRequest(vcr_json=json.dumps(original))
    for request in (by_message, by_text):
        reply = await stub.CheckVcr(request, timeout=TIMEOUT)
        assert reply.valid
        assert reply.summary.total_bytes == 8 << 30
        assert (reply.summary.regions, reply.summary.targets, reply.summary.depth) == (1, 3, 2)
        assert reply.summary.block_size == 4096
        assert not reply.summary.encrypted


async def test_check_lists_what_is_wrong(stub: Any, original: Any) -> None:
    original["sub_volumes"][0]["gen"] = 0
    original["sub_volumes"][0]["opts"]["target"].pop()
    reply = await stub.CheckVcr(pb.CheckVcrRequest(vcr_json=json.dumps(original)), timeout=TIMEOUT)
    assert not reply.valid
    assert {v.field: v.reason for v in reply.violations} == {
        "sub_volumes[0].gen": "GENERATION_ZERO",
        "sub_volumes[0].opts.target": "TARGET_COUNT",
    }
    original["sub_volumes"][0]["generation"] = 1
    original["sub_volumes"][0]["opts"]["target"].append("nowhere")
    reply = await stub.CheckVcr(pb.CheckVcrRequest(vcr_json=json.dumps(original)), timeout=TIMEOUT)
    assert {v.field: v.reason for v in reply.violations} == {
        "sub_volumes[0].generation": "UNKNOWN_FIELD",
        "sub_volumes[0].opts.target[2]": "INVALID_ADDRESS",
        "sub_volumes[0].gen": "GENERATION_ZERO",
    }
    assert reply.summary.total_bytes == 8 << 30
    reply = await stub.CheckVcr(pb.CheckVcrRequest(vcr_json="{"), timeout=TIMEOUT)
    assert [v.reason for v in reply.violations] == ["INVALID_JSON"]
    assert not reply.HasField("summary")


async def test_check_leaves_out_of_the_summary_what_it_cannot_say(stub: Any, original: Any) -> None:
    original["sub_volumes"][0]["extent_count"] = "128"
    reply = await stub.CheckVcr(pb.CheckVcrRequest(vcr_json=json.dumps(original)), timeout=TIMEOUT)
    assert not reply.summary.HasField("total_bytes")
    assert (reply.summary.regions, reply.summary.HasField("encrypted")) == (1, True)


async def test_a_check_lists_many_problems_and_counts_the_rest(stub: Any, original: Any) -> None:
    original |= {f"key{number}": 1 for number in range(1200)}
    original["sub_volumes"][0]["gen"] = 0
    reply = await stub.CheckVcr(pb.CheckVcrRequest(vcr_json=json.dumps(original)), timeout=TIMEOUT)
    assert len(reply.violations) + reply.violations_omitted == 1201
    assert len(reply.violations) == VIOLATIONS_MAX


async def test_ten_thousand_nodes_are_judged(stub: Any, original: Any) -> None:
    region = original["sub_volumes"][0]
    original["sub_volumes"] = [
        region | {"opts": region["opts"] | {"target": [f"node-{n}:{port}" for port in (1, 2, 3)]}}
        for n in range(9_999)
    ]
    by_message = json_format.ParseDict({"vcr": original}, pb.CheckVcrRequest())
    by_text = pb.CheckVcrRequest(vcr_json=json.dumps(original))
    for request in (by_message, by_text):
        reply = await stub.CheckVcr(request, timeout=TIMEOUT)
        assert reply.valid
        assert reply.summary.regions == 9_999


async def test_an_error_names_fields_of_both_sides_however_many(stub: Any, original: Any) -> None:
    request = compare_request(original, original)
    for side in (request.original, request.replacement):
        for _ in range(1200):
            side.sub_volumes.add(type="disk")
    error = await refused(stub.CompareVcrs(request, timeout=TIMEOUT))
    sides = {v.field.split(".")[0] for v in error.violations}
    assert sides == {"original", "replacement"}
    assert len(error.violations) + int(error.metadata["violations_omitted"]) == 2400


async def test_check_wants_one_request(stub: Any, original: Any) -> None:
    both = json_format.ParseDict({"vcr": original, "vcr_json": "{}"}, pb.CheckVcrRequest())
    for request in (pb.CheckVcrRequest(), both):
        error = await refused(stub.CheckVcr(request, timeout=TIMEOUT))
        assert [v.reason for v in error.violations] == ["ONE_OF_REQUIRED"]


async def test_a_key_never_comes_back(stub: Any, original: Any, replacement: Any) -> None:
    original["sub_volumes"][0]["opts"]["key"] = "c2VjcmV0LW1hcms="
    replacement["sub_volumes"][0]["opts"]["key"] = "b3RoZXItbWFyaw=="
    checked = await stub.CheckVcr(
        pb.CheckVcrRequest(vcr_json=json.dumps(original)), timeout=TIMEOUT
    )
    compared = await stub.CompareVcrs(compare_request(original, replacement), timeout=TIMEOUT)
    assert not checked.valid
    assert compared.outcome == pb.VCR_OUTCOME_REJECT
    for mark in ("c2VjcmV0LW1hcms=", "b3RoZXItbWFyaw=="):
        assert mark not in f"{checked}{compared}"
