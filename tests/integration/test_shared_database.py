"""Three control planes on one PostgreSQL database: killed, stopped, and cut off from it.

Whatever becomes of the one that drives a replacement, another one ends it, and the log that is
stored has each transition once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from stairlib.model.errors import NotFoundError, StateError, UnavailableError
from stairlib.rpc.errors import translated
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.controlplane.v1 import replacement_service_pb2_grpc as replacement_grpc
from tests.integration.cluster import LOOPBACK, MIB, Cluster, Program, until
from tests.integration.volume import DONE, FAILED, Volume, fresh_volume
from tests.ports import free_ports
from tests.postgres_server import PostgresServer

pytestmark = [
    pytest.mark.processes,
    pytest.mark.postgres,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]

LEASE_SECONDS = 2.0
SLOW = 2 * MIB
WAY = ["APPLY", "REPAIR", "VERIFY", "RETIRE", "DONE"]


class Planes:
    """Three control planes, of which the cluster's own is the one that is asked."""

    def __init__(self, cluster: Cluster, server: PostgresServer) -> None:
        self.cluster, self.server = cluster, server
        self.all = [self._plane(number) for number in range(3)]

    def _plane(self, number: int) -> Program:
        port = free_ports(1)
        command = [
            "controlplane", "run", f"{LOOPBACK}:{port}", "--vmmd", self.cluster.vmmd.address,
            "--lease-seconds", str(LEASE_SECONDS), "--log-format", "json",
        ]  # fmt: skip
        return self.cluster.program(f"controlplane-{number}", command, port)

    @contextmanager
    def asking(self, plane: Program) -> Iterator[None]:
        """Calls go to this one."""
        before, self.cluster.controlplane = self.cluster.controlplane, plane
        try:
            yield
        finally:
            self.cluster.controlplane = before

    async def all_run(self) -> None:
        for plane in self.all:
            plane.signal(signal.SIGCONT)
            if not plane.is_running:
                await plane.start()

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        """The rows of a statement on their database."""
        name = self.cluster.env["STAIRWELL_DATABASE"].rpartition("/")[2]
        return self.server.sql(statement, database=name)

    def logged(self, plane: Program, event: str) -> list[dict[str, Any]]:
        lines = [line for line in plane.log.read_text().splitlines() if line.startswith("{")]
        return [each for each in map(json.loads, lines) if each.get("event") == event]


@asynccontextmanager
async def three_planes(folder: Path, server: PostgresServer) -> AsyncIterator[Planes]:
    """All serving, on a database of their own; gone afterwards."""
    env = {"STAIRWELL_DATABASE": server.new_database(), "STAIRWELL_SECRET_KEY": "5a" * 32}
    cluster = Cluster(folder, env)
    try:
        made = Planes(cluster, server)
        # All at once on an empty database: one makes the schema, the others wait for it.
        await asyncio.gather(cluster.vmmd.start(), *(each.start() for each in made.all))
        cluster.controlplane = made.all[0]
        yield made
    finally:
        await cluster.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def planes(
    tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer
) -> AsyncIterator[Planes]:
    async with three_planes(tmp_path_factory.mktemp("shared") / "cluster", postgres) as made:
        yield made


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def whole(planes: Planes) -> AsyncIterator[None]:
    yield
    await planes.all_run()
    planes.cluster.controlplane = planes.all[0]


class Watcher:
    """What a watch of a replacement tells at one control plane."""

    def __init__(self, cluster: Cluster, plane: Program, identity: str) -> None:
        self.told: list[replacement_pb.Transition] = []
        self._task = asyncio.create_task(self._watch(cluster, plane, identity))

    async def _watch(self, cluster: Cluster, plane: Program, identity: str) -> None:
        stub = replacement_grpc.ReplacementServiceStub(cluster.channel(plane.address))
        with translated(plane.address):
            call = stub.WatchReplacement(replacement_pb.WatchReplacementRequest(id=identity))
            async for answer in call:
                self.told.extend(answer.transitions)

    async def states(self) -> list[str]:
        """The states told, to the end, each once in a row; no transition is told twice or lost."""
        await asyncio.wait_for(self._task, 60)
        assert [each.number for each in self.told] == list(range(len(self.told)))
        found: list[str] = []
        for each in self.told:
            name = replacement_pb.ReplacementState.Name(each.state)
            name = name.removeprefix("REPLACEMENT_STATE_")
            if not found or found[-1] != name:
                found.append(name)
        return found


def check_log(planes: Planes, identity: str) -> None:
    """The stored log has every transition, once, in order."""
    rows = planes.sql(
        f"SELECT number, state FROM transitions WHERE replacement_id = '{identity}' ORDER BY number"
    )
    assert [number for number, _ in rows] == list(range(len(rows)))
    moved = [str(state) for _, state in rows]
    way = [state for index, state in enumerate(moved) if index == 0 or moved[index - 1] != state]
    assert [state for state in way if state in WAY] == WAY, rows


async def begun(planes: Planes, volume: Volume, rate: int = SLOW) -> str:
    """A replacement that the first control plane drives, in the middle of its repair."""
    await volume.fill(8 * MIB)
    await volume.limit(rate)
    answer = await volume.replace()
    await volume.mid_repair(answer.replacement_id)
    return str(answer.replacement_id)


async def test_a_killed_one_s_replacement_goes_on_with_another(planes: Planes) -> None:
    first, second, third = planes.all
    async with fresh_volume(planes.cluster) as volume:
        identity = await begun(planes, volume)
        watchers = [Watcher(planes.cluster, plane, identity) for plane in (second, third)]
        first.kill()
        with planes.asking(second):
            await volume.limit(0)
            await volume.done(identity)
            await volume.verify()
            for watcher in watchers:
                states = await watcher.states()
                assert states[-4:] == ["REPAIR", "VERIFY", "RETIRE", "DONE"]
        check_log(planes, identity)
        taken = [planes.logged(plane, "replacement resumed") for plane in (second, third)]
        mine = [[line for line in lines if line["replacement"] == identity] for lines in taken]
        assert sorted(map(len, mine)) == [0, 1], "one of the two takes it, once"
        await first.start()


async def test_a_stopped_one_does_nothing_more_when_it_wakes(planes: Planes) -> None:
    first, second, _third = planes.all
    async with fresh_volume(planes.cluster) as volume:
        identity = await begun(planes, volume)
        first.signal(signal.SIGSTOP)
        with planes.asking(second):
            await volume.limit(0)
            await volume.done(identity)
        first.signal(signal.SIGCONT)
        # It wakes in the middle of a repair that is over, and finds its lease gone.
        await until(lambda: _lost(planes, first, identity), bool)
        assert (await planes.cluster.get_replacement(identity)).state == DONE
        stored = planes.logged(first, "replacement advanced")
        mine = [line["state"] for line in stored if line["replacement"] == identity]
        assert "VERIFY" not in mine
        assert "DONE" not in mine
        check_log(planes, identity)
        await volume.verify()


async def _lost(planes: Planes, plane: Program, identity: str) -> bool:
    lost = planes.logged(plane, "lease lost") + planes.logged(plane, "replacement left")
    return any(line.get("key") == identity or identity in line.get("error", "") for line in lost)


@pytest.mark.parametrize(
    "point",
    ["stored:APPLY", "effect:SEND_REPLACEMENT", "stored:REPAIR", "stored:VERIFY",
     "effect:RETIRE_MEMBER", "stored:DONE"],
)  # fmt: skip
async def test_one_that_dies_at_a_step_leaves_it_to_another(planes: Planes, point: str) -> None:
    second = planes.all[1]
    dying = planes._plane(9)
    dying._env = {**dying._env, "STAIRWELL_DIE_AT": point}
    async with fresh_volume(planes.cluster) as volume:
        await volume.fill(4 * MIB)
        await dying.start()
        # Told by the one that dies: in the answer, unless it dies before that.
        with planes.asking(dying), contextlib.suppress(UnavailableError):
            await volume.replace()
        with planes.asking(second):
            (found,) = await planes.cluster.replacements(volume.disk)
            await volume.done(found.id)
            await volume.verify()
        assert await dying.ended() == -signal.SIGKILL
        check_log(planes, found.id)
        if point != "stored:APPLY":
            return
        # The same request again, to another one, has the same answer.
        with planes.asking(second):
            assert (await volume.replace()).replacement_id == found.id
    planes.cluster.remove([dying])


async def test_words_reach_the_one_that_drives(planes: Planes) -> None:
    second = planes.all[1]
    async with fresh_volume(planes.cluster) as volume:
        identity = await begun(planes, volume)
        watcher = Watcher(planes.cluster, second, identity)
        stub = replacement_grpc.ReplacementServiceStub
        with planes.asking(second):
            pause = replacement_pb.PauseReplacementRequest(id=identity)
            await planes.cluster.call(stub, "PauseReplacement", pause)
        here = await planes.cluster.get_replacement(identity)
        assert here.state == replacement_pb.REPLACEMENT_STATE_PAUSED
        with planes.asking(second):
            resume = replacement_pb.ResumeReplacementRequest(id=identity)
            await planes.cluster.call(stub, "ResumeReplacement", resume)
            await _set_limit(planes, identity, 64 * MIB)
            assert planes.sql(
                f"SELECT bytes_per_second_max FROM replacements WHERE id = '{identity}'"
            ) == [(64 * MIB,)]
            await volume.done(identity)
            with pytest.raises(StateError) as caught:
                await _set_limit(planes, identity, 0)
            assert caught.value.reason == "REPLACEMENT_ENDED"
        assert (await watcher.states())[-4:] == ["REPAIR", "VERIFY", "RETIRE", "DONE"]
        assert "PAUSED" in [
            replacement_pb.ReplacementState.Name(each.state).rpartition("_")[2]
            for each in watcher.told
        ]


async def _set_limit(planes: Planes, identity: str, limit: int) -> None:
    request = replacement_pb.SetRepairLimitsRequest(id=identity, bytes_per_second_max=limit)
    stub = replacement_grpc.ReplacementServiceStub
    await planes.cluster.call(stub, "SetRepairLimits", request)


async def test_a_database_that_dies_is_waited_for(planes: Planes) -> None:
    async with fresh_volume(planes.cluster) as volume:
        identity = await begun(planes, volume)
        planes.server.stop(signal.SIGQUIT)
        try:
            for plane in planes.all:
                with planes.asking(plane), pytest.raises(UnavailableError) as caught:
                    await planes.cluster.get_instance(volume.instance)
                assert caught.value.reason == "STORE_UNAVAILABLE"
                assert "not-to-be-seen" not in caught.value.message
            await asyncio.sleep(LEASE_SECONDS * 1.5)  # the leases end meanwhile
            assert all(plane.is_running for plane in planes.all)
        finally:
            planes.server.start()
        await volume.limit(0)
        for plane in planes.all:
            with planes.asking(plane):
                await until(lambda: _seen(planes, identity), bool)
        await volume.done(identity)
        await volume.verify()
        check_log(planes, identity)
        for plane in planes.all:
            assert "not-to-be-seen" not in plane.log.read_text()
            assert "Traceback" not in plane.log.read_text(), plane.tail()


async def _seen(planes: Planes, identity: str) -> bool:
    try:
        return (await planes.cluster.get_replacement(identity)).state in (DONE, FAILED)
    except UnavailableError:
        return False


async def test_an_instance_is_deleted_through_any_of_them(planes: Planes) -> None:
    """And its machine is made again by nobody, and by one alone while it lives."""
    second = planes.all[1]
    async with fresh_volume(planes.cluster, spare=False) as volume:
        planes.cluster.vmmd.kill()
        await planes.cluster.vmmd.start()
        with planes.asking(second):
            await volume.reach(instance_pb.INSTANCE_STATE_RUNNING)
            await volume.settled()
            made = [len(planes.logged(plane, "machine is made again")) for plane in planes.all]
            assert sum(made) == 1
            await volume.delete()
            with pytest.raises(NotFoundError):
                await planes.cluster.get_instance(volume.instance)
        with pytest.raises(NotFoundError):
            await planes.cluster.get_instance(volume.instance)
