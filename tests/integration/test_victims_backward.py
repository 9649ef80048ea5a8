"""Whoever is killed while a replacement is paused, resumed or cancelled, it ends as it has to.

As in test_victims: the control plane stands still at each point in turn, and there one of the
daemons, or the control plane itself, is killed and started again. What a cancelled one ends as
depends on whether the machine still has the old member: one that was made again after the undoing
was stored has it, one that was made again before has only the new one, and goes forward.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from controlplane.breakpoints import STOP_VARIABLE
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as pb
from stairwell.controlplane.v1 import replacement_service_pb2_grpc as replacement_grpc
from tests.integration.cluster import Cluster, until
from tests.integration.replacement_victims import (
    Kill,
    contents,
    kill_machine,
    kill_source,
    kill_target,
    kill_vmmd,
    made_again,
    stands_still,
    stopping_at,
    tormented_volume,
)
from tests.integration.test_replacement_workflow import BACKWARD, CANCELLED, SLOW, halfway, role
from tests.integration.volume import DONE, FAILED, Volume

pytestmark = [
    pytest.mark.processes,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]

# The first is the taking up of the repair by the control plane that will stand still.
PAUSING = ("effect:WATCH_REPAIR", "stored:PAUSED", "effect:HOLD_REPAIR", "stored:REPAIR")
# Until the undoing is stored, a machine that is made again gets the new member.
ASKING = BACKWARD[:2]
# From then on one gets the old member.
UNDOING = BACKWARD[2:]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("backward") / "cluster"
    async with Cluster.started(folder) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def volume(cluster: Cluster) -> AsyncIterator[Volume]:
    async with tormented_volume(cluster) as made:
        yield made


async def kill_controlplane(_volume: Volume) -> None:
    """Marks the victim that has to be told the points that are left: see `deaths`."""


async def deaths(
    volume: Volume,
    kill: Kill,
    points: tuple[str, ...],
    at: tuple[str, ...],
    later: tuple[str, ...] = (),
) -> None:
    """Goes through the points, with a death at each of those in `at`; nobody stands still then. A
    control plane that is started anew is to stand still at those that are left, and `later`."""
    plane = volume.cluster.controlplane
    for number, point in enumerate(points):
        try:
            await stands_still(plane)
            if point in at and kill is kill_controlplane:
                plane.kill()
                plane.launch(**{STOP_VARIABLE: ",".join((*points[number + 1 :], *later))})
            elif point in at:
                await kill(volume)
        except AssertionError as error:
            error.add_note(f"on the way to {point}, after {points[:number]}")
            raise
        plane.signal(signal.SIGCONT)


async def say(volume: Volume, method: str, identity: str) -> Any:
    """A user's word to a replacement."""
    request = getattr(pb, f"{method}Request")(id=identity)
    return await volume.cluster.call(replacement_grpc.ReplacementServiceStub, method, request)


async def ended(volume: Volume, identity: str) -> pb.Replacement:
    return await until(
        lambda: volume.cluster.get_replacement(identity),
        lambda one: one.state in (DONE, FAILED, CANCELLED),
    )


async def whole(volume: Volume, held: str) -> None:
    """The machine runs, its three members are equal, and hold what they held."""
    await volume.record_limit(0)
    await made_again(volume)
    await volume.settled()
    await volume.reach(instance_pb.INSTANCE_STATE_RUNNING)
    await volume.verify()
    assert await contents(volume) == held


async def undone(volume: Volume, identity: str, held: str) -> None:
    """The old member serves, as recorded, and the answer says so."""
    cluster = volume.cluster
    found = await ended(volume, identity)
    assert found.state == CANCELLED, found
    answer = await say(volume, "CancelReplacement", identity)
    assert answer.outcome == pb.CANCEL_OUTCOME_UNDONE
    assert (await volume.info()).recorded_generation == 1
    await whole(volume, held)
    slot = await volume.slot(2)
    assert (slot.address, slot.departing_address) == (volume.targets[2], "")
    assert not slot.repair_held
    assert await role(cluster, volume.targets[2]) == "MEMBER"


async def replaced(volume: Volume, identity: str, held: str) -> None:
    """The new member serves, as recorded, and the old one is retired."""
    found = await volume.done(identity)
    moves = [each.event for each in found.transitions]
    assert [each for each in moves if each in ("Repaired", "Verified", "Retired")][-3:] == [
        "Repaired", "Verified", "Retired",
    ]  # fmt: skip
    assert (await volume.info()).recorded_generation == 2
    await whole(volume, held)
    slot = await volume.slot(2)
    assert (slot.address, slot.departing_address) == (volume.spare.address, "")
    assert not slot.repair_held
    assert await role(volume.cluster, volume.targets[2]) == "RETIRED"


@pytest.mark.parametrize(
    "kill",
    [
        pytest.param(kill_machine, id="machine"),
        pytest.param(kill_vmmd, id="vmmd", marks=pytest.mark.long),
        pytest.param(kill_controlplane, id="controlplane", marks=pytest.mark.long),
        pytest.param(kill_target, id="target", marks=pytest.mark.long),
        pytest.param(kill_source, id="source", marks=pytest.mark.long),
    ],
)
async def test_paused_and_resumed_it_ends_the_same(volume: Volume, kill: Kill) -> None:
    """Also a machine that is made again is slow, until it is told otherwise: so it was asked."""
    held = await contents(volume)
    identity = await halfway(volume)
    await volume.record_limit(SLOW)
    plane = volume.cluster.controlplane
    await plane.end()
    # Not `start`: it stands still before it says that it serves.
    plane.launch(**{STOP_VARIABLE: ",".join(PAUSING)})
    await deaths(volume, kill, PAUSING[:1], PAUSING, later=PAUSING[1:])
    await plane.serving()
    pause = asyncio.create_task(say(volume, "PauseReplacement", identity))
    await deaths(volume, kill, PAUSING[1:3], PAUSING, later=PAUSING[3:])
    await asyncio.gather(pause, return_exceptions=True)
    await plane.serving()
    paused = await volume.cluster.get_replacement(identity)
    assert (paused.state, paused.paused_in) == (
        pb.REPLACEMENT_STATE_PAUSED, pb.REPLACEMENT_STATE_REPAIR,
    )  # fmt: skip
    resume = asyncio.create_task(say(volume, "ResumeReplacement", identity))
    await deaths(volume, kill, PAUSING[3:], PAUSING)
    await asyncio.gather(resume, return_exceptions=True)
    await plane.serving()
    await volume.record_limit(0)
    await replaced(volume, identity, held)


@pytest.mark.parametrize(
    ("kill", "at"),
    [
        pytest.param(kill_vmmd, UNDOING, id="vmmd"),
        pytest.param(kill_machine, UNDOING, id="machine", marks=pytest.mark.long),
        pytest.param(kill_target, BACKWARD, id="target", marks=pytest.mark.long),
        pytest.param(kill_source, BACKWARD, id="source", marks=pytest.mark.long),
    ],
)
async def test_cancelled_while_it_is_filled_it_is_undone(
    volume: Volume, kill: Kill, at: tuple[str, ...]
) -> None:
    """The control plane itself: test_replacement_workflow."""
    held = await contents(volume)
    identity = await halfway(volume)
    await stopping_at(volume.cluster, BACKWARD)
    cancel = asyncio.create_task(say(volume, "CancelReplacement", identity))
    await deaths(volume, kill, BACKWARD, at)
    await asyncio.gather(cancel, return_exceptions=True)
    await volume.cluster.controlplane.serving()
    await undone(volume, identity, held)


@pytest.mark.long
@pytest.mark.parametrize("kill", [kill_vmmd, kill_machine])
@pytest.mark.parametrize("point", ASKING)
async def test_cancelled_when_the_old_member_is_gone_it_goes_forward(
    volume: Volume, kill: Kill, point: str
) -> None:
    """Finished forward, if the machine had filled the new member by the time it was asked; else it
    says that it cannot be undone, and a retry goes on."""
    held = await contents(volume)
    identity = await halfway(volume)
    await stopping_at(volume.cluster, (point,))
    cancel = asyncio.create_task(say(volume, "CancelReplacement", identity))
    await deaths(volume, kill, (point,), (point,))
    await asyncio.gather(cancel, return_exceptions=True)
    await volume.cluster.controlplane.serving()
    await forward(volume, identity, held)


async def forward(volume: Volume, identity: str, held: str) -> None:
    """A cancelled one that goes forward, with a retry where it says that it wants one."""
    found = await ended(volume, identity)
    moves = [each.event for each in found.transitions]
    assert "CancelAsked" in moves
    assert "Undone" not in moves
    if found.state == FAILED:
        assert "CannotUndo" in moves
        assert "retry to go on" in found.last_error
        await say(volume, "RetryReplacement", identity)
    else:
        assert "Kept" in moves
    await replaced(volume, identity, held)


@pytest.mark.parametrize(
    ("kill", "at"),
    [
        pytest.param(kill_machine, UNDOING, id="machine"),
        pytest.param(kill_vmmd, UNDOING, id="vmmd", marks=pytest.mark.long),
        pytest.param(kill_controlplane, BACKWARD, id="controlplane", marks=pytest.mark.long),
        pytest.param(kill_target, BACKWARD, id="target", marks=pytest.mark.long),
        pytest.param(kill_source, BACKWARD, id="source", marks=pytest.mark.long),
    ],
)
async def test_cancelled_before_the_machine_is_told_it_is_undone(
    volume: Volume, kill: Kill, at: tuple[str, ...]
) -> None:
    held = await contents(volume)
    identity = await cancelled_untold(volume, kill, BACKWARD, at)
    await undone(volume, identity, held)
    moves = [each.event for each in (await ended(volume, identity)).transitions]
    assert "Applied" not in moves


@pytest.mark.long
@pytest.mark.parametrize("kill", [kill_vmmd, kill_machine])
@pytest.mark.parametrize("point", ASKING)
async def test_cancelled_before_the_machine_is_told_and_made_again_it_goes_forward(
    volume: Volume, kill: Kill, point: str
) -> None:
    """The machine learns of the new member by being made again with what is recorded."""
    held = await contents(volume)
    points = ASKING[: ASKING.index(point) + 1]
    identity = await cancelled_untold(volume, kill, points, (point,))
    await forward(volume, identity, held)


async def cancelled_untold(
    volume: Volume, kill: Kill, points: tuple[str, ...], at: tuple[str, ...]
) -> str:
    """A replacement that was cancelled before the machine was told, with deaths on the way. The
    machine's host stands still, so that it cannot be told before."""
    cluster = volume.cluster
    await stopping_at(cluster, ("effect:SEND_REPLACEMENT", *points))
    asked = asyncio.create_task(volume.replace())
    await stands_still(cluster.controlplane)
    cluster.vmmd.signal(signal.SIGSTOP)
    cluster.controlplane.signal(signal.SIGCONT)
    started = await asked
    cancel = asyncio.create_task(say(volume, "CancelReplacement", started.replacement_id))
    await stands_still(cluster.controlplane)
    cluster.vmmd.signal(signal.SIGCONT)
    await deaths(volume, kill, points, at)
    await asyncio.gather(cancel, return_exceptions=True)
    await volume.cluster.controlplane.serving()
    return started.replacement_id
