"""Limits of repairs on real daemons: moved under a running repair, obeyed at once, kept over
restarts of the control plane and of vmmd."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.controlplane.v1 import replacement_service_pb2_grpc as replacement_grpc
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.integration.cluster import BLOCK_SIZE, MIB, Cluster, until
from tests.integration.volume import DONE, Volume

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

SIZE = 64 * MIB
# A look at the machine is as old as this at most: its own looks at the member that is filled, and
# its news to watchers. A chunk is under way meanwhile.
LOOK_SECONDS = 0.5
CHUNK = 256 << 10
# A second without requests, and the ticks of who looks; the rest is for a machine with other work.
IDLE_SEEN_SECONDS = 15.0


class Shaped(Volume):
    """A volume with extents of a size of its own."""

    shape: dict[str, int]

    def vcr(self, generation: int, targets: Sequence[str], **more: int) -> dict[str, Any]:
        return super().vcr(generation, targets, **{**self.shape, **more})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("limits") / "cluster"
    async with Cluster.started(folder) as started:
        yield started


async def filled(cluster: Cluster, extent_bytes: int) -> Shaped:
    """A running volume of SIZE, all of it written, and a spare."""
    blocks, count = extent_bytes // BLOCK_SIZE, SIZE // extent_bytes
    programs = [cluster.downstairs(blocks_per_extent=blocks, extent_count=count) for _ in range(4)]
    for program in programs:
        await program.start()
    volume = Shaped(cluster, programs)
    volume.shape = {"blocks_per_extent": blocks, "extent_count": count}
    await volume.create()
    await volume.run()
    await volume.fill(SIZE)
    return volume


async def copied(volume: Shaped) -> tuple[float, int]:
    """(when, bytes that the machine says slot 2 has received)."""
    return time.monotonic(), (await volume.slot(2)).repair.bytes_copied


async def seen_rate(volume: Shaped, seconds: float = 1.5) -> tuple[float, float]:
    """The rate over so many seconds: at least and at most, by how old a look may be."""
    began, before = await copied(volume)
    await until(lambda: copied(volume), lambda seen: seen[0] >= began + seconds)
    ended, after = await copied(volume)
    moved, took = after - before, ended - began
    return (moved - CHUNK) / (took + LOOK_SECONDS), moved / took


async def limit(volume: Shaped, name: str, rate: int, **more: Any) -> None:
    """By the control plane, which keeps it."""
    request = replacement_pb.SetRepairLimitsRequest(id=name, bytes_per_second_max=rate, **more)
    stub = replacement_grpc.ReplacementServiceStub
    assert (await volume.cluster.call(stub, "SetRepairLimits", request)).told


# Small extents make many round trips, one large one no progress by extents.
@pytest.mark.long
@pytest.mark.parametrize("extent_bytes", [64 << 10, 32 * MIB])
async def test_a_limit_that_is_moved_is_obeyed_at_once(cluster: Cluster, extent_bytes: int) -> None:
    volume = await filled(cluster, extent_bytes)
    try:
        await volume.limit(2 * MIB)
        name = (await volume.replace()).replacement_id
        await until(lambda: copied(volume), lambda seen: seen[1] > 0)
        slow, _ = await seen_rate(volume)
        assert slow <= 2.2 * MIB
        # At which what is left takes longer than a command does on a busy machine.
        await limit(volume, name, 4 * MIB, adaptive=False)
        # Another machine's load may hold it up for a while, the old limit not.
        await until(lambda: seen_rate(volume, 1.0), lambda seen: seen[1] > 3 * MIB)
        fast, _ = await seen_rate(volume, 1.0)
        assert fast <= 4.4 * MIB
        said = await cluster.cli("replacement", "limit", name, "--rate", "1M")
        assert "1 MiB/s" in said.good().out
        low, _ = await seen_rate(volume)
        assert low <= 1.1 * MIB
        one = await cluster.get_replacement(name)
        assert one.repair_rate.bytes_per_second_max == MIB
        assert one.repair_rate.reason == volume_pb.REPAIR_RATE_REASON_LIMIT
        await limit(volume, name, 0)
        assert (await volume.done(name)).state == DONE
    finally:
        await volume.delete()
        cluster.remove(volume.downstairs)


@pytest.mark.long
async def test_limits_outlive_the_control_plane_and_vmmd(cluster: Cluster) -> None:
    volume = await filled(cluster, MIB)
    try:
        await volume.limit(MIB)
        name = (await volume.replace()).replacement_id
        await limit(volume, name, MIB, adaptive=False, extents_in_flight_max=2)
        policy = await cluster.cli("fleet", "policy", "--repair-rate", "512K")
        assert "512 KiB/s" in policy.good().out
        await until(lambda: volume.info(), lambda disk: told(disk).fleet_share == 512 << 10)
        for daemon in (cluster.controlplane, cluster.vmmd):
            daemon.kill()
            await daemon.start()
            # The machine is made again, and told again.
            disk = await until(
                lambda: volume.info(), lambda disk: told(disk).fleet_share == 512 << 10
            )
            limits = told(disk)
            assert (limits.bytes_per_second_max, limits.adaptive) == (MIB, False)
            assert limits.extents_in_flight_max == 2
        found = await cluster.get_replacement(name)
        assert found.state == replacement_pb.REPLACEMENT_STATE_REPAIR, found
        await cluster.cli("fleet", "policy", "--repair-rate", "0")
        await limit(volume, name, 0)
        await volume.done(name)
    finally:
        await volume.delete()
        cluster.remove(volume.downstairs)


@pytest.mark.long
async def test_a_guest_that_falls_idle_leaves_an_adaptive_repair_its_ceiling(
    cluster: Cluster,
) -> None:
    volume = await filled(cluster, MIB)
    try:
        # A floor at which it would take four minutes, and a rate that has hardly grown by then.
        await volume.limit(0, adaptive=True, bytes_per_second_min=SIZE // 240)
        async with volume.load():
            name = (await volume.replace()).replacement_id
            _, seen = await until(lambda: copied(volume), lambda seen: seen[1] > 0)
            assert seen < SIZE // 4
            assert (await volume.info()).volume.repair_rate.bytes_per_second_max
        rate = (
            await until(lambda: volume.info(), lambda disk: idle(disk), IDLE_SEEN_SECONDS)
        ).volume.repair_rate
        assert not rate.bytes_per_second_max
        assert (await volume.done(name)).state == DONE
    finally:
        await volume.delete()
        cluster.remove(volume.downstairs)


def idle(disk: disk_pb.Disk) -> bool:
    """Whether the machine gives its repairs all there is."""
    return disk.volume.repair_rate.reason == volume_pb.REPAIR_RATE_REASON_IDLE


def told(disk: disk_pb.Disk) -> volume_pb.RepairLimits:
    """What the machine knows."""
    return disk.volume.repair_rate.limits
