"""The loop stays awake for a moment after something has come, and lets others have the
processor."""

import asyncio
from time import monotonic

import pytest

from vmmd.block import busy_poll
from vmmd.block.busy_poll import VARIABLE, BusyPoll, longest_seconds
from vmmd.core.poll_window import WINDOW_SECONDS_MAX, Awaited


@pytest.fixture(autouse=True)
def _asked_anew():
    longest_seconds.cache_clear()
    yield
    longest_seconds.cache_clear()


class Looks:
    """How often it was looked, each time 10 us after the time before."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        self.count = 0
        monkeypatch.setattr(busy_poll, "monotonic", self._clock)
        monkeypatch.setattr(busy_poll.os, "sched_yield", lambda: None)

    def _clock(self):
        self.now += 10e-6
        self.count += 1
        return self.now


async def turn(times):
    for _ in range(times):
        await asyncio.sleep(0)


async def test_the_loop_looks_again_until_the_window_ends(monkeypatch):
    looks, poll = Looks(monkeypatch), BusyPoll(WINDOW_SECONDS_MAX)
    poll.came(looks.now - 22e-6, Awaited.REQUEST, 1)
    poll.came(looks.now, Awaited.REQUEST, 1)
    # Once more while it looks already: there is one that looks, not two.
    poll.came(looks.now, Awaited.REQUEST, 1)
    await turn(3)
    assert looks.count in (2, 3)
    await turn(20)
    # The window is 44 us.
    assert looks.count == 5
    # What comes now is a little too late for that: the window is 100 us from here on.
    poll.came(looks.now, Awaited.REQUEST, 1)
    await turn(20)
    assert looks.count == 15


async def test_where_it_is_off_nothing_is_done(monkeypatch):
    looks = Looks(monkeypatch)
    poll = BusyPoll(0.0, waited=lambda: pytest.fail("asked"))
    poll.came(looks.now - 22e-6, Awaited.REQUEST, 1)
    poll.came(looks.now, Awaited.REQUEST, 1)
    await turn(5)
    assert looks.count == 0


async def test_somebody_else_who_waits_for_the_processor_gets_it(monkeypatch):
    """The thread has waited for a processor for half of the time: it stops, and does not begin
    again at once."""
    monkeypatch.setattr(busy_poll, "LOOKS_JUDGED", 1)
    monkeypatch.setattr(busy_poll, "JUDGED_SECONDS", 0.0005)
    began = monotonic()
    poll = BusyPoll(WINDOW_SECONDS_MAX, waited=lambda: (monotonic() - began) / 2)
    stopped = asyncio.Event()
    monkeypatch.setattr(poll._window, "contended", lambda _now: stopped.set())
    while not stopped.is_set():
        poll.came(monotonic(), Awaited.REQUEST, 1)
        await asyncio.sleep(0)
        assert monotonic() - began < 30, "nobody was given the processor"


async def test_who_has_it_alone_goes_on(monkeypatch):
    monkeypatch.setattr(busy_poll, "LOOKS_JUDGED", 1)
    monkeypatch.setattr(busy_poll, "JUDGED_SECONDS", 0.0005)
    asked = []
    poll = BusyPoll(WINDOW_SECONDS_MAX, waited=lambda: asked.append(1) or 7.0)
    monkeypatch.setattr(poll._window, "contended", lambda _now: pytest.fail("gave way"))
    began = monotonic()
    while len(asked) < 10:
        poll.came(monotonic(), Awaited.REQUEST, 1)
        await asyncio.sleep(0)
        assert monotonic() - began < 30, "nobody asked"


def test_the_kernel_tells_how_long_a_thread_has_waited():
    first = busy_poll.waited_seconds()
    assert 0 <= first <= busy_poll.waited_seconds()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", WINDOW_SECONDS_MAX),
        ("0", 0.0),
        ("25", 25e-6),
        ("soon", WINDOW_SECONDS_MAX),
        ("1000000", WINDOW_SECONDS_MAX),
        ("-1", WINDOW_SECONDS_MAX),
    ],
)
def test_the_environment_says_how_long_at_most(monkeypatch, text, seconds):
    monkeypatch.setattr(busy_poll.os, "sched_getaffinity", lambda _pid: {0, 1})
    monkeypatch.setenv(VARIABLE, text)
    assert longest_seconds() == pytest.approx(seconds)


def test_one_processor_alone_is_not_kept_from_others(monkeypatch):
    monkeypatch.setattr(busy_poll.os, "sched_getaffinity", lambda _pid: {0})
    monkeypatch.setenv(VARIABLE, "100")
    assert longest_seconds() == 0


def test_it_is_off_where_the_kernel_does_not_tell(monkeypatch):
    def refuse():
        raise FileNotFoundError

    monkeypatch.setattr(busy_poll, "waited_seconds", refuse)
    assert longest_seconds() == 0
