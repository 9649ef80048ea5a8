"""Spares that are made: a real agent makes a region where none fits."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from controlplane.breakpoints import VARIABLE as DIE_VARIABLE
from stairwell.agent.v1 import agent_service_pb2 as agent_pb
from tests.integration.agent import Agent, agent_on
from tests.integration.cluster import Cluster, until
from tests.integration.volume import Volume, fresh_volume

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("making") / "cluster"
    async with Cluster.started(folder) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Agent]:
    async with agent_on(tmp_path_factory.mktemp("agent"), 4) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def volume(cluster: Cluster) -> AsyncIterator[Volume]:
    async with fresh_volume(cluster, spare=False) as made:
        yield made


async def regions(agent: Agent) -> list[agent_pb.Region]:
    answer = await agent.call("ListRegions", agent_pb.ListRegionsRequest())
    return list(answer.regions)


@pytest.mark.long
async def test_a_region_is_made_where_no_spare_fits(
    cluster: Cluster, agent: Agent, volume: Volume
) -> None:
    where = agent.program.address
    (await cluster.cli("fleet", "agent", where, "--host", "g0", "--domain", "rack-g")).good()
    start = ("replacement", "start", volume.disk, "--slot", "2")
    shown = (await cluster.cli(*start, "--dry-run")).good().out
    assert f"made by the agent at {where}" in shown
    assert not await regions(agent), "nothing was made to find that out"
    await volume.fill()
    answer = (await cluster.cli(*start, "--output", "json")).good().json
    replacement = answer["replacement"]["id"]
    (made,) = await regions(agent)
    assert made.id == replacement, "idempotent by the replacement's id"
    assert answer["new_target"] == made.address
    assert answer["placement"]["made_by"] == where
    await volume.done(replacement)
    await volume.verify()
    await volume.read_back()
    listed = (await cluster.cli("fleet", "list", "--output", "json")).good().json
    (one,) = (each for each in listed["downstairs"] if each["address"] == made.address)
    assert (one["role"], one["host"], one["failure_domain"]) == ("member", "g0", "rack-g")
    assert one["agent"] == where

    async def makings() -> int:
        shown = (await cluster.cli("fleet", "agents", "--output", "json")).good().json
        return int(shown["agents"][0]["makings"])

    await until(makings, lambda number: number == 0)
    assert len(await regions(agent)) == 1, "a member is not collected"
    # A second one would stand beside the first.
    second = await cluster.cli("replacement", "start", volume.disk, "--slot", "0")
    second.bad("NO_SPARE", "host g0 has a member")


@pytest.mark.long
@pytest.mark.parametrize("point", ["making:recorded", "making:asked"])
async def test_a_region_whose_replacement_never_began_is_collected(
    cluster: Cluster, agent: Agent, volume: Volume, point: str
) -> None:
    """The control plane dies before the agent has heard of it, and while the agent makes it."""
    (await cluster.cli("fleet", "agent", agent.program.address, "--host", "g0")).good()
    before = {each.id for each in await regions(agent)}
    data = cluster.folder / "controlplane" / "controlplane.sqlite"
    await cluster.controlplane.end()
    await cluster.controlplane.start(**{DIE_VARIABLE: point})
    try:
        start = ("replacement", "start", volume.disk, "--slot", "1")
        (await cluster.cli("--timeout", "60", *start)).bad("UNAVAILABLE")
        assert await cluster.controlplane.ended() == -signal.SIGKILL
        (wished,) = _makings(data)
        asked = {each.id for each in await regions(agent)} - before
        assert asked == (set() if point == "making:recorded" else {wished})
        if asked:
            await agent.serving(wished)
    finally:
        if not cluster.controlplane.is_running:
            await cluster.controlplane.start()

    async def recorded() -> list[str]:
        return _makings(data)

    await until(recorded, lambda found: not found)
    if asked:
        await agent.gone(wished)
    assert {each.id for each in await regions(agent)} == before
    assert not await cluster.replacements(volume.disk)


def _makings(path: Path) -> list[str]:
    """The regions that were asked for, as the control plane's file has them."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        return [each[0] for each in connection.execute("SELECT replacement_id FROM makings")]
