"""Flushes, checkpoints and takeovers while the disk takes its time."""

import asyncio
import threading

import numpy as np
import pytest

from downstaird.core.layout import Tuning
from downstaird.store.memory import MemoryDisk
from stairlib.wire.frame import OpKind, OpStatus

BLOCK = 4096


def pattern(seed, count=1):
    return np.random.default_rng(seed).bytes(count * BLOCK)


class SlowDisk(MemoryDisk):
    """Syncs wait while `hold` is on; `waiting` is set when one does."""

    def __init__(self):
        super().__init__()
        self.go = threading.Event()
        self.go.set()
        self.waiting = threading.Event()
        self.fail_sync = self._wait

    def _wait(self, _name):
        if not self.go.is_set():
            self.waiting.set()
            assert self.go.wait(20)
        return False

    async def held(self):
        """Returns once a sync waits."""
        assert await asyncio.to_thread(self.waiting.wait, 20)


@pytest.fixture
def slow():
    disk = SlowDisk()
    yield disk
    disk.go.set()


async def test_io_goes_on_while_a_flush_waits_for_the_disk(serve, upstairs, slow):
    downstairs = await serve(slow)
    client = await downstairs.session(upstairs)
    await client.write(0, pattern(1))
    slow.go.clear()
    [flushing] = client.start_ops((OpKind.FLUSH, {"number": 1, "generation": 1}))
    await slow.held()
    await client.write(1, pattern(2))
    assert await client.read(0, 2) == pattern(1) + pattern(2)
    assert (await downstairs.get()).active_session_id
    assert not flushing.done()
    slow.go.set()
    assert (await asyncio.wait_for(flushing, 10)).status is OpStatus.OK
    assert (await client.states())[0].tolist() == [1, 1, 1]


async def test_what_comes_after_a_second_flush_waits_for_the_first(serve, upstairs, slow):
    downstairs = await serve(slow)
    client = await downstairs.session(upstairs)
    await client.write(0, pattern(1))
    slow.go.clear()
    first = client.start_ops((OpKind.FLUSH, {"number": 1, "generation": 1}))
    await slow.held()
    later = client.start_ops(
        (OpKind.FLUSH, {"number": 2, "generation": 1}),
        (OpKind.WRITE, {"offset": 0, "data": pattern(2)}),
        (OpKind.FLUSH, {"number": 3, "generation": 1}),
        (OpKind.READ, {"offset": 0, "length": 1}),
    )
    assert await client.read(5, 1) == bytes(BLOCK)
    assert not any(future.done() for future in [*first, *later])
    slow.go.set()
    answers = await asyncio.wait_for(asyncio.gather(*first, *later), 10)
    assert {answer.status for answer in answers} == {OpStatus.OK}
    assert answers[-1].data == pattern(2)
    assert (await client.states())[0].tolist() == [1, 3, 0]


async def test_a_session_that_begins_during_a_flush_waits_its_turn(serve, upstairs, slow):
    """The flush of a session that was lost still runs; its successor's comes after it."""
    downstairs = await serve(slow)
    old = await downstairs.session(upstairs, 1)
    granted = await downstairs.open(upstairs, 2)
    assert (await old.wait_ended()).startswith("NO_LONGER_ACTIVE")
    client = await (await downstairs.dial(granted)).hello(granted.token)
    await client.write(0, pattern(1))
    slow.go.clear()
    [lost] = client.start_ops((OpKind.FLUSH, {"number": 1, "generation": 2}))
    await slow.held()
    # The same session again: nothing is promoted, so nothing waits for the disk.
    session = downstairs.daemon.host.engine.ownership.session_id
    new = await downstairs.session(upstairs, 2, session)
    await client.wait_ended()
    assert lost.exception() is not None
    [flushing] = new.start_ops((OpKind.FLUSH, {"number": 2, "generation": 2}))
    assert await new.read(0, 1) == pattern(1)
    assert not flushing.done()
    slow.go.set()
    assert (await asyncio.wait_for(flushing, 10)).status is OpStatus.OK
    assert (await new.states())[0].tolist() == [2, 1, 0]


async def test_checkpoints_take_turns_with_flushes_and_lose_nothing(serve, upstairs, tmp_path):
    tuning = Tuning(log_bytes=64 << 10, step_blocks=16, large_bytes=64 << 10)
    place = tmp_path / "r"
    downstairs = await serve(place, tuning=tuning)
    engine = downstairs.daemon.host.engine
    checkpoints = 0
    begin = engine.begin_checkpoint

    def counted():
        nonlocal checkpoints
        checkpoints += 1
        return begin()

    engine.begin_checkpoint = counted
    client = await downstairs.session(upstairs)
    rng, model = np.random.default_rng(3), {}
    for turn in range(120):
        ops = []
        for _ in range(6):
            at = int(rng.integers(0, 2000))
            data = pattern(int(rng.integers(1 << 30)), int(rng.integers(1, 30)))
            ops.append((OpKind.WRITE, {"offset": at, "data": data}))
            for index in range(len(data) // BLOCK):
                model[at + index] = data[index * BLOCK : (index + 1) * BLOCK]
        answers = await client.do(*ops, (OpKind.FLUSH, {"number": turn + 1, "generation": 1}))
        assert {answer.status for answer in answers} == {OpStatus.OK}, answers
    assert checkpoints > 10
    for block in sorted(model)[::7]:
        assert await client.read(block, 1) == model[block]
    await downstairs.daemon.stop()
    again = await serve(place, tuning=tuning)
    client = await again.session(upstairs, 2)
    for block in sorted(model)[::5]:
        assert await client.read(block, 1) == model[block]
