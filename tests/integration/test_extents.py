"""The map of a disk's extents on real daemons: what a guest dirties, and a repair that fills it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stairlib.model.extents import ExtentState, from_text
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import disk_service_pb2_grpc as disk_grpc
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from stairwell.vmmd.v1 import volume_service_pb2_grpc as volume_grpc
from tests.integration.cluster import DEADLINE, MIB, Cluster, until
from tests.integration.volume import Volume, fresh_volume

pytestmark = pytest.mark.processes

EXTENTS = 256


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster.started(tmp_path / "cluster") as started:
        yield started


async def texts(volume: Volume) -> list[str]:
    """The three columns now."""
    request = disk_pb.GetDiskExtentsRequest(name=volume.disk)
    answer = await volume.cluster.call(disk_grpc.DiskServiceStub, "GetDiskExtents", request)
    (region,) = answer.regions
    assert region.extent_count == EXTENTS
    assert [column.address for column in region.columns] == [
        slot.address for slot in (await volume.info()).volume.regions[0].slots
    ]
    return [column.runs for column in region.columns]


def count(text: str, *states: ExtentState) -> int:
    found = from_text(text).tolist()
    assert len(found) == EXTENTS
    return sum(found.count(state) for state in states)


async def test_a_map_fills_as_a_repair_runs(cluster: Cluster) -> None:
    async with fresh_volume(cluster, extent_count=EXTENTS) as volume:
        await volume.fill(24 * MIB)
        assert await until(lambda: texts(volume), lambda seen: seen == [f"{EXTENTS}s"] * 3)
        stub = disk_grpc.DiskServiceStub(cluster.channel(cluster.controlplane.address))
        watch = stub.WatchDiskExtents(disk_pb.WatchDiskExtentsRequest(name=volume.disk))
        first = await watch.read()
        assert [column.runs for column in first.regions[0].columns] == [f"{EXTENTS}s"] * 3
        await volume.limit(1 * MIB)
        replacement = (await volume.replace()).replacement_id
        await volume.mid_repair(replacement, 2)
        # By hand, at the machine's own service.
        asked = volume_pb.GetExtentsRequest(machine_id=volume.instance_id, disk=volume.disk)
        at = cluster.vmmd.address
        answer = await cluster.call(volume_grpc.VolumeServiceStub, "GetExtents", asked, at=at)
        assert len(answer.regions[0].columns) == 3
        text = (await cluster.cli("disk", "map", volume.disk)).good().out
        assert f"{EXTENTS} extents" in text
        assert "being copied" in text
        assert f"{EXTENTS} in sync" in text
        said = (await cluster.cli("--output", "json", "disk", "map", volume.disk)).good().json
        shown = said["regions"][0]["columns"][2]
        assert shown["address"] == volume.spare.address
        assert count(shown["runs"], ExtentState.COPIED) >= 2
        await volume.limit(0)
        column: list[str] = []
        async with asyncio.timeout(DEADLINE):
            while not column or column[-1] != f"{EXTENTS}s":
                (region,) = (await watch.read()).regions
                changed = {each.slot for each in region.columns}
                assert changed == {2}, "what stays as it is is not told again"
                column.append(region.columns[0].runs)
        watch.cancel()
        filling = [text for text in column if "c" in text or "w" in text]
        copied = [count(text, ExtentState.COPIED) for text in filling]
        assert copied == sorted(copied)
        assert any("w" in text and "x" in text and "c" in text for text in filling)
        await volume.done(replacement)
        async with volume.load():
            dirty = await until(lambda: texts(volume), lambda seen: "d" in "".join(seen))
        assert not set("".join(dirty)) & set("cwxu")
