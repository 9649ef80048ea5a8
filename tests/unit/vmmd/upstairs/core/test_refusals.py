"""What becomes of slot and volume when a downstairs refuses a session, for each reason and each
situation in the table."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stairlib.model.cipher import AES_256_GCM, AES_256_GCM_SIV
from stairlib.model.errors import LimitError
from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events
from vmmd.upstairs.core.refusals import REFUSALS, Outcome, refusal
from vmmd.upstairs.core.slot_states import SlotMode
from vmmd.upstairs.core.upstairs_states import UpstairsState

CODES = [*REFUSALS, "OF_ANOTHER_RELEASE", ""]
ROOT = Path(__file__).parents[5]
PROMOTION = ("downstaird/core/promotion.py",)
OURS = ("vmmd/upstairs/core/session_check.py", "vmmd/upstairs/core/cipher_check.py")
# Of the daemon as a whole: its start, its sessions, the file that a promotion is kept in.
ABOUT_THE_DAEMON = {"STARTING", "LIMIT_REACHED", "NO_SPACE", "IO_ERROR"}


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


def reasons(*paths):
    text = "".join((ROOT / path).read_text() for path in paths)
    return set(re.findall(r'"([A-Z][A-Z_]+)"', text))


def test_every_reason_that_there_is_is_in_the_table():
    refused = reasons(*PROMOTION) - {"OUT_OF_RANGE"}
    found = reasons(*OURS) - {"GENERATION_TOO_HIGH"}
    assert refused | found | ABOUT_THE_DAEMON == set(REFUSALS)
    assert reasons("downstaird/daemon.py", "downstaird/store/base.py") >= (
        ABOUT_THE_DAEMON - {LimitError.reason}
    )


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


def read_only_world(cipher=""):
    world = World(1, cipher=cipher)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    world.submit([world.write(0, 4), world.flush()])
    assert world.run_until(lambda: not world.in_flight, 5)
    world.restart_read_only()
    return world


@pytest.mark.parametrize("code", CODES)
def test_nobody_serves_a_read_only_set(code):
    """All refuse: only a reason that will not pass disables it."""
    world = read_only_world()
    for address in world.targets:
        refuse(world, address, code)
    key = world.ask(events.Activate)
    told = world.run_until(lambda: key in world.answers, 5)
    if refusal(code).read_only is Outcome.DISABLE_IF_ALONE:
        assert world.answers[key].error.reason == code
        assert code in world.upstairs.status().reason
    else:
        assert not told
        assert all(code in s.last_error for s in world.upstairs.status().slots)
        for address in world.targets:
            accept(world, address)
        assert world.run_until(lambda: key in world.answers, 15)
        assert world.answers[key].error is None


@pytest.mark.parametrize("code", CODES)
def test_a_member_of_an_active_read_only_set(code):
    world = read_only_world()
    key = world.ask(events.Activate)
    assert world.run_until(world.healthy, 5), world.answers[key]
    refuse(world, "d1:1", code)
    world.break_links("d1:1")
    world.run_until(lambda: code and code in slot(world, 1).last_error, 2)
    assert world.upstairs.state is UpstairsState.ACTIVE
    retried = refusal(code).read_only is Outcome.RETRY
    assert slot(world, 1).mode is (SlotMode.OFFLINE if retried else SlotMode.FAULTED)
    accept(world, "d1:1")
    assert world.run_until(world.healthy, 30)


def stamps_of(info, **changed):
    return replace(info, stamps=replace(info.stamps, **changed))


LIES = {
    "REGION_MISMATCH": lambda i: replace(i, region_id="somebody else's"),
    "REGION_TWICE": lambda i: replace(i, region_id="region-0"),
    "flags": lambda i: stamps_of(i, flags=i.stamps.flags[:-1]),
    "flushes": lambda i: stamps_of(i, flushes=np.resize(i.stamps.flushes, 5000)),
    "generations": lambda i: stamps_of(i, generations=i.stamps.generations[:0]),
    "flush number": lambda i: stamps_of(i, flushes=np.full_like(i.stamps.flushes, 2**64 - 1)),
    "generation": lambda i: stamps_of(i, generations=np.full_like(i.stamps.flushes, 2**63)),
    "ENCRYPTION_MISMATCH": lambda i: replace(i, cipher=""),
    "CIPHER_UNKNOWN": lambda i: replace(i, cipher="rot13"),
    "CIPHER_MISMATCH": lambda i: replace(i, cipher=AES_256_GCM_SIV),
    "OWNER_MISMATCH": lambda i: replace(i, owner_id="somebody"),
}


def lie(world, address, change):
    honest = world.daemons[address].open_session

    def open_session(*arguments, **named):
        code, info = honest(*arguments, **named)
        return code, info and change(info)

    world.daemons[address].open_session = open_session


def code_of(name):
    return name if name in REFUSALS else "STAMPS_MALFORMED"


@pytest.mark.parametrize("name", sorted(set(LIES) - {"REGION_MISMATCH"}))
def test_a_daemon_that_brings_what_cannot_be_is_not_taken_in_by_an_activation(name):
    world = World(1, cipher=AES_256_GCM)
    lie(world, "d1:1", LIES[name])
    key = world.ask(events.Activate)
    assert not world.run_until(lambda: key in world.answers, 5)
    # Of two that differ, whoever comes last is told.
    told = [s.last_error for s in world.upstairs.status().slots if s.last_error]
    assert told
    assert all(text.startswith(f"{code_of(name)}: ") for text in told)
    accept(world, "d1:1")
    assert world.run_until(lambda: key in world.answers, 15)
    assert world.answers[key].error is None


@pytest.mark.parametrize("name", sorted(set(LIES) - {"REGION_TWICE"}))
def test_a_member_that_comes_back_as_something_else_is_repaired(name):
    """It is not sent what it missed, whatever it is now."""
    world = World(1, cipher=AES_256_GCM)
    world.ask(events.Activate)
    assert world.run_until(world.healthy, 5)
    lie(world, "d1:1", LIES[name])
    world.break_links("d1:1")
    world.submit([world.write(0, 3)])
    assert world.run_until(lambda: slot(world, 1).mode is SlotMode.FAULTED, 5)
    assert slot(world, 1).last_error.startswith(f"{code_of(name)}: ")
    accept(world, "d1:1")
    assert world.run_until(world.healthy, 30)
    assert slot(world, 1).repairs_completed == 1
    world.submit([world.read(0, 3)])
    assert world.run_until(lambda: not world.in_flight, 5)


def test_a_new_member_with_the_region_of_another_is_not_taken_in():
    world = active_world()
    lie(world, "d3:1", LIES["REGION_TWICE"])
    world.ask(lambda key: events.Replace(key, "d1:1", "d3:1"))
    assert world.run_until(lambda: "REGION_TWICE" in slot(world, 1).last_error, 5)
    accept(world, "d3:1")
    assert world.run_until(world.healthy, 30)
