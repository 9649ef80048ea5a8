"""The worker lane: one work at a time, checkpoints between flushes."""

import asyncio

import pytest

from downstaird.lane import PATIENCE_FLUSHES, Lane
from stairlib.model.errors import DataError


class Demand:
    """A session that wants the lane, or not."""

    def __init__(self):
        self.waits = False
        self.reserves = False
        self.heard = []

    def wanted(self):
        return self.waits

    def reserved(self):
        return self.reserves

    def changed(self, *, free):
        self.heard.append(free)


@pytest.fixture
def demand():
    return Demand()


@pytest.fixture
async def lane(engine, demand):
    made = Lane(engine, demand)
    yield made
    await made.close()


async def finished(lane):
    while not lane.free:
        await lane.wait_free()


class Broken:
    """Work that fails in a way nobody foresaw."""

    def begin(self, _appender):
        return False

    def run(self):
        raise ZeroDivisionError("no")


async def test_an_outcome_reaches_the_engine_before_anybody_else(lane, engine, demand):
    engine.write(0, engine.contexts(0, 1), bytes(512))
    told = []
    lane.run(engine.begin_flush(4, 2), lambda error: told.append((error, int(engine.flushes[0]))))
    assert not lane.free
    await finished(lane)
    assert told == [(None, 4)]
    assert demand.heard == [True]


async def test_an_error_nobody_foresaw_is_an_io_error(lane, engine):
    told = []
    engine.finish_flush = lambda _work, error: told.append(type(error))
    lane.run(Broken(), lambda error: told.append(error.reason))
    await finished(lane)
    assert told == [DataError, "IO_ERROR"]


async def test_a_checkpoint_follows_a_flush_when_nobody_waits(lane, engine, demand):
    engine.checkpoint_wanted = True
    lane.run(engine.begin_flush(1, 1), lambda _error: None)
    await finished(lane)
    assert [call[0] for call in engine.calls] == [
        "begin_flush",
        "begin_checkpoint",
        "finish_checkpoint",
    ]
    assert demand.heard == [False, True]


async def test_waiting_flushes_go_first_for_a_while_only(lane, engine, demand):
    engine.checkpoint_wanted = True
    demand.waits = True
    flushes = 0

    def changed(*, free):
        nonlocal flushes
        if free and flushes < 10:
            flushes += 1
            lane.run(engine.begin_flush(flushes, 1), lambda _error: None)

    demand.changed = changed
    changed(free=True)
    await finished(lane)
    calls = [call[0] for call in engine.calls]
    assert calls.index("begin_checkpoint") == PATIENCE_FLUSHES + 1


async def test_a_lane_that_is_reserved_is_left_free(lane, engine, demand):
    engine.checkpoint_wanted = True
    demand.reserves = True
    lane.checkpoint_if_wanted()
    assert lane.free
    demand.reserves = False
    lane.checkpoint_if_wanted()
    assert not lane.free


async def test_closing_waits_for_what_runs_and_begins_nothing(engine, demand):
    lane = Lane(engine, demand)
    told = asyncio.Event()
    engine.checkpoint_wanted = True
    lane.run(engine.begin_flush(1, 1), lambda _error: told.set())
    await lane.close()
    assert told.is_set()
    assert ("begin_checkpoint",) not in engine.calls


async def test_before_a_stop_what_is_flushed_goes_home(lane, engine):
    engine.steps_to_home = 3
    await lane.settle(10)
    assert lane.free
    assert engine.calls == [("begin_checkpoint",), ("finish_checkpoint",)] * 3


async def test_a_stop_does_not_wait_for_it_for_ever(lane, engine):
    engine.steps_to_home = 1000000000
    await asyncio.wait_for(lane.settle(0.05), 10)
    assert engine.steps_to_home > 0


async def test_a_stop_goes_on_when_it_cannot_begin(lane, engine):
    engine.steps_to_home = 3

    def refuse():
        raise DataError("no space left", reason="NO_SPACE")

    engine.begin_checkpoint = refuse
    await asyncio.wait_for(lane.settle(60), 10)
    assert lane.free
