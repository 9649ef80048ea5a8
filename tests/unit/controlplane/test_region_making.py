"""A region that is long in coming is waited for: questions that get no answer are asked again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from controlplane import region_making
from controlplane.core.placement import Vacancy
from controlplane.core.preflight import RegionFacts
from controlplane.core.records import Role
from controlplane.region_making import MAKE_SECONDS, RegionMaking
from controlplane.store.place import Place
from controlplane.store.sql_store import SqlStore
from stairlib.model.errors import StateError, UnavailableError
from stairwell.agent.v1 import agent_service_pb2 as pb
from tests.unit.controlplane.core.records_made import GEOMETRY, region

AGENT, ADDRESS = "127.0.0.1:8799", "127.0.0.1:8810"


def late() -> UnavailableError:
    return UnavailableError("the agent did not answer in time", reason="DEADLINE_EXCEEDED")


def away() -> UnavailableError:
    return UnavailableError("cannot reach the agent", reason="UNAVAILABLE")


class Busy:
    """An agent, and the region it makes, on a host that does not always answer: `troubles` are
    the failures of each question in turn, before it is answered."""

    def __init__(self, **troubles: list[Exception]) -> None:
        self.troubles = troubles
        self.asked: list[str] = []

    def _hear(self, question: str) -> None:
        self.asked.append(question)
        if self.troubles.get(question):
            raise self.troubles[question].pop(0)

    async def create(self, agent: str, name: UUID, *wanted: Any) -> pb.Region:
        self._hear("create")
        return pb.Region(id=str(name), state=pb.REGION_STATE_REQUESTED)

    async def region(self, where: Any, name: UUID | None = None, *, field: str = "") -> Any:
        """Of the agent by its id; of the region itself by its address."""
        if name is None:
            self._hear("facts")
            return RegionFacts(uuid4(), GEOMETRY, False, False, None, None)
        self._hear("look")
        process = pb.Process(state=pb.PROCESS_STATE_RUNNING)
        return pb.Region(
            id=str(name), state=pb.REGION_STATE_CREATED, address=ADDRESS, process=process
        )


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = await SqlStore.open(Place(tmp_path / "data"))
    yield opened
    await opened.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region_making, "LOOK_SECONDS", 0.001)


async def make(store: SqlStore, busy: Busy, clock: Any = lambda: 1e9) -> None:
    making = RegionMaking(store, busy, busy, clock=clock)  # type: ignore[arg-type]
    name = uuid4()
    making.hold(name)
    await making.make(name, AGENT, Vacancy(UUID(int=7), region(), "127.0.0.1:1", cipher=""))


async def test_a_host_that_is_too_busy_to_answer_is_asked_again(store: SqlStore) -> None:
    busy = Busy(create=[late()], look=[late(), away()], facts=[away()])
    await make(store, busy)
    assert busy.asked == ["create", "create", "look", "look", "look", "facts", "facts"]
    (entry,) = await store.fleet()
    assert (entry.record.address, entry.record.role) == (ADDRESS, Role.SPARE)


async def test_an_agent_that_cannot_be_reached_is_not_waited_for(store: SqlStore) -> None:
    busy = Busy(create=[away()])
    with pytest.raises(StateError) as caught:
        await make(store, busy)
    assert caught.value.reason == "REGION_NOT_MADE"
    assert busy.asked == ["create"]


async def test_nobody_is_asked_for_ever(store: SqlStore) -> None:
    moments = iter([1e9, 1e9, 1e9, 1e9 + MAKE_SECONDS + 1])
    with pytest.raises(StateError, match="cannot reach the agent"):
        await make(store, Busy(look=[away(), away(), away()]), lambda: next(moments))
