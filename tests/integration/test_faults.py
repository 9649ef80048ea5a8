"""Members and machines that die, hang and come back under a verified load: nobody notices.

One control plane and vmmd for the module; each test has a volume with downstairs of its own.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from tests.integration.cluster import MIB, SLOT_ACTIVE, Cluster, until

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

# A repair of the filled part then takes seconds, in which things can happen to it.
SLOW = 4 * MIB


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("faults") / "cluster"
    async with Cluster.started(folder) as started:
        yield started


async def test_a_member_dies_and_comes_back(cluster: Cluster) -> None:
    async with cluster.volume() as volume:
        await volume.fill()
        async with volume.load() as load:
            member = volume.downstairs[1]
            member.kill()
            await volume.slot_not_active(1)
            await load.goes_on()
            await member.start()
            await volume.settled()
        await volume.verify()
        await volume.read_back()


async def test_the_new_member_dies_in_the_middle_of_its_repair(cluster: Cluster) -> None:
    async with cluster.volume() as volume:
        await volume.fill()
        await volume.limit(SLOW)
        async with volume.load() as load:
            started = await volume.replace()
            await volume.mid_repair(started.replacement_id)
            volume.spare.kill()
            await volume.slot_not_active(2)
            await load.goes_on()
            await volume.spare.start()
            await volume.limit(0)
            await volume.done(started.replacement_id)
        await volume.verify()
        await volume.read_back()
