"""One of three copies a little behind, with real daemons: what the guest flushed is on two of them
at once, on the third soon, with the same stamps, and nothing is lost over it."""

from __future__ import annotations

import asyncio
import itertools
import random
import uuid

import pytest

from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from tests.contract.downstairs_set import DownstairsSet, until
from tests.contract.guest_calls import all_active, flush, read, write
from vmmd.upstairs.core import limits
from vmmd.upstairs.shell import behind
from vmmd.upstairs.shell.runner import RegionUpstairs

GEOMETRY = Geometry(4096, 64, 8)
ROUNDS = limits.BEHIND_LEARNED_FLUSHES + 8 * limits.BEHIND_FLUSHES_MAX


@pytest.fixture
async def daemons(tmp_path):
    found = DownstairsSet(tmp_path, GEOMETRY, 3)
    await found.start_all()
    yield found
    await found.close()


@pytest.fixture
async def make(daemons):
    made, tracing, volume_id = [], Tracing("machine", "test"), uuid.uuid4()

    def build(generation):
        upstairs = RegionUpstairs(daemons.spec(volume_id, generation), tracing=tracing)
        made.append(upstairs)
        return upstairs

    yield build
    for upstairs in made:
        await upstairs.close()
    tracing.shutdown()


@pytest.fixture
def patient(monkeypatch):
    """However slow this machine is, it is not seen as a slow member."""
    monkeypatch.setattr(limits, "BEHIND_ANSWER_SECONDS", 10.0)


async def rounds(upstairs, count, seed=1):
    """Each a write and a flush that is waited for; what the blocks hold then."""
    rng, blocks = random.Random(seed), {}
    for _ in range(count):
        block = rng.randrange(GEOMETRY.block_count)
        blocks[block] = rng.randbytes(4096)
        await write(upstairs, block, blocks[block])
        await flush(upstairs)
    return blocks


def stamps(daemons):
    states = [daemon.host.engine.extent_states() for daemon in daemons.daemons]
    return [(s.generations.tolist(), s.flushes.tolist()) for s in states]


def records(daemons):
    """How many each has written to its log."""
    return sorted(daemon.host.engine.log.next_sequence for daemon in daemons.daemons)


async def test_the_third_makes_many_flushes_durable_with_few_syncs(make, daemons, patient):
    upstairs = make(1)
    await upstairs.activate(timeout_seconds=10)
    blocks = await rounds(upstairs, ROUNDS)
    await until(lambda: all(load.jobs == 0 for load in upstairs.loads()))
    few, *others = records(daemons)
    assert few < min(others) - ROUNDS // 4
    first, *rest = stamps(daemons)
    assert all(each == first for each in rest)
    result = await upstairs.verify(read_data=True)
    assert result.equal
    for block, data in blocks.items():
        assert await read(upstairs, block, 1) == data
    await upstairs.deactivate()


async def test_what_was_flushed_is_there_when_the_machine_goes_without_a_word(
    make, daemons, patient, monkeypatch
):
    monkeypatch.setattr(limits, "BEHIND_FLUSHES_MAX", 10_000)
    older = make(1)
    older._core._region.behind._longest = 100.0
    await older.activate(timeout_seconds=10)
    blocks = await rounds(older, limits.BEHIND_LEARNED_FLUSHES)
    async with asyncio.timeout(20):
        # It is who was last most often, once it is last again; and found with the next tick.
        for seed in itertools.count(2):
            if older._core._region.behind.member is not None:
                break
            blocks |= await rounds(older, 1, seed)
    blocks |= await rounds(older, 5, seed=1_000_000)
    # As a kill: nothing that is kept is sent any more.
    older._core._region.behind.drop()
    await older.close()
    newer = make(2)
    await newer.activate(timeout_seconds=10)
    await until(lambda: all_active(newer))
    for block, data in blocks.items():
        assert await read(newer, block, 1) == data
    assert (await newer.verify(read_data=True)).equal


async def test_the_environment_says_that_all_are_to_be_asked_at_once(make, daemons, monkeypatch):
    monkeypatch.setenv(behind.VARIABLE, "0")
    behind.behind_seconds.cache_clear()
    upstairs = make(1)
    behind.behind_seconds.cache_clear()
    await upstairs.activate(timeout_seconds=10)
    await rounds(upstairs, ROUNDS)
    await until(lambda: all(load.jobs == 0 for load in upstairs.loads()))
    assert len(set(records(daemons))) == 1
    await upstairs.deactivate()
