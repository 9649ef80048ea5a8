"""What a region's options do beyond targets: a lossy volume, the time of the automatic flush, and
a control address."""

from __future__ import annotations

import asyncio
import random
import uuid

import pytest

from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from tests.contract.downstairs_set import DownstairsSet
from tests.contract.guest_calls import flush, read, write
from vmmd.upstairs.shell.runner import RegionUpstairs

GEOMETRY = Geometry(4096, 64, 8)
BLOCK = 4096
LOOK_SECONDS = 0.005


@pytest.fixture
async def volumes(tmp_path):
    """`await volumes(**options)` makes an active volume on three daemons of its own."""
    made: list[tuple[RegionUpstairs, DownstairsSet]] = []
    tracing = Tracing("machine", "test")

    async def make(**options):
        daemons = DownstairsSet(tmp_path / f"set-{len(made)}", GEOMETRY, 3)
        await daemons.start_all()
        upstairs = RegionUpstairs(daemons.spec(uuid.uuid4(), **options), tracing=tracing)
        made.append((upstairs, daemons))
        await upstairs.activate(timeout_seconds=10)
        return upstairs, daemons

    yield make
    for upstairs, daemons in made:
        await upstairs.close()
        await daemons.close()
    tracing.shutdown()


async def test_a_lossy_volume_keeps_its_data_right_under_load(volumes):
    upstairs, _ = await volumes(lossy=True)

    async def worker(number: int) -> int:
        """Owns every eighth block; each read must show its last write."""
        rng = random.Random(number)
        blocks: dict[int, bytes] = {}
        checked = 0
        for turn in range(40):
            at = 8 * rng.randrange(GEOMETRY.block_count // 8) + number
            if at in blocks and rng.random() < 0.5:
                assert await read(upstairs, at, 1) == blocks[at]
                checked += 1
            else:
                blocks[at] = rng.randbytes(BLOCK)
                await write(upstairs, at, blocks[at])
            if turn % 20 == number:
                await flush(upstairs)
        for at, data in blocks.items():
            assert await read(upstairs, at, 1) == data
        return checked

    assert all(await asyncio.gather(*(worker(number) for number in range(8))))
    await flush(upstairs)
    result = await upstairs.verify(read_data=True)
    assert result.equal
    assert result.members_compared == 3


async def test_lossy_reaches_the_sessions_of_that_volume_alone(volumes):
    for lossy in (True, False):
        _, daemons = await volumes(lossy=lossy)
        for daemon in daemons.daemons:
            [grant] = daemon.host._table.grants()
            assert grant.lossy is lossy


async def flushed(daemons: DownstairsSet) -> float:
    """When two of the three hold a flush, on the loop's clock."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(60):
        while True:
            done = [
                bool(daemon.host.engine.extent_states().flushes.any()) for daemon in daemons.daemons
            ]
            if sum(done) >= 2:
                return loop.time()
            await asyncio.sleep(LOOK_SECONDS)


async def test_the_automatic_flush_comes_when_the_request_says(volumes):
    """Null means half a second; the times of three volumes written to at once are in order."""
    wanted = {0.1: 0.1, None: 0.5, 2.0: 2.0}
    made = [await volumes(flush_timeout=timeout) for timeout in wanted]
    loop = asyncio.get_running_loop()
    began = loop.time()
    for upstairs, _ in made:
        await write(upstairs, 5, random.Random(1).randbytes(BLOCK))
    times = await asyncio.gather(*(flushed(daemons) for _, daemons in made))
    for at, seconds in zip(times, wanted.values(), strict=True):
        assert at - began >= seconds
    assert list(times) == sorted(times)


async def test_a_control_address_is_taken_and_not_served(volumes, refusing_port):
    upstairs, _ = await volumes(control=f"127.0.0.1:{refusing_port}")
    await write(upstairs, 5, bytes(BLOCK))
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", refusing_port)
