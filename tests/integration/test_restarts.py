"""Control planes, vmmd and machines that end, in order or not: what was promised survives them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from controlplane.breakpoints import VARIABLE as DIE_VARIABLE
from stairlib.model.errors import UnavailableError
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from stairwell.vmmd.v1.guest_service_pb2 import WorkloadKind
from tests.integration.cluster import BLOCK_SIZE, MIB, Cluster, children, until
from tests.integration.nbd_client import NbdClient
from tests.integration.volume import (
    DONE,
    VOLUME_ACTIVE,
    Load,
    Volume,
    faultless,
    fresh_volume,
)

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

SLOW = 4 * MIB
# Half a minute for what `fill` wrote: three restarts of a control plane fit in, when busy too.
SLOWEST = MIB // 2
FAST = 64 * MIB


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("restarts") / "cluster"
    async with Cluster.started(folder) as started:
        yield started


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def daemons(cluster: Cluster) -> AsyncIterator[None]:
    """A test that fails between an end and a start takes no other test with it."""
    yield
    for daemon in (cluster.vmmd, cluster.controlplane):
        if not daemon.is_running:
            await daemon.start()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lasting(cluster: Cluster) -> AsyncIterator[Volume]:
    """For tests that leave it as they found it: running, with three equal members."""
    async with fresh_volume(cluster, spare=False) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def volume(cluster: Cluster) -> AsyncIterator[Volume]:
    async with fresh_volume(cluster) as made:
        yield made


def machine_pid(volume: Volume) -> int:
    """The machine's process: the one that names it among those vmmd has started."""
    for pid in children(volume.cluster.vmmd.pid):
        if volume.instance in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
            return pid
    raise AssertionError(f"{volume.instance} has no process")


async def uri(volume: Volume) -> str:
    """Where the disk is exported now."""
    disk = await until(volume.info, lambda one: one.volume.state == VOLUME_ACTIVE)
    assert disk.volume.nbd_uri
    return disk.volume.nbd_uri


def written(offset: int) -> bytes:
    """What the tests write there."""
    return offset.to_bytes(8, "little") * (BLOCK_SIZE // 8)


OFFSETS = [0, BLOCK_SIZE, 5 * MIB, 33 * MIB + 3 * BLOCK_SIZE, 64 * MIB - BLOCK_SIZE]


def write_all(where: str, *, flush: bool) -> None:
    """Writes the tests' blocks by NBD."""
    with NbdClient(where) as client:
        assert client.size == 64 * MIB
        for offset in OFFSETS:
            client.write(offset, written(offset))
        if flush:
            client.flush()


def read_all(where: str) -> None:
    """Reads them back, and a block that nobody wrote."""
    with NbdClient(where) as client:
        for offset in OFFSETS:
            assert client.read(offset, BLOCK_SIZE) == written(offset), offset
        assert client.read(7 * MIB, BLOCK_SIZE) == bytes(BLOCK_SIZE)


@pytest.mark.long
async def test_a_replacement_outlives_its_control_plane(volume: Volume) -> None:
    """Killed right after its answer, twice in the repair, and when the repair ends."""
    cluster = volume.cluster
    await volume.fill()
    await volume.limit(SLOWEST)

    async def restart() -> replacement_pb.Replacement:
        cluster.controlplane.kill()
        await cluster.controlplane.start()
        return await cluster.get_replacement(started.replacement_id)

    async with volume.load(directly=True) as load:
        started = await volume.replace()
        seen = await restart()
        for extents in (4, 8):
            seen = await volume.mid_repair(started.replacement_id, extents)
            resumed = await restart()
            assert resumed.bytes_done >= seen.bytes_done
            again = await volume.replace()
            assert again.result == disk_pb.REPLACE_RESULT_STARTED_ALREADY
            assert again.replacement_id == started.replacement_id
        await load.goes_on()
        await volume.limit(FAST)
        await until(lambda: volume.slot(2), lambda slot: slot.state == volume_pb.SLOT_STATE_ACTIVE)
        await restart()
        ended = await volume.done(started.replacement_id)
        await restart()
        assert await cluster.get_replacement(started.replacement_id) == ended
        [only] = await cluster.replacements(volume.disk)
        assert only.state == DONE
        answer = await volume.replace()
        assert answer.result == disk_pb.REPLACE_RESULT_COMPLETED_ALREADY
    await volume.verify()
    await volume.read_back()
    assert (await volume.info()).recorded_generation == 2


@pytest.mark.long
async def test_a_vmmd_that_is_told_to_stop_stops_its_machines_first(lasting: Volume) -> None:
    """What was written, not flushed, is there after an orderly end; the machine is made again."""
    cluster = lasting.cluster
    where = await uri(lasting)
    await asyncio.to_thread(write_all, where, flush=False)
    generation = (await lasting.info()).volume.regions[0].generation
    pid = machine_pid(lasting)
    assert await cluster.vmmd.end() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    away = await until(lambda: cluster.get_instance(lasting.instance), lambda one: one.reason)
    assert "last known state" in away.reason
    assert "vmmd" in away.reason
    await cluster.vmmd.start()

    await until(
        lasting.info,
        lambda disk: (
            disk.volume.state == VOLUME_ACTIVE and disk.volume.regions[0].generation > generation
        ),
    )
    await lasting.reach(instance_pb.INSTANCE_STATE_RUNNING)
    await asyncio.to_thread(read_all, await uri(lasting))
    await lasting.settled()
    await lasting.verify()


async def test_a_replacement_outlives_its_vmmd(volume: Volume) -> None:
    cluster = volume.cluster
    await volume.fill()
    await volume.limit(SLOW)
    started = await volume.replace()
    before = await volume.mid_repair(started.replacement_id)
    cluster.vmmd.kill()
    await until(lambda: cluster.get_replacement(started.replacement_id), lambda one: one.blocked_on)
    await cluster.vmmd.start()
    ended = await volume.done(started.replacement_id)
    assert ended.bytes_done > before.bytes_done
    await volume.settled()
    await volume.verify()
    assert (await volume.slot(2)).address == volume.spare.address


async def test_a_machine_that_is_killed_loses_nothing_flushed(lasting: Volume) -> None:
    where = await uri(lasting)
    await asyncio.to_thread(write_all, where, flush=True)
    generation = (await lasting.info()).volume.regions[0].generation
    await killed(lasting, generation)
    # A hypervisor, and whoever uses the export, finds the disk where it was.
    assert await uri(lasting) == where
    await asyncio.to_thread(read_all, where)
    await lasting.verify()


async def killed(volume: Volume, generation: int) -> None:
    """Kills the machine's process; returns when the machine that is made again runs."""
    dead = machine_pid(volume)
    os.kill(dead, signal.SIGKILL)
    await until(
        volume.info,
        lambda one: any(region.generation > generation for region in one.volume.regions),
    )
    await volume.reach(instance_pb.INSTANCE_STATE_RUNNING)
    await volume.settled()
    assert machine_pid(volume) != dead


async def test_a_machine_killed_under_load_leaves_equal_members(lasting: Volume) -> None:
    """The members may end apart: the next activation brings them together."""
    await lasting.fill()
    load = Load(lasting.reports(WorkloadKind.WORKLOAD_KIND_MIXED))
    await load.goes_on()
    faultless(load.last)
    generation = (await lasting.info()).volume.regions[0].generation
    await killed(lasting, generation)
    await load.stop()
    await lasting.verify()


async def test_a_machine_is_stopped_under_load(lasting: Volume) -> None:
    """The load ends with an error of its own, the machine in order, and what it wrote is there."""
    load = Load(lasting.reports(WorkloadKind.WORKLOAD_KIND_MIXED))
    await load.goes_on()
    await lasting.stop()
    with pytest.raises(UnavailableError, match="stopped or rebooted"):
        await load.ended()
    faultless(load.last)
    await lasting.delete()
    await lasting.create()
    await lasting.run()
    await lasting.settled()
    await lasting.verify()


@pytest.mark.long
async def test_an_instance_waits_for_its_members_and_can_be_stopped(cluster: Cluster) -> None:
    async with fresh_volume(cluster, run=False) as volume:
        volume.downstairs[2].kill()
        await volume.set_state(instance_pb.REQUESTED_STATE_RUN)
        await volume.reach(instance_pb.INSTANCE_STATE_STARTING)
        await until(lambda: volume.slot(2), lambda slot: slot.last_error)
        await volume.stop()
        await volume.delete()

        await volume.create()
        await volume.set_state(instance_pb.REQUESTED_STATE_RUN)
        await volume.reach(instance_pb.INSTANCE_STATE_STARTING)
        started = await volume.replace()
        await volume.reach(instance_pb.INSTANCE_STATE_RUNNING)
        await volume.done(started.replacement_id)
        await volume.settled()
        await volume.verify()
        assert (await volume.slot(2)).address == volume.spare.address


async def test_a_control_plane_that_dies_before_it_tells_a_state_has_it_come_all_the_same(
    cluster: Cluster,
) -> None:
    """Killed between what it stored and what it tells vmmd, once for each state."""
    async with fresh_volume(cluster, run=False, spare=False) as made:
        for state, name, reached in (
            (instance_pb.REQUESTED_STATE_RUN, "RUNNING", (instance_pb.INSTANCE_STATE_RUNNING,)),
            (instance_pb.REQUESTED_STATE_STOP, "STOPPED", _ENDED),
        ):
            before = (await cluster.get_instance(made.instance)).state
            await cluster.controlplane.end()
            await cluster.controlplane.start(**{DIE_VARIABLE: f"desired:{name}"})
            with pytest.raises(UnavailableError):
                await made.set_state(state)
            assert await cluster.controlplane.ended() == -signal.SIGKILL
            await cluster.controlplane.start()
            found = await until(
                lambda: cluster.get_instance(made.instance),
                lambda one, wanted=reached: one.state in wanted,
            )
            assert found.state != before


_ENDED = (instance_pb.INSTANCE_STATE_STOPPED, instance_pb.INSTANCE_STATE_DESTROYED)
