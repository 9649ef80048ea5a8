"""Whoever else is killed at a step of a replacement, it ends the same.

The control plane stands still (SIGSTOP) at each point in turn: after each stored transition, and
before each effect. There one of the others is killed and started again, and the control plane goes
on. One replacement goes through all of its points.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from tests.integration.cluster import MIB, Cluster
from tests.integration.replacement_victims import (
    Kill,
    contents,
    kill_machine,
    kill_source,
    kill_target,
    kill_vmmd,
    stands_still,
    stopping_at,
    tormented_volume,
)
from tests.integration.test_replacement_workflow import FORWARD, role
from tests.integration.volume import Volume

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
    async with tormented_volume(cluster) as made:
        yield made


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
async def test_it_ends_the_same(volume: Volume, kill: Kill, points: tuple[str, ...]) -> None:
    cluster = volume.cluster
    held = await contents(volume)
    await stopping_at(cluster, points)
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
