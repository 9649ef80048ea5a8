"""Sessions whose requests are held back at random by their own wish."""

from __future__ import annotations

import asyncio
import random
import uuid

import pytest

from downstaird.faults import LOSSY_SECONDS, Delays
from stairlib.wire.frame import OpKind

READS = 24


class NotedDelays(Delays):
    """The daemon's own delays, from a known seed, with what each session got."""

    def __init__(self, delays: Delays) -> None:
        super().__init__(delays._plan, random.Random(5))
        self.found: dict[bool, list[float]] = {False: [], True: []}

    def next(self, *, lossy: bool = False) -> float:
        self.found[lossy].append(super().next(lossy=lossy))
        return self.found[lossy][-1]


@pytest.fixture
async def noted(serve):
    """`await noted(...)` starts a daemon as `serve` does, with its delays noted."""

    async def start(*args, **more):
        daemon = await serve(*args, **more)
        daemon.daemon.host.delays = NotedDelays(daemon.daemon.host.delays)
        return daemon

    return start


async def test_a_lossy_session_is_held_back_and_the_one_after_it_is_not(noted, upstairs):
    daemon = await noted()
    loop = asyncio.get_running_loop()
    client = await daemon.session(upstairs, lossy=True)
    data = random.Random(1).randbytes(8 * client.block_size)
    await client.write(3, data)
    await client.flush(1)
    began = loop.time()
    for _ in range(READS):
        assert await client.read(3, 8) == data
    delays = daemon.daemon.host.delays.found[True]
    assert len(delays) == READS + 2
    held = sum(delays[2:])
    assert held >= 2 * LOSSY_SECONDS
    # What was held back was really late: frames of one session keep their order.
    assert loop.time() - began >= held
    await client.close()
    plain = await daemon.session(upstairs, 2)
    for _ in range(READS):
        assert await plain.read(3, 8) == data
    assert daemon.daemon.host.delays.found[False] == [0.0] * READS


async def test_two_sessions_at_once_have_each_their_own_way(noted, tmp_path):
    maker = await noted()
    await maker.daemon.stop()
    daemon = await noted(maker.place, read_only=True)
    lossy = await daemon.session(uuid.UUID(int=1), read_only=True, lossy=True)
    plain = await daemon.session(uuid.UUID(int=2), read_only=True)
    futures = []
    for _ in range(READS):
        futures += lossy.start_ops((OpKind.READ, {"offset": 0, "length": 1}))
    # While the other waits for its turn, this one is served at once.
    assert await plain.read(0, 1) == bytes(plain.block_size)
    assert not all(future.done() for future in futures)
    await asyncio.wait_for(asyncio.gather(*futures), 30)
    found = daemon.daemon.host.delays.found
    assert found[False] == [0.0]
    assert len(found[True]) == READS
    assert sum(found[True]) >= 2 * LOSSY_SECONDS
