"""Replacements that are stopped at every point, by their users and by death, on real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from controlplane.breakpoints import VARIABLE
from stairlib.model.errors import StairwellError
from stairwell.controlplane.v1 import fleet_service_pb2 as fleet_pb
from stairwell.controlplane.v1 import fleet_service_pb2_grpc as fleet_grpc
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.integration.cluster import MIB, Cluster, children, until
from tests.integration.volume import FAILED, Volume, fresh_volume

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

QUICK = 4 * MIB
# Too little to come to an end, however busy the machine is.
SLOW = MIB // 64
REPAIR = pb.REPLACEMENT_STATE_REPAIR
PAUSED = pb.REPLACEMENT_STATE_PAUSED
CANCELLED = pb.REPLACEMENT_STATE_CANCELLED
# The points of the straight way, in its order.
FORWARD = (
    "stored:APPLY", "effect:SEND_REPLACEMENT", "stored:REPAIR", "effect:WATCH_REPAIR",
    "stored:VERIFY", "effect:VERIFY_MEMBERS", "stored:RETIRE", "effect:RETIRE_MEMBER",
    "stored:DONE",
)  # fmt: skip
# Those of one that is undone.
BACKWARD = (
    "stored:CANCELLING", "effect:ASK_WHETHER_UNDOABLE", "stored:UNDO", "effect:TAKE_BACK",
    "stored:CANCELLED",
)  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("workflow") / "cluster"
    async with Cluster.started(folder) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def volume(cluster: Cluster) -> AsyncIterator[Volume]:
    async with fresh_volume(cluster) as made:
        await made.fill(12 * MIB)
        yield made
    if not cluster.controlplane.is_running:
        await cluster.controlplane.start()


def machine_pids(volume: Volume) -> list[int]:
    """The process of its machine; none while there is no machine."""
    return [
        pid
        for pid in children(volume.cluster.vmmd.pid)
        if volume.instance in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    ]


def machine_pid(volume: Volume) -> int:
    """The process of its machine, which is there."""
    (pid,) = machine_pids(volume)
    return pid


async def halfway(volume: Volume) -> str:
    """A replacement that has begun to copy, and needs minutes for the rest."""
    await volume.limit(QUICK)
    started = await volume.replace()
    await volume.mid_repair(started.replacement_id)
    await volume.limit(SLOW)
    return started.replacement_id


async def role(cluster: Cluster, address: str) -> str:
    fleet = await cluster.call(
        fleet_grpc.FleetServiceStub, "ListDownstairs", fleet_pb.ListDownstairsRequest()
    )
    (found,) = [each.role for each in fleet.downstairs if each.address == address]
    return fleet_pb.DownstairsRole.Name(found).removeprefix("DOWNSTAIRS_ROLE_")


async def in_state(volume: Volume, identity: str, state: int) -> pb.Replacement:
    return await until(
        lambda: volume.cluster.get_replacement(identity), lambda one: one.state == state
    )


async def deaths(cluster: Cluster, points: tuple[str, ...], last: str = "") -> None:
    """The control plane, which is to die at the first of the points, and is started anew after
    each death to die at the next."""
    for point in (*points[1:], last):
        assert await cluster.controlplane.ended() == -signal.SIGKILL
        # Not `start`: it may die before it says that it serves.
        cluster.controlplane.launch(**({VARIABLE: point} if point else {}))
    await cluster.controlplane.serving()


@pytest.mark.long
async def test_killed_at_every_point_it_ends_the_same(volume: Volume) -> None:
    """After each stored transition and before each effect, one replacement through all of them."""
    cluster = volume.cluster
    async with volume.load(directly=True) as load:
        cluster.controlplane.kill()
        await cluster.controlplane.start(**{VARIABLE: FORWARD[0]})
        with pytest.raises(StairwellError):
            await volume.replace()
        await deaths(cluster, FORWARD)
        await load.goes_on()
        (record,) = await cluster.replacements(volume.disk)
        await volume.done(record.id)
    record = await cluster.get_replacement(record.id)
    assert [each.event for each in record.transitions] == [
        "Validated", "Preflighted", "Recorded", "Applied", "Repaired", "Verified", "Retired",
    ]  # fmt: skip
    assert (await volume.slot(2)).address == volume.spare.address
    assert await role(cluster, volume.targets[2]) == "RETIRED"
    await volume.settled()
    await volume.verify()
    await volume.read_back()


@pytest.mark.long
async def test_killed_at_every_point_of_undoing_it_is_undone(volume: Volume) -> None:
    cluster = volume.cluster
    identity = await halfway(volume)
    before = await cluster.get_replacement(identity)
    async with volume.load(directly=True) as load:
        cluster.controlplane.kill()
        await cluster.controlplane.start(**{VARIABLE: "stored:PAUSED"})
        (await cluster.cli("replacement", "pause", identity, "--timeout", "20")).bad()
        await deaths(cluster, ("stored:PAUSED", "effect:HOLD_REPAIR"), BACKWARD[0])
        held = await until(lambda: volume.slot(2), lambda slot: slot.repair_held)
        await load.goes_on()
        await load.goes_on()
        now = await volume.slot(2)
        assert now.repair.bytes_done <= held.repair.bytes_done + 4 * MIB, "what was under way"
        assert now.state == volume_pb.SLOT_STATE_LIVE_REPAIR
        paused = await cluster.get_replacement(identity)
        assert (paused.state, paused.paused_in) == (PAUSED, REPAIR)
        assert paused.bytes_done >= before.bytes_done

        (await cluster.cli("replacement", "cancel", identity, "--timeout", "20")).bad()
        await deaths(cluster, BACKWARD)
        await load.goes_on()
    await in_state(volume, identity, CANCELLED)
    answer = (await cluster.cli("replacement", "cancel", identity)).good()
    assert "undone" in answer.out
    assert (await volume.info()).recorded_generation == 1
    slot = await volume.slot(2)
    assert (slot.address, slot.departing_address) == (volume.targets[2], "")
    assert not slot.repair_held
    assert await role(cluster, volume.spare.address) == "LEFTOVER"
    await volume.verify()
    await volume.read_back()
    # What is recorded counts again: no higher generation is needed than that.
    other = cluster.downstairs()
    await other.start()
    await volume.limit(0)
    started = await volume.replace(volume.changed(target=other.address, generation=1))
    await volume.done(started.replacement_id)
    await volume.verify()


async def test_paused_it_copies_nothing_over_a_restart_of_vmmd_and_goes_on(volume: Volume) -> None:
    """A machine that is made again is activated with three equal members, paused or not."""
    cluster = volume.cluster
    identity = await halfway(volume)
    answer = (await cluster.cli("replacement", "pause", identity)).good()
    assert "is paused in repair" in answer.out
    await until(lambda: volume.slot(2), lambda slot: slot.repair_held)
    cluster.vmmd.kill()
    away = await until(
        lambda: cluster.get_replacement(identity), lambda one: "vmmd" in one.blocked_on
    )
    assert away.state == PAUSED
    await cluster.vmmd.start()
    await until(
        volume.info,
        lambda disk: any(r.slots[2].repair_held for r in disk.volume.regions),
    )
    await volume.reach(instance_pb.INSTANCE_STATE_RUNNING)
    assert (await cluster.get_replacement(identity)).state == PAUSED
    (await cluster.cli("replacement", "resume", identity)).good()
    await volume.done(identity)
    assert not (await volume.slot(2)).repair_held
    await volume.settled()
    await volume.verify()


async def test_before_the_machine_runs_and_while_it_starts(cluster: Cluster) -> None:
    """An idle machine lets the old member go at once: too late to undo, and retried it goes on."""
    async with fresh_volume(cluster, run=False) as volume:
        started = await volume.replace()
        waiting = await until(
            lambda: cluster.get_replacement(started.replacement_id), lambda one: one.blocked_on
        )
        assert "when the instance runs" in waiting.blocked_on
        answer = await cluster.cli("replacement", "cancel", waiting.id)
        assert answer.status == 1
        assert f"has let {volume.targets[2]} go" in answer.out
        assert f"stairwell replacement retry {waiting.id}" in answer.out
        await in_state(volume, waiting.id, FAILED)
        (await cluster.cli("replacement", "retry", waiting.id)).good()
        volume.downstairs[1].kill()
        await volume.set_state(instance_pb.REQUESTED_STATE_RUN)
        await volume.reach(instance_pb.INSTANCE_STATE_STARTING)
        await volume.downstairs[1].start()
        await volume.reach(instance_pb.INSTANCE_STATE_RUNNING)
        await volume.done(started.replacement_id)
        await volume.settled()
        await volume.verify()
        assert (await volume.slot(2)).address == volume.spare.address


async def test_the_machine_s_process_dies_in_the_middle(volume: Volume) -> None:
    """The machine is made again, with what is recorded; the replacement goes on there."""
    identity = await halfway(volume)
    vcr = (await volume.info()).vcr
    dead = machine_pid(volume)
    os.kill(dead, signal.SIGKILL)
    await volume.done(identity)
    await volume.reach(instance_pb.INSTANCE_STATE_RUNNING)
    assert machine_pid(volume) != dead
    await volume.settled()
    await volume.verify()
    targets = list((await volume.info()).vcr.sub_volumes[0].opts.target)
    assert targets == list(vcr.sub_volumes[0].opts.target)
    assert volume.spare.address in targets


@pytest.mark.long
async def test_two_operators_at_once(volume: Volume) -> None:
    """By the command line: one replacement, and one answer that names it."""
    cluster = volume.cluster
    await volume.limit(SLOW)
    paths = []
    for slot in (1, 2):
        path = cluster.folder / f"wanted-{slot}.json"
        path.write_text(json.dumps({"name": volume.disk, "vcr": volume.changed(slot)}))
        paths.append(path)
    asked = [
        cluster.cli("vcr", "-d", volume.disk, "--vcr-replace", path, "--no-wait") for path in paths
    ]
    answers = await asyncio.gather(*asked)
    assert [each.status for each in answers].count(0) == 1, answers
    (record,) = await cluster.replacements(volume.disk)
    (refused,) = [each for each in answers if each.status]
    refused.bad(record.id, "is running")
    await volume.limit(0)
    await volume.done(record.id)
