"""Three control planes on one PostgreSQL database: one of them has the care of the fleet.

What is begun unasked is begun once and within its limits whoever is asked, and goes on when the one
that has the duty is killed.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from stairlib.rpc.errors import translated
from stairwell.controlplane.v1 import fleet_service_pb2 as pb
from stairwell.controlplane.v1 import fleet_service_pb2_grpc as pb_grpc
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from tests.integration.cluster import MIB, Cluster, Program, until
from tests.integration.test_fleet import begun, volumes, waiting
from tests.integration.test_shared_database import LEASE_SECONDS, Planes, three_planes
from tests.integration.volume import Volume
from tests.postgres_server import PostgresServer

pytestmark = [
    pytest.mark.processes,
    pytest.mark.postgres,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]

SLOW = 2 * MIB


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def planes(
    tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer
) -> AsyncIterator[Planes]:
    async with three_planes(tmp_path_factory.mktemp("care") / "cluster", postgres) as made:
        yield made


async def in_charge(planes: Planes) -> Program:
    """The control plane that has the duty now."""

    async def found() -> list[Program]:
        rows = planes.sql("SELECT lease_owner FROM duties WHERE name = 'caretaker'")
        owner = str(rows[0][0])
        return [each for each in planes.all if each.is_running and f" {each.pid} " in f"{owner} "]

    return (await until(found, bool))[0]


def times(planes: Planes) -> list[tuple[float, float]]:
    """(begun, ended) of each replacement, in the order they were begun."""
    rows = planes.sql(
        "SELECT min(at), max(at) FROM transitions GROUP BY replacement_id ORDER BY min(at)"
    )
    return [(float(str(first)), float(str(last))) for first, last in rows]


class Followed:
    """A drain watched at one control plane, to its end."""

    def __init__(self, cluster: Cluster, plane: Program, drain: str) -> None:
        self.told: list[pb.Drain] = []
        self._task = asyncio.create_task(self._watch(cluster, plane, drain))

    async def _watch(self, cluster: Cluster, plane: Program, drain: str) -> None:
        stub = pb_grpc.FleetServiceStub(cluster.channel(plane.address))
        with translated(plane.address):
            async for answer in stub.WatchDrain(pb.WatchDrainRequest(id=drain)):
                self.told.append(answer.drain)

    async def to_its_end(self) -> pb.Drain:
        await asyncio.wait_for(self._task, 120)
        return self.told[-1]


async def moved(planes: Planes, made: list[Volume]) -> list[replacement_pb.Replacement]:
    """The replacements of these disks."""
    found = [await planes.cluster.replacements(volume.disk) for volume in made]
    return [each for one in found for each in one]


async def test_a_drain_goes_on_when_the_one_that_moves_it_is_killed(planes: Planes) -> None:
    cluster = planes.cluster
    async with volumes(cluster, 2, 2) as made:
        for volume in made:
            await volume.limit(SLOW)
        carer = await in_charge(planes)
        others = [plane for plane in planes.all if plane is not carer]
        with planes.asking(others[0]):
            # Asked of one that does not have the duty.
            answer = await cluster.call(
                pb_grpc.FleetServiceStub,
                "DrainDownstairs",
                pb.DrainDownstairsRequest(target="a1"),
            )
            followed = [Followed(cluster, plane, answer.drain.id) for plane in others]
            await until(lambda: moved(planes, made), lambda found: len(found) == 1)
            carer.kill()
            for volume in made:
                await volume.limit(0)
            ended = [await each.to_its_end() for each in followed]
            assert await in_charge(planes) in others
        for drain in ended:
            assert drain.state == pb.DrainState.DRAIN_STATE_DONE
            assert not drain.left
            assert len(drain.moves) == 2
        # With `--at-once 1`, the default, one ended before the next one began.
        (_, first_end), (second_begun, _) = times(planes)
        assert first_end <= second_begun
        await planes.all_run()


async def test_a_member_is_replaced_once_though_three_look(planes: Planes) -> None:
    cluster = planes.cluster
    carer = await in_charge(planes)
    other = next(plane for plane in planes.all if plane is not carer)
    with planes.asking(other):
        policy = ("fleet", "policy", "--automatic", "on", "--grace", "3s", "--maintenance", "off")
        (await cluster.cli(*policy)).good()
        try:
            async with volumes(cluster, 1, 2) as (volume,):
                volume.downstairs[1].kill()
                # The time since when it is gone is counted once, and outlives who counts it.
                (gone,) = await until(lambda: waiting(cluster), bool)
                carer.signal(signal.SIGSTOP)
                answer = await begun(volume)
                await volume.done(answer.id)
                carer.signal(signal.SIGCONT)
                await until(lambda: waiting(cluster), lambda found: not found)
                assert [each.id for each in await cluster.replacements(volume.disk)] == [answer.id]
                assert gone.slot == 1
                # Awake again, it has lost the duty before it did anything.
                assert await in_charge(planes) is not carer
                await until(
                    lambda: lost(planes, carer), lambda found: found >= 1, LEASE_SECONDS * 10
                )
        finally:
            (await cluster.cli("fleet", "policy", "--automatic", "off")).good()


async def lost(planes: Planes, plane: Program) -> int:
    """How often it let the duty go because its lease had ended."""
    return sum(each["kind"] == "duty" for each in planes.logged(plane, "lease lost"))
