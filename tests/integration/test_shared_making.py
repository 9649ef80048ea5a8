"""Regions that agents make, while several control planes share the store: none collects what
another is still making, and nothing that came to nothing stays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from controlplane.core.placement import Vacancy
from controlplane.peers.agent import Agents
from controlplane.peers.downstairs import Fleet
from controlplane.region_making import CALL_SECONDS, OTHERS_SECONDS, RegionMaking
from controlplane.store.place import Place
from controlplane.store.sql_store import SqlStore
from stairlib.model.errors import StateError
from stairlib.telemetry.tracing import Tracing
from tests.integration.agent import CREATED, Agent, agent_on
from tests.postgres_server import PostgresServer
from tests.unit.controlplane.core.records_made import region

pytestmark = [pytest.mark.processes, pytest.mark.postgres]

VOLUME = UUID(int=7)


class Plane:
    """One control plane's part in it, on a store that it shares. `now` is the clock of all."""

    def __init__(self, store: SqlStore, now: list[float]) -> None:
        self.store = store
        tracing = Tracing("controlplane", "test")
        self.making = RegionMaking(
            store, Fleet(tracing), Agents(tracing), clock=lambda: now[0], pace=0.0
        )


@pytest_asyncio.fixture
async def planes(
    postgres: PostgresServer, tmp_path: Path
) -> AsyncIterator[tuple[Plane, Plane, list[float]]]:
    where = Place(tmp_path / "unused", url=postgres.new_database(), key_text="5a" * 32)
    now = [1e9]
    one, other = await SqlStore.open(where), await SqlStore.open(where)
    try:
        yield Plane(one, now), Plane(other, now), now
    finally:
        await other.close()
        await one.close()


@pytest_asyncio.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    async with agent_on(tmp_path / "agent", 2) as running:
        yield running


async def made(plane: Plane, agent: Agent) -> UUID:
    """A region of a call that has not begun its replacement yet."""
    name = uuid4()
    plane.making.hold(name)
    vacancy = Vacancy(VOLUME, region(), "127.0.0.1:1", cipher="")
    await plane.making.make(name, agent.program.address, vacancy)
    return name


async def state(agent: Agent, name: UUID) -> int:
    return int((await agent.region(str(name))).state)


async def test_what_another_one_is_making_is_left_alone(
    planes: tuple[Plane, Plane, list[float]], agent: Agent
) -> None:
    maker, other, now = planes
    name = await made(maker, agent)
    await other.making.collect()
    now[0] += CALL_SECONDS
    maker.making.require(name)
    await other.making.collect()
    assert await state(agent, name) == CREATED
    assert [each.replacement_id for each in await other.store.makings()] == [name]


async def test_what_came_to_nothing_is_collected_by_anybody_in_the_end(
    planes: tuple[Plane, Plane, list[float]], agent: Agent
) -> None:
    maker, other, now = planes
    name = await made(maker, agent)
    now[0] += OTHERS_SECONDS + 1
    # The call that made it was stopped for so long: it must not begin with it any more.
    with pytest.raises(StateError, match="try again"):
        maker.making.require(name)
    await other.making.collect()
    assert await state(agent, name) != CREATED
    assert await other.store.makings() == []
    assert await other.store.fleet() == []
