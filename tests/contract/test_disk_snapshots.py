"""Snapshots of a volume on real daemons: taken under writes, and the same on all three members."""

from __future__ import annotations

import asyncio
import base64
import random
import uuid

import pytest

from downstaird.regions import open_snapshot_of
from stairlib.model.cipher import CIPHERS
from stairlib.model.construction import Secret
from stairlib.model.errors import DataError, StateError
from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from tests.contract.downstairs_set import DownstairsSet, until
from tests.contract.guest_calls import all_active, flush, read, write
from vmmd.upstairs.core.slot_states import SlotState
from vmmd.upstairs.shell.runner import RegionUpstairs

GEOMETRY = Geometry(4096, 64, 8)


@pytest.fixture
def tracing():
    found = Tracing("machine", "test")
    yield found
    found.shutdown()


@pytest.fixture
async def daemons(tmp_path):
    found = DownstairsSet(tmp_path, GEOMETRY, 4)
    await found.start_all()
    yield found
    await found.close()


@pytest.fixture
async def volume(daemons, tracing):
    found = RegionUpstairs(daemons.spec(uuid.uuid4()), tracing=tracing)
    await found.activate(timeout_seconds=10)
    yield found
    await found.close()


async def at_rest(daemons, volume):
    """What was just taken is written out when nobody uses the region."""
    await volume.deactivate()
    for number in range(3):
        await daemons.stop(number)


def kept(daemons, number, name):
    """(stored bytes of all blocks, contexts) of a member's snapshot."""
    engine = open_snapshot_of(daemons.directories[number], name)
    try:
        contexts, buffers = engine.read(0, GEOMETRY.block_count)
        return b"".join(bytes(part) for part in buffers), contexts.tobytes()
    finally:
        engine.close()


async def test_all_three_keep_what_was_written_before(daemons, volume):
    before = random.Random(1).randbytes(300 * 4096)
    await write(volume, 10, before)
    taking = volume.begin_snapshot("monday")
    # What comes after it in the order of writes is not in it, however soon.
    writes = [write(volume, 10 + 64 * n, random.Random(n).randbytes(64 * 4096)) for n in range(4)]
    taken, *_ = await asyncio.gather(taking, *writes)
    assert taken.name == "monday"
    assert await read(volume, 10, 64) == random.Random(0).randbytes(64 * 4096)
    await at_rest(daemons, volume)
    first, *others = [kept(daemons, number, "monday") for number in range(3)]
    assert others == [first, first]
    assert first[0][10 * 4096 : 310 * 4096] == before


async def test_a_name_that_is_taken_is_told_and_costs_no_member(volume):
    await write(volume, 0, bytes(4096))
    await volume.begin_snapshot("monday")
    await write(volume, 1, bytes(4096))
    with pytest.raises(DataError, match="monday") as refused:
        await volume.begin_snapshot("monday")
    assert refused.value.reason == "SNAPSHOT_FAILED"
    assert "slot 2" in refused.value.message
    await flush(volume)
    assert all_active(volume)
    await volume.begin_snapshot("tuesday")


async def test_it_needs_three(daemons, volume):
    await daemons.stop(1)
    await until(lambda: volume.status().slots[1].state is not SlotState.ACTIVE)
    with pytest.raises(StateError, match="slot 1") as refused:
        await volume.begin_snapshot("monday")
    assert refused.value.reason == "SNAPSHOT_NEEDS_THREE"
    await daemons.start(1)
    await until(lambda: all_active(volume))
    await volume.begin_snapshot("monday")


@pytest.mark.parametrize("cipher", CIPHERS)
async def test_of_an_encrypted_volume_is_ciphertext_alike_on_all(tmp_path, tracing, cipher):
    daemons = DownstairsSet(tmp_path, GEOMETRY, 3, cipher=cipher)
    await daemons.start_all()
    key = Secret(base64.b64encode(bytes(range(32))).decode())
    spec = daemons.spec(uuid.uuid4(), key=key)
    volume = RegionUpstairs(spec, tracing=tracing)
    try:
        await volume.activate(timeout_seconds=10)
        data = random.Random(7).randbytes(64 * 4096)
        await write(volume, 0, data)
        await volume.begin_snapshot("monday")
        await write(volume, 0, bytes(64 * 4096))
        await at_rest(daemons, volume)
        first, *others = [kept(daemons, number, "monday") for number in range(3)]
        assert others == [first, first]
        assert first[0][: 64 * 4096] != data
    finally:
        await volume.close()
        await daemons.close()
