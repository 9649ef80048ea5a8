"""Bad input by the real commands: a clear error that names the field, and nothing changed.

One machine with a running disk, and a second one whose members are in use, for the module.
"""

from __future__ import annotations

import asyncio
import copy
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import instance_service_pb2_grpc as instance_grpc
from tests.integration.cluster import Answer, Cluster, Program, run, until
from tests.integration.volume import Volume, fresh_volume
from tests.ports import free_ports

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

TARGET = "sub_volumes[0].opts.target"
NOBODY = "127.0.0.1:1"


@dataclass
class Scene:
    """What the tests of this module meet: a running disk, another one, and a wrong spare."""

    cluster: Cluster
    volume: Volume
    other: Volume
    odd: Program
    folder: Path

    def file(self, content: Any) -> Path:
        """A file with this text, or this as JSON."""
        path = self.folder / "input.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    async def replace(self, content: Any, *more: str) -> Answer:
        """`stairwell vcr` with a file of that content, for the running disk."""
        words = ("vcr", "-u", self.volume.id, "--vcr-replace", self.file(content), *more)
        return await self.cluster.cli(*words)

    def request(self, vcr: dict[str, Any]) -> dict[str, Any]:
        """A replace file."""
        return {"name": self.volume.disk, "vcr": vcr}

    async def picture(self) -> tuple[object, ...]:
        """All that a refused request must leave as it was."""
        instances = await self.cluster.call(
            instance_grpc.InstanceServiceStub, "ListInstances", instance_pb.ListInstancesRequest()
        )
        parts: list[object] = [[(one.name, one.state) for one in instances.instances]]
        for volume in (self.volume, self.other):
            disk = await volume.info()
            [region] = disk.volume.regions
            parts += [
                disk.recorded_generation, disk.vcr, disk.replacement_id, region.session_id,
                [(slot.address, slot.state, slot.mode) for slot in region.slots],
            ]  # fmt: skip
        return (*parts, await self.cluster.replacements())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder: Path = tmp_path_factory.mktemp("bad")
    async with Cluster.started(folder / "cluster") as cluster:
        odd = cluster.downstairs(extent_count=63)
        async with (
            fresh_volume(cluster) as volume,
            fresh_volume(cluster, spare=False) as other,
        ):
            await asyncio.gather(odd.start(), volume.settled(), other.settled())
            yield Scene(cluster, volume, other, odd, folder)


@pytest_asyncio.fixture(loop_scope="module")
async def scene(stage: Scene) -> AsyncIterator[Scene]:
    """The stage; whatever a test did to it, it must look as before."""
    before = await stage.picture()
    yield stage
    assert await stage.picture() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda region: region["opts"]["target"].__setitem__(0, NOBODY), [TARGET]),
        (lambda region: region.update(gen=0), ["sub_volumes[0].gen", "0", "1"]),
        (lambda region: region.update(block_size=512), ["block_size", "512", "4096"]),
        (lambda region: region.update(blocks_per_extent=128), ["blocks_per_extent", "128"]),
        (lambda region: region.update(extent_count=65), ["extent_count", "65", "64"]),
    ],
    ids=["two targets", "lower generation", "block size", "extent size", "extent count"],
)
async def test_more_than_one_target_differs(scene: Scene, change: Any, named: list[str]) -> None:
    vcr = copy.deepcopy(scene.volume.changed())
    change(vcr["sub_volumes"][0])
    (await scene.replace(scene.request(vcr))).bad(*named)


async def test_nothing_differs(scene: Scene) -> None:
    vcr = scene.volume.vcr(1, scene.volume.targets)
    answer = await scene.replace(scene.request(vcr))
    answer.bad("equal to the recorded request", scene.volume.disk)


async def test_a_target_that_is_not_there(scene: Scene) -> None:
    vcr = scene.volume.changed(target=NOBODY)
    (await scene.replace(scene.request(vcr))).bad(NOBODY, f"{TARGET}[2]")


async def test_a_target_that_is_a_member_of_another_disk(scene: Scene) -> None:
    taken = scene.other.targets[1]
    answer = await scene.replace(scene.request(scene.volume.changed(target=taken)))
    answer.bad(taken, f"{TARGET}[2]", "in use", scene.other.disk)


async def test_a_target_that_is_a_member_already(scene: Scene) -> None:
    sibling = scene.volume.targets[0]
    answer = await scene.replace(scene.request(scene.volume.changed(target=sibling)))
    answer.bad(sibling, f"{TARGET}[2]")


async def test_a_target_of_another_geometry(scene: Scene) -> None:
    answer = await scene.replace(scene.request(scene.volume.changed(target=scene.odd.address)))
    answer.bad(scene.odd.address, f"{TARGET}[2]", "geometry", "63", "64")


async def test_a_target_that_is_no_downstairs(scene: Scene) -> None:
    stranger = scene.cluster.vmmd.address
    answer = await scene.replace(scene.request(scene.volume.changed(target=stranger)))
    answer.bad(stranger, f"{TARGET}[2]")


async def test_files_that_cannot_be_read(scene: Scene) -> None:
    good = json.dumps(scene.request(scene.volume.changed()))
    (await scene.replace(good[:-3])).bad("input.json:1:", "not JSON")
    unknown = scene.request(scene.volume.changed())
    unknown["vcr"]["sub_volumes"][0]["opts"]["tarket"] = []
    (await scene.replace(unknown)).bad("tarket", "sub_volumes[0].opts")
    painted = {**scene.volume.spec(), "colour": "red"}
    words = ("new", "third", "--crucible-disks", scene.file([painted]))
    (await scene.cluster.cli(*words)).bad("colour")
    words = ("new", "third", "--crucible-disks", scene.folder / "nowhere.json")
    (await scene.cluster.cli(*words)).bad("nowhere.json")


async def test_what_does_not_exist(scene: Scene) -> None:
    cli = scene.cluster.cli
    vcr = scene.file(scene.request(scene.volume.changed()))
    unknown = "11111111-2222-4333-8444-555555555555"
    (await cli("vcr", "-u", unknown, "--vcr-replace", vcr)).bad(unknown)
    (await cli("disk", "status", "nodisk")).bad("nodisk")
    (await cli("get", "nobody")).bad("nobody")
    (await cli("state", "run", "nobody")).bad("nobody")
    (await cli("trace", unknown)).bad(unknown)
    (await cli("replacement", "get", unknown)).bad(unknown)
    (await cli("state", "stop")).bad(scene.volume.instance, scene.other.instance)


async def test_an_instance_that_cannot_be(scene: Scene) -> None:
    """Its name is taken, or its disk's."""
    cli, volume = scene.cluster.cli, scene.volume
    (await cli("new", volume.instance)).bad(volume.instance)
    taken = volume.spec()
    (await cli("new", "third", "--crucible-disks", scene.file([taken]))).bad(volume.disk)


@asynccontextmanager
async def instance(scene: Scene, spec: dict[str, Any]) -> AsyncIterator[str]:
    """An instance of its own for a test."""
    made = await scene.cluster.cli("new", "third", "--crucible-disks", scene.file([spec]))
    made.good()
    try:
        yield "third"
    finally:
        (await scene.cluster.cli("delete", "third")).good()


@pytest.mark.long
async def test_states_that_an_instance_cannot_take(scene: Scene) -> None:
    cli = scene.cluster.cli
    (await cli("new", "third")).good()
    try:
        (await cli("state", "reboot", "third")).bad("reboot needs a running machine")
        (await cli("state", "run", "third", "--wait")).good()
        (await cli("state", "stop", "third", "--wait")).good()
        (await cli("state", "run", "third")).bad("third", "create it again")
        (await cli("state", "reboot", "third")).bad("third")
        (await cli("state", "stop", "third")).good()
        (await cli("state", "jump", "third")).bad("jump")
    finally:
        (await cli("delete", "third")).good()


async def test_members_that_are_away_when_it_is_made_and_run(scene: Scene) -> None:
    """It stays starting, says what it waits for, and can be stopped."""
    away = Volume(scene.cluster, scene.volume.downstairs)
    async with instance(scene, away.spec([NOBODY, "127.0.0.1:2", "127.0.0.1:3"])) as name:
        (await scene.cluster.cli("state", "run", name)).good()
        found = await until(
            lambda: scene.cluster.cli("--output", "json", "disk", "status", away.disk),
            lambda answer: "cannot reach" in answer.out,
        )
        assert NOBODY in found.good().out
        status = await scene.cluster.cli("--output", "json", "get", name)
        assert status.json["state"] == "starting"
        (await scene.cluster.cli("state", "stop", name, "--wait")).good()


@contextmanager
def taken_port() -> Iterator[int]:
    """A port somebody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


async def test_ports_in_use(scene: Scene) -> None:
    region = scene.folder / "region"
    shape = ("--extent-size", "16", "--extent-count", "4", "--block-size", "512")
    uuid = "11111111-2222-4333-8444-555555555555"
    (await run("downstaird", "create", "-d", region, "-u", uuid, *shape)).good()
    config = scene.cluster.folder / "server.toml"
    with taken_port() as port:
        address = f"127.0.0.1:{port}"
        data = scene.folder / "data"
        for command in (
            ("vmmd", "run", config, address),
            ("controlplane", "run", address, "--data", data),
            ("downstaird", "run", "-d", region, "-p", str(port), "-a", "127.0.0.1"),
        ):
            (await run(*command)).bad(str(port), "in use")


async def test_a_region_directory_that_is_none(scene: Scene) -> None:
    empty = scene.folder / "empty"
    empty.mkdir(exist_ok=True)
    nowhere = scene.folder / "nowhere"
    for folder in (empty, nowhere, scene.file("{}")):
        answer = await run("downstaird", "run", "-d", folder, "-p", "0", "-a", "127.0.0.1")
        answer.bad(str(folder))
    assert list(empty.iterdir()) == []
    assert not nowhere.exists()


async def test_a_host_configuration_with_unknown_keys(scene: Scene) -> None:
    config = scene.folder / "server.toml"
    config.write_text('bootrom = "/x"\n[dev.block0]\ndriver = "pci-nvme"\npci_paht = "0.4.0"\n')
    (await run("vmmd", "run", config, "127.0.0.1:0")).bad("pci_paht")
    (await run("vmmd", "run", scene.folder / "none.toml", "127.0.0.1:0")).bad("none.toml")


async def test_a_control_plane_that_is_away(scene: Scene) -> None:
    nobody = f"127.0.0.1:{free_ports(1)}"
    vcr = scene.file(scene.request(scene.volume.changed()))
    for words in (
        ("list",), ("state", "run"),
        ("vcr", "-u", scene.volume.id, "--vcr-replace", vcr),
    ):  # fmt: skip
        (await scene.cluster.cli(*words, server=nobody)).bad(nobody, "controlplane run")


@pytest.mark.long
async def test_a_vmmd_that_is_away(stage: Scene) -> None:
    """Asked while it is away: an error that names it, no instance left, and what is wanted of one
    that is there is done later; last in the module."""
    cluster = stage.cluster
    before = await cluster.replacements()
    recorded = (await stage.volume.info()).vcr
    cluster.vmmd.kill()
    vmmd = cluster.vmmd.address
    (await cluster.cli("new", "fourth")).bad(vmmd)
    (await cluster.cli("get", "fourth")).bad("fourth")
    (await cluster.cli("state", "stop", stage.volume.instance)).bad(vmmd)
    status = (await cluster.cli("--output", "json", "disk", "status", stage.volume.disk)).good()
    assert status.json["name"] == stage.volume.disk
    assert (await cluster.cli("get", stage.volume.instance)).good().out
    assert (await cluster.get_disk(stage.volume.disk)).vcr == recorded
    assert await cluster.replacements() == before
    await cluster.vmmd.start()
    await stage.other.settled()
    # What the machine could not be told is recorded, and done as soon as it is there.
    ended = (instance_pb.INSTANCE_STATE_STOPPED, instance_pb.INSTANCE_STATE_DESTROYED)
    await until(lambda: cluster.get_instance(stage.volume.instance), lambda one: one.state in ended)
