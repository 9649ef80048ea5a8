"""A volume with a damaged member, on real daemons: it starts, a live repair refills what is lost,
and the replicas are equal afterwards."""

from __future__ import annotations

import os
import random
import uuid
from pathlib import Path

import pytest

from downstaird.core.verification import Verification
from downstaird.regions import open_region, opened
from stairlib.model.errors import DataError
from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from stairlib.wire.frame import FLAG_FAULTED
from tests.contract.downstairs_set import DownstairsSet, until
from tests.contract.guest_calls import all_active, flush, read, write
from vmmd.upstairs.shell.runner import RegionUpstairs

GEOMETRY = Geometry(4096, 64, 8)
EXTENTS = GEOMETRY.extent_count


@pytest.fixture
async def daemons(tmp_path):
    found = DownstairsSet(tmp_path, GEOMETRY, 3)
    await found.start_all()
    yield found
    await found.close()


@pytest.fixture
def tracing():
    found = Tracing("machine", "test")
    yield found
    found.shutdown()


def damaged(path: Path, offset: int, data: bytes = b"\xde\xad\xbe\xef") -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def log_place(directory: Path, number: int) -> tuple[Path, int]:
    """The log file, and where the data of its record `number` (from 0) begins."""
    engine = open_region(directory)
    try:
        epoch = engine.overlay.logged[number]
        return directory / f"log-{epoch.log}", epoch.data_offset
    finally:
        engine.close()


def a_block_in_the_log(directory: Path) -> set[int]:
    path, place = log_place(directory, 1)
    damaged(path, place)
    # The second flush wrote to extent 1.
    return {1}


def a_record_in_the_log(directory: Path) -> set[int]:
    path, place = log_place(directory, 1)
    damaged(path, place - place % 4096 - (4096 if place % 4096 == 0 else 0))
    return set(range(EXTENTS))


def the_map(directory: Path) -> set[int]:
    damaged(directory / "state-0", 4096)
    # The log says of every chunk of 4 and 5 where it is.
    return set(range(EXTENTS)) - {4, 5}


def the_end_of_the_data(directory: Path) -> set[int]:
    os.truncate(directory / "data", 0)
    # One write was large enough to go straight there: all of extents 4 and 5.
    return {4, 5}


@pytest.mark.parametrize(
    "damage", [a_block_in_the_log, a_record_in_the_log, the_map, the_end_of_the_data]
)
async def test_a_damaged_member_is_refilled_in_place(daemons, tracing, damage, monkeypatch) -> None:
    # What is damaged has to be there: a stop in order takes it home.
    monkeypatch.setattr("downstaird.daemon.STOP_SETTLE_SECONDS", 0.0)
    chance = random.Random(5)
    volume = uuid.uuid4()
    expected = bytearray(GEOMETRY.total_bytes)

    async def put(upstairs: RegionUpstairs, block: int, count: int) -> None:
        data = chance.randbytes(count * 4096)
        expected[block * 4096 : (block + count) * 4096] = data
        await write(upstairs, block, data)
        await flush(upstairs)

    first = RegionUpstairs(daemons.spec(volume, 1), tracing=tracing)
    try:
        await first.activate(timeout_seconds=10)
        await put(first, 5, 2)
        await put(first, 70, 3)
        await put(first, 4 * 64, 128)
        await put(first, 450, 1)
    finally:
        await first.deactivate()
        await first.close()
    await daemons.stop(1)
    directory = daemons.directories[1]
    lost = damage(directory)
    with opened(directory) as engine:
        flags = engine.extent_states().flags
        assert {at for at in range(EXTENTS) if flags[at] & FLAG_FAULTED} == lost
        for extent in lost:
            with pytest.raises(DataError, match=str(directory)):
                engine.read(extent * 64, 1)
    await daemons.start(1)
    second = RegionUpstairs(daemons.spec(volume, 2), tracing=tracing)
    try:
        await second.activate(timeout_seconds=20)
        await until(lambda: all_active(second))
        assert await read(second, 0, GEOMETRY.block_count) == bytes(expected)
        await put(second, 71, 1)
        result = await second.verify(read_data=True)
        assert result.equal
        assert result.members_compared == 3
    finally:
        await second.deactivate()
        await second.close()
    await daemons.stop(1)
    with opened(directory) as engine:
        assert not engine.extent_states().flags.any()
        check = Verification(engine)
        for _ in check.steps():
            pass
        assert (check.blocks_bad, check.extents_done) == (0, EXTENTS)
        _, buffers = engine.read(0, GEOMETRY.block_count)
        assert b"".join(map(bytes, buffers)) == bytes(expected)
