"""The fleet on real processes: members that die are replaced, hosts are emptied, and whoever kills
the control plane meanwhile changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from stairlib.model.errors import StairwellError
from stairwell.controlplane.v1 import fleet_service_pb2 as pb
from stairwell.controlplane.v1 import fleet_service_pb2_grpc as pb_grpc
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from tests.integration.cluster import MIB, Cluster, Program, until
from tests.integration.volume import DONE, Volume

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

SLOW = 4 * MIB
FAST = 256 * MIB


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("fleet") / "cluster"
    async with Cluster.started(folder) as started:
        yield started


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def order(cluster: Cluster) -> AsyncIterator[None]:
    """Each test begins with the policy that a new installation has."""
    yield
    if not cluster.controlplane.is_running:
        await cluster.controlplane.start()
    await cluster.cli("fleet", "policy", "--automatic", "off", "--maintenance", "off",
                      "--at-once", "1")  # fmt: skip


async def register(cluster: Cluster, program: Program, host: str) -> None:
    request = pb.RegisterDownstairsRequest(address=program.address, host=host)
    await cluster.call(pb_grpc.FleetServiceStub, "RegisterDownstairs", request)


@asynccontextmanager
async def volumes(cluster: Cluster, number: int, spares: int) -> AsyncIterator[list[Volume]]:
    """Running disks with their members on hosts of their own, a0 a1 a2 for each slot, and spares
    on s0 s1 ...; the spares are the last disk's."""
    made = [Volume(cluster, [cluster.downstairs() for _ in range(3)]) for _ in range(number)]
    last = made[-1]
    last.downstairs += [cluster.downstairs() for _ in range(spares)]
    programs = [each for volume in made for each in volume.downstairs]
    try:
        await asyncio.gather(*(each.start() for each in programs))
        await asyncio.gather(*(_ready(volume) for volume in made))
        hosts = [(each, f"a{n}") for volume in made for n, each in enumerate(volume.downstairs[:3])]
        hosts += [(each, f"s{n}") for n, each in enumerate(last.downstairs[3:])]
        await asyncio.gather(*(register(cluster, each, host) for each, host in hosts))
        yield made
    finally:
        for volume in made:
            with contextlib.suppress(StairwellError, AssertionError):
                await volume.delete()
        cluster.remove(programs)
        for program in programs:
            request = pb.DeregisterDownstairsRequest(address=program.address)
            with contextlib.suppress(StairwellError):
                await cluster.call(pb_grpc.FleetServiceStub, "DeregisterDownstairs", request)


async def _ready(volume: Volume) -> None:
    await volume.create()
    await volume.run()
    await volume.fill()


async def begun(volume: Volume) -> replacement_pb.Replacement:
    """The newest replacement of a disk, once there is one."""
    found = await until(lambda: volume.cluster.replacements(volume.disk), bool)
    return found[0]


async def waiting(cluster: Cluster) -> list[pb.FaultedMember]:
    """The members found faulted, as of the last round."""
    answer = await cluster.call(
        pb_grpc.FleetServiceStub, "GetFleetPolicy", pb.GetFleetPolicyRequest()
    )
    return list(answer.faulted)


async def waits(cluster: Cluster, word: str) -> str:
    """What the only faulted member waits for, once it has the word in it."""

    async def look() -> str:
        found = await waiting(cluster)
        return found[0].waits_for if found else ""

    return await until(look, lambda text: word in text)


async def kill_and_start(program: Program) -> None:
    program.kill()
    await program.start()


@pytest.mark.long
async def test_a_member_that_dies_is_replaced_by_itself_and_maintenance_holds(
    cluster: Cluster,
) -> None:
    async with volumes(cluster, 1, 2) as (volume,):
        (await cluster.cli("fleet", "policy", "--automatic", "on", "--grace", "3s",
                           "--maintenance", "on")).good()  # fmt: skip
        async with volume.load(directly=True):
            volume.downstairs[1].kill()
            await waits(cluster, "maintenance")
            await kill_and_start(cluster.controlplane)
            await waits(cluster, "maintenance")
            assert not await cluster.replacements(volume.disk), "held, also over a restart"
            (await cluster.cli("fleet", "policy", "--maintenance", "off")).good()
            record = await begun(volume)
            assert (record.slot, record.asked_by) == (1, "automatic")
            await volume.done(record.id)
        await volume.verify()
        await volume.read_back()
        await until(lambda: waiting(cluster), lambda found: not found)
        assert len(await cluster.replacements(volume.disk)) == 1
        listed = (await cluster.cli("fleet", "list", "--look")).good().out
        assert volume.downstairs[1].address in listed
        assert "away" in listed


@pytest.mark.long
async def test_a_host_with_two_volumes_is_emptied_under_load_over_a_restart(
    cluster: Cluster,
) -> None:
    async with volumes(cluster, 2, 2) as (first, second):
        for volume in (first, second):
            await volume.limit(SLOW)
        async with first.load(directly=True):
            (await cluster.cli("fleet", "drain", "a1", "--no-wait")).good()
            one = await until(cluster.replacements, bool)
            moved = first if one[0].disk == first.disk else second
            assert (one[0].slot, one[0].old_target) == (1, moved.downstairs[1].address)
            await moved.mid_repair(one[0].id)
            assert len([each for each in await cluster.replacements() if each.state != DONE]) == 1
            slot = await moved.slot(1)
            assert slot.departing_address == moved.downstairs[1].address, "the old one still serves"
            await kill_and_start(cluster.controlplane)
            for volume in (first, second):
                await volume.limit(FAST)
            followed = await cluster.cli("fleet", "drain", "a1")
            followed.good()
            assert "2 of 2 moved" in followed.out
        for volume in (first, second):
            assert volume.downstairs[1].address not in str(await volume.info())
            await volume.verify()
            await volume.read_back()
        # Nothing is placed there any more, until the drain is cancelled.
        spare = cluster.downstairs()
        try:
            await spare.start()
            await register(cluster, spare, "a1")
            start = ("replacement", "start", first.disk, "--slot", "0", "--dry-run")
            (await cluster.cli(*start)).bad("NO_SPARE", "a1 is drained")
            (await cluster.cli("fleet", "drain-cancel", "a1")).good()
            assert spare.address in (await cluster.cli(*start)).good().out
        finally:
            cluster.remove([spare])
            await cluster.cli("fleet", "deregister", spare.address)


@pytest.mark.long
async def test_two_operators_and_the_way_back_from_no_spare(cluster: Cluster) -> None:
    async with volumes(cluster, 1, 1) as (volume,):
        await volume.limit(SLOW)
        start = ("replacement", "start", volume.disk, "--slot", "2")
        answers = await asyncio.gather(cluster.cli(*start), cluster.cli(*start))
        good = [each for each in answers if each.status == 0]
        (bad,) = (each for each in answers if each.status != 0)
        assert len(good) == 1
        record = await begun(volume)
        assert record.id in good[0].out
        bad.bad("REPLACEMENT_RUNNING", record.id)
        await volume.limit(FAST)
        await volume.done(record.id)
        none = await cluster.cli("replacement", "start", volume.disk, "--slot", "0")
        none.bad("NO_SPARE", volume.downstairs[2].address, "create its region anew")
        (await cluster.cli("fleet", "deregister", volume.downstairs[0].address)).bad(
            "DOWNSTAIRS_IN_USE", "fleet drain"
        )
        shown = (await cluster.cli("replacement", "get", record.id)).good().out
        assert "begun by: operator" in shown
        assert f"-> {volume.spare.address}" in shown
