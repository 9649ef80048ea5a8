"""The document's steps by its own commands and files, of which only the ports are changed."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.protobuf import json_format
from grpc_reflection.v1alpha import reflection_pb2

from stairlib.rpc.channel import open_channel
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import disk_service_pb2_grpc as disk_grpc
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from tests.integration.cluster import LOOPBACK, MIB, Program
from tests.integration.document_house import House
from tests.integration.nbd_client import NbdClient

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

VOLUME = "0cedae45-3d6e-4d90-b2cb-56f1a1a42a89"
GIB = 1 << 30


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    made = House(tmp_path_factory.mktemp("walk") / "house")
    try:
        programs: list[Program] = [made.dsc, made.vmmd, made.controlplane]
        for program in programs:
            program.launch()
        for program in programs:
            await program.serving()
        yield made
    finally:
        await made.close()


async def test_the_documents_steps(house: House) -> None:
    cli = house.cli
    disks, replace = house.example("crucible-disks.json"), house.example("replace.json")
    made = await cli("new", "crub", "--crucible-disks", disks)
    assert "block2" in made.good().out
    (await cli("state", "run")).good()
    (await cli("state", "run", "--wait")).good()

    status = (await cli("--output", "json", "disk", "status", "block2")).good().json
    [region] = status["volume"]["regions"]
    assert [slot["address"] for slot in region["slots"]] == [
        f"{LOOPBACK}:{house.port(port)}" for port in (8810, 8820, 8830)
    ]
    written = {}
    with NbdClient(status["volume"]["nbd_uri"]) as client:
        assert client.size == 8 * GIB
        for offset in (0, 17 * 4096, GIB - 4096, 3 * GIB, 8 * GIB - MIB):
            written[offset] = os.urandom(64 << 10)
            client.write(offset, written[offset])
        # Two extents full, so that their repair takes seconds at the limit.
        client.write(5 * GIB, os.urandom(16 * MIB))
        client.write(6 * GIB, os.urandom(16 * MIB))
        client.flush()
    await replaced(house, replace)
    with NbdClient(status["volume"]["nbd_uri"]) as client:
        for offset, data in written.items():
            assert client.read(offset, len(data)) == data
        assert client.read(7 * GIB, 4096) == bytes(4096)


async def replaced(house: House, file: Path) -> None:
    """The replacement by the document's command, sent again while it runs and after."""
    words = ("vcr", "-u", VOLUME, "--vcr-replace", file)
    (await house.cli(*words, "--validate-only")).good()
    await house.limit_before(4 * MIB)
    started = (await house.cli("--output", "json", *words, "--no-wait")).good().json
    assert started["result"] == "started"
    name = started["replacement_id"]
    again = (await house.cli("--output", "json", *words, "--no-wait")).good().json
    assert again["result"] == "started_already"
    assert again["replacement_id"] == name
    (await house.cli("replacement", "limit", name, "--rate", "0")).good()
    followed = (await house.cli("replacement", "watch", name)).good()
    assert "verified" in followed.out
    after = (await house.cli(*words)).good()
    assert "completed_already" in after.out


async def test_every_view_has_both_forms(house: House) -> None:
    for words in (
        ("get",), ("list",), ("disk", "status"), ("disk", "status", VOLUME), ("trace",),
        ("replacement", "list"), ("fleet", "list"), ("disk", "verify", "block2", "--read-data"),
    ):  # fmt: skip
        assert (await house.cli(*words)).good().out.strip()
        assert (await house.cli("--output", "json", *words)).good().json
    human = (await house.cli("disk", "status", "block2")).good().out
    for word in ("active", str(house.port(8840)), "nbd", "generation"):
        assert word in human, human
    trace = (await house.cli("--output", "json", "trace")).json
    assert {"controlplane", "vmmd", "machine", "downstairs"} <= set(trace["services"])
    disk = (await house.cli("--output", "json", "disk", "status", "block2")).json
    assert int(disk["recorded_generation"]) == 2


async def test_the_documents_file_pasted_into_the_service(house: House) -> None:
    """As grpcurl does it: the file as it is, nulls included, through protobuf's own JSON."""
    text = house.example("replace.json").read_text()
    request = json_format.Parse(text, disk_pb.ReplaceVcrRequest())
    answer = await house.call(disk_grpc.DiskServiceStub, "ReplaceVcr", request)
    assert answer.result == disk_pb.REPLACE_RESULT_COMPLETED_ALREADY
    as_text = disk_pb.ReplaceVcrRequest(name="block2", vcr_json=json.dumps(json.loads(text)["vcr"]))
    again = await house.call(disk_grpc.DiskServiceStub, "ReplaceVcr", as_text)
    assert again.replacement_id == answer.replacement_id
    create = {
        "name": "second",
        "disks": json.loads(house.example("crucible-disks.json").read_text()),
    }
    parsed = json_format.ParseDict(create, instance_pb.CreateInstanceRequest())
    [disk] = parsed.disks
    assert (
        disk.volume_construction_request.sub_volumes[0]
        .opts.target[2]
        .endswith(str(house.port(8830)))
    )


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_on_every_daemon(house: House, version: str) -> None:
    for address in house.daemons():
        async with open_channel(address) as channel:
            ask = channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            names = await listed(ask)
            assert "grpc.health.v1.Health" in names
            own = [name for name in names if name.startswith("stairwell.")]
            assert own, address
            for name in own:
                request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
                answer = await ask(iter([request]), timeout=30).read()
                assert answer.file_descriptor_response.file_descriptor_proto, (address, name)


async def listed(ask: grpc.aio.StreamStreamMultiCallable) -> list[str]:
    """The services a daemon names."""
    request = reflection_pb2.ServerReflectionRequest(list_services="*")
    answer = await ask(iter([request]), timeout=30).read()
    return [service.name for service in answer.list_services_response.service]


async def test_an_instance_is_watched_to_its_end(house: House) -> None:
    """Last of all: the machine stops, its states are told, and every daemon ends in order."""
    monitor = asyncio.create_task(house.cli("--output", "json", "monitor", "crub"))
    (await house.cli("state", "stop", "crub", "--wait")).good()
    told = [json.loads(line)["state"] for line in (await monitor).good().out.splitlines()]
    assert told[-1] == "destroyed"
    assert await house.controlplane.end() == 0
    assert await house.vmmd.end() == 0
    assert await house.dsc.end() == 0
