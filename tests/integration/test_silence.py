"""Members that hang: they keep their connections and say nothing, until the limit of silence.

A module of its own, since it has to wait that long: other modules run beside it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from stairlib.runtime.limits import SESSION_SILENCE_SECONDS
from tests.integration.cluster import Cluster, until
from tests.integration.volume import SLOT_ACTIVE, Volume, fresh_volume

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with Cluster.started(tmp_path_factory.mktemp("silence") / "cluster") as started:
        yield started


async def hang_and_return(volume: Volume, slot: int) -> float:
    """Stops a member until it is given up, continues it; the seconds that took."""
    member = volume.downstairs[slot]
    began = time.monotonic()
    member.signal(signal.SIGSTOP)
    try:
        await volume.slot_not_active(slot)
        return time.monotonic() - began
    finally:
        member.signal(signal.SIGCONT)


@pytest.mark.long
async def test_members_that_hang_are_given_up_and_come_back(cluster: Cluster) -> None:
    """One under a load, one of a disk that does nothing: pings notice that as well."""
    async with (
        fresh_volume(cluster, spare=False) as busy,
        fresh_volume(cluster, spare=False) as idle,
    ):
        await busy.fill()
        await idle.fill()
        async with busy.load(queue_depth=2) as load:
            seconds = await asyncio.gather(hang_and_return(busy, 0), hang_and_return(idle, 1))
            await load.goes_on()
            for volume in (busy, idle):
                await volume.settled()
        for volume in (busy, idle):
            await volume.verify()
            await volume.read_back()
        assert max(seconds) < 2 * SESSION_SILENCE_SECONDS


@pytest.mark.long
async def test_a_new_member_that_hangs_is_waited_for(cluster: Cluster) -> None:
    """Shorter than the limit: the repair goes on where it was, nothing is given up."""
    async with fresh_volume(cluster) as volume:
        await volume.fill()
        await volume.limit(4 << 20)
        async with volume.load(queue_depth=2) as load:
            started = await volume.replace()
            await volume.mid_repair(started.replacement_id)
            volume.spare.signal(signal.SIGSTOP)
            try:
                # Not until the guest goes on: with what is owed to the new member it soon waits.
                await load.reported()
                await load.reported()
            finally:
                volume.spare.signal(signal.SIGCONT)
            await load.goes_on()
            await volume.limit(0)
            await volume.done(started.replacement_id)
        slot = await volume.slot(2)
        assert (slot.repairs_completed, slot.repairs_aborted) == (1, 0)
        assert slot.state == SLOT_ACTIVE
        await until(volume.info, lambda disk: not disk.replacement_id)
        await volume.verify()
