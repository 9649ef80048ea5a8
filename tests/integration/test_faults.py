"""Members that die and come back, and replacements under trouble, all under a verified load.

One control plane and vmmd for the module; each test has a volume with downstairs of its own. The
load must not notice anything: `Volume.load` ends with a look for errors and mismatches.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from stairlib.model.errors import ConflictError
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.integration.cluster import MIB, Cluster, until
from tests.integration.volume import Volume, fresh_volume

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

# A repair of what `fill` wrote then takes seconds, in which things can happen to it.
SLOW = 4 * MIB
CRAWL = MIB // 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("faults") / "cluster"
    async with Cluster.started(folder) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def volume(cluster: Cluster) -> AsyncIterator[Volume]:
    async with fresh_volume(cluster) as made:
        await made.fill()
        yield made


async def good(volume: Volume) -> None:
    """All three members are active, hold the same, and give back what the guest wrote."""
    await volume.settled()
    await volume.verify()
    await volume.read_back()


@pytest.mark.long
async def test_a_member_that_dies_and_comes_back(volume: Volume) -> None:
    """After a short absence it is replayed; after one too long to keep the writes, repaired."""
    member = volume.downstairs[1]
    async with volume.load() as load:
        member.kill()
        await volume.slot_not_active(1)
        await load.goes_on()
        await member.start()
        await volume.settled()
    await good(volume)
    other = volume.downstairs[0]
    before = (await volume.slot(0)).repairs_completed
    async with volume.load(queue_depth=16):
        other.kill()
        await until(lambda: volume.slot(0), lambda slot: slot.mode == volume_pb.SLOT_MODE_FAULTED)
        await other.start()
        await volume.settled()
    assert (await volume.slot(0)).repairs_completed == before + 1
    await good(volume)


async def test_the_new_member_dies_in_the_middle_of_its_repair(volume: Volume) -> None:
    await volume.limit(SLOW)
    async with volume.load() as load:
        started = await volume.replace()
        before = await volume.mid_repair(started.replacement_id)
        volume.spare.kill()
        await until(
            volume.info, lambda disk: not disk.volume.regions[0].slots[2].HasField("repair")
        )
        await load.goes_on()
        away = await volume.cluster.get_replacement(started.replacement_id)
        assert away.bytes_done >= before.bytes_done
        assert away.blocked_on
        await volume.spare.start()
        await volume.limit(0)
        await volume.done(started.replacement_id)
    await good(volume)
    assert (await volume.slot(2)).address == volume.spare.address


@pytest.mark.long
@pytest.mark.parametrize("slot", [0, 1])
async def test_a_good_member_dies_in_the_middle_of_a_repair(volume: Volume, slot: int) -> None:
    """One of the two is the source; the other one's loss leaves one source."""
    await volume.limit(SLOW)
    async with volume.load() as load:
        started = await volume.replace()
        await volume.mid_repair(started.replacement_id)
        volume.downstairs[slot].kill()
        await volume.slot_not_active(slot)
        await load.goes_on()
        await volume.limit(0)
        await volume.done(started.replacement_id)
        await volume.verify(members=2)
        await volume.downstairs[slot].start()
        await volume.settled()
    await good(volume)


@pytest.mark.long
async def test_the_old_member_is_dead_before_it_is_replaced(volume: Volume) -> None:
    async with volume.load():
        volume.downstairs[2].kill()
        await volume.slot_not_active(2)
        started = await volume.replace()
        await volume.done(started.replacement_id)
    await good(volume)
    assert (await volume.slot(2)).address == volume.spare.address


@pytest.mark.long
async def test_another_member_is_away_during_the_replacement(volume: Volume) -> None:
    async with volume.load():
        volume.downstairs[0].kill()
        await volume.slot_not_active(0)
        started = await volume.replace()
        await volume.done(started.replacement_id)
        await volume.downstairs[0].start()
        await volume.settled()
    await good(volume)


async def test_one_replacement_at_a_time(volume: Volume) -> None:
    # A minute, in which the second one is asked for however busy the host is.
    await volume.limit(CRAWL)
    started = await volume.replace()
    other = volume.vcr(3, [volume.targets[0], "127.0.0.1:1", volume.spare.address])
    with pytest.raises(ConflictError, match=started.replacement_id) as caught:
        await volume.replace(other)
    assert caught.value.reason == "REPLACEMENT_RUNNING"
    answer = await volume.cluster.cli("replacement", "limit", started.replacement_id, "--rate", "0")
    answer.good()
    await volume.done(started.replacement_id)
    [only] = await volume.cluster.replacements(volume.disk)
    assert only.id == started.replacement_id
    # Ended: the next one may start, back to the member that was retired or not at all.
    assert (await volume.info()).recorded_generation == 2
    await good(volume)


@pytest.mark.long
async def test_two_volumes_on_one_host(cluster: Cluster, volume: Volume) -> None:
    async with fresh_volume(cluster) as other:
        await other.fill(seed=7)
        async with volume.load(), other.load(seed=8):
            first, second = await asyncio.gather(volume.replace(), other.replace())
            other.downstairs[0].kill()
            await asyncio.gather(
                volume.done(first.replacement_id), other.done(second.replacement_id)
            )
            await other.downstairs[0].start()
        await asyncio.gather(good(volume), good(other))
