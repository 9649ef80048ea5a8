"""Each answer that a running volume gives to a request with one changed target, on real daemons.

Asked of vmmd directly, as its own API: the control plane judges most of these before vmmd is told.
Reference: vcr-and-upstairs.md §4.2; where ours differs, docs/adr/0006 and 0009.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf import json_format

from stairlib.model.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    StateError,
)
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.vmmd.v1 import volume_service_pb2 as pb
from stairwell.vmmd.v1 import volume_service_pb2_grpc as pb_grpc
from tests.integration.cluster import MIB, Cluster, until
from tests.integration.volume import Volume, fresh_volume

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

NOBODY = "127.0.0.1:1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("results") / "cluster"
    async with Cluster.started(folder) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def volume(cluster: Cluster) -> AsyncIterator[Volume]:
    async with fresh_volume(cluster) as made:
        await made.fill()
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unchanged(cluster: Cluster) -> AsyncIterator[Volume]:
    """For tests that leave it as it was."""
    async with fresh_volume(cluster) as made:
        yield made


async def told(
    volume: Volume, original: dict[str, Any], replacement: dict[str, Any]
) -> pb.ReplaceVcrResponse:
    """What the machine answers to the pair."""
    request = pb.ReplaceVcrRequest(machine_id=volume.instance_id, disk=volume.disk)
    json_format.ParseDict(original, request.original)
    json_format.ParseDict(replacement, request.replacement)
    stub = pb_grpc.VolumeServiceStub
    answer: pb.ReplaceVcrResponse = await volume.cluster.call(
        stub, "ReplaceVcr", request, at=volume.cluster.vmmd.address
    )
    return answer


async def test_started_then_started_already_then_completed_already(volume: Volume) -> None:
    pair = volume.vcr(1, volume.targets), volume.changed()
    await volume.limit(4 * MIB)
    async with volume.load():
        started = await told(volume, *pair)
        assert started.result == pb.VCR_REPLACE_RESULT_STARTED
        assert (started.slot, started.region_path) == (2, "sub_volumes[0]")
        assert (started.old_target, started.new_target) == (
            volume.targets[2],
            volume.spare.address,
        )
        again = await told(volume, *pair)
        assert again.result == pb.VCR_REPLACE_RESULT_STARTED_ALREADY
        await volume.limit(0)
        await volume.settled()
        done = await told(volume, *pair)
        assert done.result == pb.VCR_REPLACE_RESULT_COMPLETED_ALREADY
    await volume.verify()
    await volume.read_back()


async def test_a_generation_alone_matches_and_changes_nothing(unchanged: Volume) -> None:
    answer = await told(
        unchanged, unchanged.vcr(1, unchanged.targets), unchanged.vcr(5, unchanged.targets)
    )
    assert answer.result == pb.VCR_REPLACE_RESULT_VCR_MATCHES
    slots = (await unchanged.info()).volume.regions[0].slots
    assert [slot.address for slot in slots] == unchanged.targets


async def test_no_difference_and_two_differences_are_refused(unchanged: Volume) -> None:
    same = unchanged.vcr(1, unchanged.targets)
    two = unchanged.vcr(2, [unchanged.targets[0], NOBODY, unchanged.spare.address])
    for replacement, reason in ((same, "NO_DIFFERENCE"), (two, "TWO_TARGETS_CHANGED")):
        with pytest.raises(InvalidRequestError) as caught:
            await told(unchanged, same, replacement)
        assert reason in [violation.reason for violation in caught.value.violations]


async def test_an_old_target_that_is_no_member_is_missing(unchanged: Volume) -> None:
    strange = [NOBODY, *unchanged.targets[1:]]
    with pytest.raises(NotFoundError, match=NOBODY) as caught:
        await told(
            unchanged,
            unchanged.vcr(1, strange),
            unchanged.vcr(2, ["127.0.0.1:2", *unchanged.targets[1:]]),
        )
    assert caught.value.reason == "TARGET_NOT_FOUND"


async def test_a_new_target_that_is_a_member_is_in_use(unchanged: Volume) -> None:
    first, second, third = unchanged.targets
    for replacement in ([second, second, third], [first, third, third]):
        with pytest.raises(StateError, match="not in use") as caught:
            await told(
                unchanged, unchanged.vcr(1, unchanged.targets), unchanged.vcr(2, replacement)
            )
        assert caught.value.reason == "TARGET_IN_USE"


async def test_another_member_that_is_being_filled_refuses_a_second_one(volume: Volume) -> None:
    await volume.limit(4 * MIB)
    await told(volume, volume.vcr(1, volume.targets), volume.changed())
    await until(lambda: volume.slot(2), lambda slot: slot.HasField("repair"))
    now = [*volume.targets[:2], volume.spare.address]
    with pytest.raises(ConflictError, match="slot 2") as caught:
        await told(volume, volume.vcr(2, now), volume.vcr(3, [NOBODY, *now[1:]]))
    assert caught.value.reason == "REPLACEMENT_RUNNING"
    # The slot itself may be replaced again: here it is taken back to who left.
    back = await told(volume, volume.vcr(2, now), volume.vcr(3, volume.targets))
    assert back.result == pb.VCR_REPLACE_RESULT_STARTED
    await volume.limit(0)
    await volume.settled()
    await volume.verify()
    await volume.read_back()


async def test_a_replacement_before_the_volume_is_active(cluster: Cluster) -> None:
    """A member that is not there is replaced before anything was served."""
    async with fresh_volume(cluster, run=False) as volume:
        volume.downstairs[2].kill()
        pair = volume.vcr(1, volume.targets), volume.changed()
        started = await told(volume, *pair)
        assert started.result == pb.VCR_REPLACE_RESULT_STARTED
        assert (await told(volume, *pair)).result == pb.VCR_REPLACE_RESULT_STARTED_ALREADY
        await volume.run()
        await volume.settled()
        assert (await told(volume, *pair)).result == pb.VCR_REPLACE_RESULT_COMPLETED_ALREADY
        await volume.fill()
        await volume.verify()


@pytest.mark.long
async def test_the_flow_around_the_comparison_remembers(volume: Volume) -> None:
    """The identical request again: already, once a replacement led to it; else no difference."""
    with pytest.raises(InvalidRequestError) as caught:
        await volume.replace(volume.vcr(1, volume.targets))
    assert caught.value.reason == "NO_DIFFERENCE"
    raised = await volume.replace(volume.vcr(3, volume.targets))
    assert raised.result == disk_pb.REPLACE_RESULT_VCR_MATCHES
    with pytest.raises(InvalidRequestError) as caught:
        await volume.replace(volume.vcr(3, volume.targets))
    assert caught.value.reason == "NO_DIFFERENCE"
    await volume.limit(4 * MIB)
    changed = volume.changed(generation=4)
    started = await volume.replace(changed)
    assert started.result == disk_pb.REPLACE_RESULT_STARTED
    again = await volume.replace(changed)
    assert again.result == disk_pb.REPLACE_RESULT_STARTED_ALREADY
    assert again.replacement_id == started.replacement_id
    await volume.limit(0)
    await volume.done(started.replacement_id)
    done = await volume.replace(changed)
    assert done.result == disk_pb.REPLACE_RESULT_COMPLETED_ALREADY
    assert done.replacement_id == started.replacement_id
