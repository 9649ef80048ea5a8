"""A daemon's directory is put back to an older copy while the upstairs runs: real daemons, real
regions, the guest's view."""

from __future__ import annotations

import random
import shutil
import uuid

import pytest

from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from tests.contract.downstairs_set import DownstairsSet, until
from tests.contract.guest_calls import all_active, flush, read, write
from vmmd.upstairs.core.slot_states import SlotState
from vmmd.upstairs.shell.runner import RegionUpstairs

GEOMETRY = Geometry(4096, 64, 8)
EXTENT = 64 * 4096


@pytest.fixture
async def daemons(tmp_path):
    found = DownstairsSet(tmp_path, GEOMETRY, 3)
    await found.start_all()
    yield found
    await found.close()


@pytest.fixture
async def upstairs(daemons):
    tracing = Tracing("machine", "test")
    found = RegionUpstairs(daemons.spec(uuid.uuid4()), tracing=tracing)
    yield found
    await found.close()
    tracing.shutdown()


async def test_an_older_copy_of_a_region_is_refused_and_repaired(daemons, upstairs, tmp_path):
    """What the copy lacks was flushed, hence is on the others: the guest never reads the older."""
    await upstairs.activate(timeout_seconds=10)
    old = random.Random(1).randbytes(EXTENT)
    await write(upstairs, 0, old)
    await flush(upstairs)
    await daemons.stop(1)
    await until(lambda: upstairs.status().slots[1].state is not SlotState.ACTIVE)
    shutil.copytree(daemons.directories[1], tmp_path / "older")
    await daemons.start(1)
    await until(lambda: all_active(upstairs))
    assert upstairs.status().slots[1].repairs_completed == 0
    new = random.Random(2).randbytes(EXTENT)
    await write(upstairs, 0, new)
    await flush(upstairs)
    # Two answers make a flush; this one's is what the older copy lacks.
    member = upstairs._core._region.members[1]
    flushed = upstairs.status().flush_number
    await until(lambda: member.stamped_flush == (1, flushed))
    reasons = set()

    def has_left() -> bool:
        reasons.add(upstairs.status().slots[1].last_error)
        return upstairs.status().slots[1].state is not SlotState.ACTIVE

    def is_back() -> bool:
        reasons.add(upstairs.status().slots[1].last_error)
        return upstairs.status().slots[1].repairs_completed == 1

    await daemons.stop(1)
    await until(has_left)
    shutil.rmtree(daemons.directories[1])
    shutil.copytree(tmp_path / "older", daemons.directories[1])
    # Written while it is away: what is replayed onto the right region, and onto this one not.
    await write(upstairs, 70, new[: 8 * 4096])
    await daemons.start(1)
    await until(is_back)
    assert any("MEMBER_OUTDATED" in reason for reason in reasons)
    assert await read(upstairs, 0, 64) == new
    await flush(upstairs)
    result = await upstairs.verify(read_data=True)
    assert result.equal
    assert result.members_compared == 3
