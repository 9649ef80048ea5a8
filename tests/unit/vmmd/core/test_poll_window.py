"""For how long it is looked for what comes next: only where that came soon before, and nobody else
wants the processor."""

import pytest

from vmmd.core.poll_window import (
    DEPTH_MAX,
    OTHER_WINDOW_SECONDS_MAX,
    WINDOW_SECONDS_MAX,
    WINDOW_SECONDS_MIN,
    YIELD_SECONDS_MAX,
    YIELD_SECONDS_MIN,
    Awaited,
    PollWindow,
)

SOON = 20e-6
WINDOW = pytest.approx(2 * SOON)
LATE = 3 * WINDOW_SECONDS_MAX


class Guest:
    """Things that come, one after the other; one at a time is in flight."""

    def __init__(self, window=None):
        self.window = window or PollWindow()
        self.now = 100.0
        self.in_flight = 1

    def came(self, waited, awaited=Awaited.REQUEST):
        self.now += waited
        return self.window.came(self.now, awaited, self.in_flight)


def test_nothing_is_looked_for_until_something_came_soon():
    guest = Guest()
    assert guest.came(1.0) == 0
    assert guest.came(LATE) == 0
    assert guest.came(SOON) == WINDOW
    # What came within the window says nothing against it.
    assert guest.came(SOON) == WINDOW
    assert guest.came(1.9 * SOON) == WINDOW


def test_the_window_grows_to_what_would_have_been_caught_and_no_further():
    guest = Guest()
    guest.came(1.0)
    assert guest.came(1e-6) == WINDOW_SECONDS_MIN
    assert guest.came(30e-6) == pytest.approx(60e-6)
    longest = OTHER_WINDOW_SECONDS_MAX
    assert guest.came(longest * 0.99) == longest


def test_the_answer_to_a_read_is_looked_for_longest():
    """Who has to wake up takes longer than who is awake: a window must reach over that."""
    guest = Guest()
    waited = 0.99 * WINDOW_SECONDS_MAX
    for awaited in Awaited:
        guest.came(1.0, awaited)
        window = guest.came(waited, awaited)
        assert window == (WINDOW_SECONDS_MAX if awaited is Awaited.READ else 0)
    assert waited > OTHER_WINDOW_SECONDS_MAX


def test_a_window_in_vain_is_halved_down_to_none():
    guest = Guest()
    guest.came(1.0)
    guest.came(LATE, Awaited.READ)
    seen = [guest.came(WINDOW_SECONDS_MAX * 0.99, Awaited.READ)]
    while seen[-1]:
        seen.append(guest.came(LATE, Awaited.READ))
    wanted = [WINDOW_SECONDS_MAX / 2**halved for halved in range(4)]
    assert seen[:4] == pytest.approx(wanted)
    assert 4 <= len(seen) <= 6
    # It is not tried anew while things come late, and is as soon as one does not.
    assert guest.came(LATE, Awaited.READ) == 0
    assert guest.came(SOON, Awaited.READ) == WINDOW


def test_what_is_waited_for_has_a_window_of_its_own():
    """A guest that syncs after each write: its requests come soon, the syncs' answers late."""
    guest = Guest()
    guest.came(1.0)
    for _ in range(4):
        assert guest.came(SOON, Awaited.SYNC) == 0
        assert guest.came(LATE, Awaited.REQUEST) in (0, WINDOW)
    assert guest.came(SOON, Awaited.READ) == 0
    assert guest.came(SOON, Awaited.REQUEST) == WINDOW


def test_many_in_flight_keep_the_process_awake_by_themselves():
    guest = Guest()
    guest.came(1.0)
    guest.came(SOON)
    guest.in_flight = DEPTH_MAX + 1
    assert guest.came(SOON) == 0
    # How long it took meanwhile is no sign of how long it takes with few.
    assert guest.came(LATE) == 0
    guest.in_flight = DEPTH_MAX
    assert guest.came(SOON) == WINDOW


def test_who_else_wants_the_processor_has_it_for_longer_each_time():
    guest = Guest()
    guest.came(1.0)
    assert guest.came(SOON)
    pauses = []
    for _ in range(8):
        guest.window.contended(guest.now)
        began = guest.now
        while not guest.came(SOON):
            pass
        pauses.append(guest.now - began)
    assert pauses[0] == pytest.approx(YIELD_SECONDS_MIN, abs=2 * SOON)
    assert pauses[1] == pytest.approx(2 * YIELD_SECONDS_MIN, abs=2 * SOON)
    assert pauses[-1] == pytest.approx(YIELD_SECONDS_MAX, abs=2 * SOON)
    # After a time without, it begins with the shortest again.
    guest.came(2 * YIELD_SECONDS_MAX)
    guest.window.contended(guest.now)
    began = guest.now
    while not guest.came(SOON):
        pass
    assert guest.now - began == pytest.approx(YIELD_SECONDS_MIN, abs=2 * SOON)


def test_the_longest_may_be_shorter():
    guest = Guest(PollWindow(25e-6))
    guest.came(1.0)
    assert guest.came(24e-6) == 25e-6
    assert guest.came(30e-6) == pytest.approx(12.5e-6)
