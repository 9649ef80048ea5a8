"""The map of a disk's extents, asked of its machine through the control plane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from stairlib.model.errors import NotFoundError, UnavailableError
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.contract.controlplane_house import SECONDS, VOLUME, House, house, refused


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "data") as found:
        await found.create_running()
        found.vmmd.extents = [
            volume_pb.RegionExtents(
                path="sub_volumes[0]", extent_count=8, extent_bytes=4096,
                columns=[volume_pb.ExtentColumn(slot=slot, runs="8s") for slot in range(3)],
            )
        ]  # fmt: skip
        yield found


def ask(home: House, name: str):
    return home.disks.GetDiskExtents(disk_pb.GetDiskExtentsRequest(name=name), timeout=SECONDS)


@pytest.mark.parametrize("name", ["block2", VOLUME])
async def test_the_map_comes_as_the_machine_tells_it(home: House, name: str) -> None:
    assert list((await ask(home, name)).regions) == home.vmmd.extents


async def test_an_unknown_disk_is_refused_and_an_absent_machine_knows_nothing(home: House) -> None:
    code, error = await refused(ask(home, "block3"))
    assert code is grpc.StatusCode.NOT_FOUND
    assert isinstance(error, NotFoundError)
    home.vmmd.failures["GetExtents"] = [UnavailableError("vmmd is away")]
    assert not (await ask(home, "block2")).regions
    watch = home.disks.WatchDiskExtents(disk_pb.WatchDiskExtentsRequest(name="block3"))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await watch.read()
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watch_outlives_the_machine_and_tells_all_anew(home: House) -> None:
    watch = home.disks.WatchDiskExtents(disk_pb.WatchDiskExtentsRequest(name="block2"))
    async with asyncio.timeout(SECONDS):
        assert list((await watch.read()).regions) == home.vmmd.extents
        changed = home.vmmd.extents[0]
        changed.columns[2].runs = "3c1w4x"
        await home.vmmd.tell()
        assert (await watch.read()).regions[0].columns[2].runs == "3c1w4x"
        # Away for two tries: said once, and all of it again when it is back.
        home.vmmd.failures["WatchExtents"] = [UnavailableError("away")] * 2
        volumes, home.vmmd.volumes = home.vmmd.volumes, {}
        await home.vmmd.tell()
        assert not (await watch.read()).regions
        home.vmmd.volumes = volumes
        assert list((await watch.read()).regions) == home.vmmd.extents
    assert not home.vmmd.failures["WatchExtents"]
    watch.cancel()
