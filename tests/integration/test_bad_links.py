"""Members on a network that is slow, lossy, silent or one-sided, under a verified load.

Nothing is killed here: the daemons live on and do not know either. No request may fail, since two
members are there all the time, and all data are compared afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from stairlib.link.proxy import BACK, THERE
from tests.integration.cluster import MIB, Cluster, until
from tests.integration.linked import LinkProgram
from tests.integration.slot_watch import Watch, watched
from tests.integration.volume import Load, Volume

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]


class Links:
    """A filled disk whose three members are behind a link each; its spare is not."""

    def __init__(self, cluster: Cluster) -> None:
        self.volume = Volume(cluster, [cluster.downstairs() for _ in range(4)])
        self.links = [LinkProgram(cluster, member) for member in self.volume.downstairs[:3]]

    async def start(self) -> None:
        spare = self.volume.spare
        await asyncio.gather(spare.start(), *(link.start() for link in self.links))
        await self.volume.create()
        await self.volume.run()
        await self.volume.fill()

    @asynccontextmanager
    async def under_load(self, queue_depth: int = 4) -> AsyncIterator[tuple[Watch, Load]]:
        """Slots are watched and the guest is loaded while the block runs; then all is good, the
        members are equal, and give back what the guest wrote."""
        volume = self.volume
        async with watched(volume) as watch, volume.load(queue_depth=queue_depth) as load:
            yield watch, load
            await load.goes_on()
        await volume.settled()
        await volume.verify()
        await volume.read_back()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def linked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Links]:
    folder: Path = tmp_path_factory.mktemp("links") / "cluster"
    async with Cluster.started(folder) as cluster:
        made = Links(cluster)
        await made.start()
        yield made


async def test_a_slow_member_is_kept_and_no_request_fails(linked: Links) -> None:
    link = linked.links[1]
    before = await link.passed()
    assert before > 16 * MIB
    async with linked.under_load(queue_depth=16) as (watch, load):
        await link.set(delay=0.03, jitter=0.02, rate=2 * MIB)
        for _ in range(3):
            await load.goes_on()
        await link.clear()
        watch.assert_undisturbed(0, 1, 2)
    assert await link.passed() > before


async def test_a_member_that_is_silent_for_a_moment_is_waited_for(linked: Links) -> None:
    """Shorter than the limit of silence: reads that it was asked are answered late."""
    link = linked.links[0]
    async with linked.under_load() as (watch, load):
        await link.set(stalled=True)
        await load.reported()
        await load.reported()
        await link.clear()
        await load.goes_on()
        watch.assert_undisturbed(0, 1, 2)


async def test_what_was_done_and_not_answered_is_sent_again(linked: Links) -> None:
    """The answers are lost, then the connection; the member has more than it is known to have."""
    link = linked.links[2]
    async with linked.under_load() as (watch, _):
        await link.set(BACK, stalled=True)
        before = await link.passed(THERE)
        await until(lambda: link.passed(THERE), lambda now: now > before + MIB // 4)
        await link.cut()
        await watch.out(2)
        await link.clear()
        await watch.all_active()
        watch.assert_undisturbed(0, 1)
        watch.assert_came_back(2)


async def test_a_member_is_replaced_from_sources_that_are_hard_to_reach(linked: Links) -> None:
    """Both: a copy goes through a bad link whichever of them is read."""
    volume, links = linked.volume, linked.links[:2]
    before = sum([await link.passed() for link in links])
    async with linked.under_load(queue_depth=2) as (watch, load):
        for link in links:
            await link.set(delay=0.005, jitter=0.005, rate=32 * MIB, loss=0.001)
        started = await volume.replace()
        await volume.done(started.replacement_id)
        await load.goes_on()
        for link in links:
            await link.clear()
        await watch.all_active()
        watch.assert_undisturbed(0, 1)
    assert sum([await link.passed() for link in links]) - before > 16 * MIB
    assert (await volume.slot(2)).address == volume.spare.address
