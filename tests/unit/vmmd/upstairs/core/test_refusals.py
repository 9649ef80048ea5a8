"""What becomes of slot and volume when a downstairs refuses a session, for each reason and each
situation in the table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events
from vmmd.upstairs.core.refusals import REFUSALS, Outcome, refusal
from vmmd.upstairs.core.states import SlotMode, UpstairsState

CODES = [*REFUSALS, "OF_ANOTHER_RELEASE", ""]
DAEMON = Path(__file__).parents[5] / "downstaird" / "core" / "promotion.py"


def refuse(world, address, code):
    world.daemons[address].open_session = lambda *_, **__: (code, None)


def accept(world, address):
    del world.daemons[address].open_session


def active_world():
    world = World(1)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    return world


def slot(world, number):
    return world.upstairs.status().slots[number]


def test_every_reason_that_a_daemon_gives_is_in_the_table():
    given = set(re.findall(r'"([A-Z][A-Z_]+)"', DAEMON.read_text())) - {"OUT_OF_RANGE"}
    assert given == set(REFUSALS)


@pytest.mark.parametrize("code", CODES)
def test_while_activating(code):
    world = World(1)
    refuse(world, "d1:1", code)
    key = world.ask(events.Activate)
    told = world.run_until(lambda: key in world.answers, 15)
    if refusal(code).activating is Outcome.DISABLE:
        assert world.answers[key].error.reason == code
        assert world.answers[key].error.metadata["target"] == "d1:1"
        assert world.upstairs.state is UpstairsState.DISABLED
        assert code in world.upstairs.status().reason
        key = world.ask(events.Activate)
    else:
        assert not told
        assert "refused" in slot(world, 1).last_error
        assert code in slot(world, 1).last_error
    accept(world, "d1:1")
    assert world.run_until(lambda: key in world.answers, 15)
    assert world.answers[key].error is None


@pytest.mark.parametrize("code", CODES)
def test_a_member_that_is_held(code):
    world = active_world()
    refuse(world, "d1:1", code)
    world.break_links("d1:1")
    world.run_until(lambda: code and code in slot(world, 1).last_error, 2)
    outcome = refusal(code).offline
    if outcome is Outcome.DISABLE_IF_JOINED:
        assert world.upstairs.state is UpstairsState.DISABLED
        assert code in world.upstairs.status().reason
        assert "taken over" in world.upstairs.status().reason
        return
    assert world.upstairs.state is UpstairsState.ACTIVE
    mode = SlotMode.FAULTED if outcome is Outcome.FAULT else SlotMode.OFFLINE
    assert slot(world, 1).mode is mode
    accept(world, "d1:1")
    assert world.run_until(world.healthy, 30)
    assert slot(world, 1).repairs_completed == (1 if mode is SlotMode.FAULTED else 0)


@pytest.mark.parametrize("code", CODES)
def test_a_new_member(code):
    world = active_world()
    refuse(world, "d3:1", code)
    world.ask(lambda key: events.Replace(key, "d1:1", "d3:1"))
    world.run_until(lambda: code and code in slot(world, 1).last_error, 2)
    assert world.upstairs.state is UpstairsState.ACTIVE
    faults = refusal(code).serving is Outcome.FAULT
    assert slot(world, 1).mode is (SlotMode.FAULTED if faults else SlotMode.REPLACED)
    accept(world, "d3:1")
    assert world.run_until(world.healthy, 30)
