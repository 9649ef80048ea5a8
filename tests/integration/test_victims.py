"""Whoever else is killed at a step of a replacement, it ends the same.

The control plane stands still (SIGSTOP) at each point in turn: after each stored transition, and
before each effect. There one of the others is killed and started again, and the control plane goes
on. One replacement goes through all of its points.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from controlplane.breakpoints import STOP_VARIABLE
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from tests.integration.cluster import MIB, Cluster, Program, until
from tests.integration.nbd_client import NbdClient
from tests.integration.test_replacement_workflow import FORWARD, machine_pids, role
from tests.integration.volume import Volume, fresh_volume

pytestmark = [
    pytest.mark.processes,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]

# Quick enough to end, so slow that there is something left to copy after each death.
RATE = 8 * MIB
# More deaths in ten minutes, and a machine is not made again.
MACHINE_DEATHS = 5


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("victims") / "cluster"
    async with Cluster.started(folder) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def volume(cluster: Cluster) -> AsyncIterator[Volume]:
    async with fresh_volume(cluster) as made:
        await made.fill(12 * MIB)
        try:
            yield made
        finally:
            # Also after a failure: what is to be taken away has to answer.
            cluster.controlplane.signal(signal.SIGCONT)


async def stands_still(program: Program) -> None:
    """Returns when the process has stopped itself."""

    async def state() -> str:
        assert program.is_running, program.tail()
        stat = Path(f"/proc/{program.pid}/stat").read_text()  # noqa: ASYNC240 - kept in memory
        return stat.rpartition(")")[2].split()[0]

    await until(state, lambda seen: seen == "T")


async def contents(volume: Volume) -> str:
    """A digest of all that the disk holds."""
    uri = (await volume.info()).volume.nbd_uri

    def read() -> str:
        digest = hashlib.sha256()
        with NbdClient(uri) as client:
            for offset in range(0, client.size, MIB):
                digest.update(client.read(offset, min(MIB, client.size - offset)))
        return digest.hexdigest()

    return await asyncio.to_thread(read)


async def kill_vmmd(volume: Volume) -> None:
    vmmd = volume.cluster.vmmd
    vmmd.kill()
    await vmmd.start()


async def kill_machine(volume: Volume) -> None:
    """Nobody, where the one killed before is not made again yet: who makes it stands still."""
    for pid in machine_pids(volume):
        os.kill(pid, signal.SIGKILL)


async def kill_target(volume: Volume) -> None:
    volume.spare.kill()
    await volume.spare.start()


async def kill_source(volume: Volume) -> None:
    volume.downstairs[0].kill()
    await volume.downstairs[0].start()


@pytest.mark.parametrize(
    ("kill", "points"),
    [
        pytest.param(kill_target, FORWARD[2:4], id="target-while-it-is-filled"),
        pytest.param(kill_vmmd, FORWARD, id="vmmd", marks=pytest.mark.long),
        pytest.param(kill_target, FORWARD, id="target", marks=pytest.mark.long),
        pytest.param(kill_source, FORWARD, id="source", marks=pytest.mark.long),
        pytest.param(
            kill_machine, FORWARD[:MACHINE_DEATHS], id="machine-first", marks=pytest.mark.long
        ),
        pytest.param(
            kill_machine, FORWARD[MACHINE_DEATHS:], id="machine-then", marks=pytest.mark.long
        ),
    ],
)
async def test_it_ends_the_same(
    volume: Volume, kill: Callable[[Volume], Awaitable[None]], points: tuple[str, ...]
) -> None:
    cluster = volume.cluster
    held = await contents(volume)
    await cluster.controlplane.end()
    await cluster.controlplane.start(**{STOP_VARIABLE: ",".join(points)})
    await volume.limit(RATE)
    asked = asyncio.create_task(volume.replace())
    for number, point in enumerate(points):
        try:
            await stands_still(cluster.controlplane)
            await kill(volume)
        except AssertionError as error:
            error.add_note(f"on the way to {point}, after {points[:number]}")
            raise
        cluster.controlplane.signal(signal.SIGCONT)
    await asyncio.gather(asked, return_exceptions=True)
    (record,) = await cluster.replacements(volume.disk)
    ended = await volume.done(record.id)
    moves = [each.event for each in ended.transitions]
    assert moves[:3] == ["Validated", "Preflighted", "Recorded"]
    assert [each for each in moves if each in ("Repaired", "Verified", "Retired")][-3:] == [
        "Repaired", "Verified", "Retired",
    ]  # fmt: skip
    await volume.reach(instance_pb.INSTANCE_STATE_RUNNING)
    await volume.settled()
    assert (await volume.slot(2)).address == volume.spare.address
    assert await role(cluster, volume.targets[2]) == "RETIRED"
    await volume.verify()
    assert await contents(volume) == held
