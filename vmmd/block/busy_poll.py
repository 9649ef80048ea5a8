"""Keeps the loop of a machine's process awake while something is about to come (PollWindow says for
how long): the loop then looks at all its sockets in turn, and sleeps for none of them.

STAIRWELL_BUSY_POLL_US in the environment is the longest time in microseconds, 200 by default; 0 is
never. It is never where there is one processor alone, or where the kernel does not say how long a
thread has waited for one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Final

from stairlib.runtime.environment import number_from
from vmmd.core.poll_window import WINDOW_SECONDS_MAX, Awaited, PollWindow

VARIABLE: Final = "STAIRWELL_BUSY_POLL_US"
# So often it is asked whether somebody else wants the processor, and after how many looks the time.
JUDGED_SECONDS: Final = 0.02
LOOKS_JUDGED: Final = 64
# The part of that time for which the thread had to wait for a processor. With the members and a
# client on two processors of their own it is a sixth at most, and half with two busy strangers.
WAITED_MAX: Final = 0.3


@cache
def longest_seconds() -> float:
    """What the environment and the machine allow."""
    try:
        waited_seconds()
    except OSError:
        return 0.0
    if len(os.sched_getaffinity(0)) < 2:
        return 0.0
    longest = WINDOW_SECONDS_MAX * 1e6
    return number_from(VARIABLE, longest, at_most=longest) / 1e6


def waited_seconds() -> float:
    """How long this thread has waited for a processor in all its life. OSError where it is not
    told."""
    text = Path("/proc/thread-self/schedstat").read_text()
    return int(text.split()[1]) / 1e9


class BusyPoll:
    """For one volume. Called on the loop."""

    def __init__(self, longest: float, waited: Callable[[], float] = waited_seconds) -> None:
        self._enabled = longest > 0
        self._window = PollWindow(longest)
        self._waited = waited
        self._until = 0.0
        self._looking = False
        self._looks = 0
        # When it was asked last, and what the answer was.
        self._judged = (0.0, 0.0)
        # Asking for the running one is a system call each time.
        self._loop: asyncio.AbstractEventLoop | None = None

    def came(self, now: float, awaited: Awaited, in_flight: int) -> None:
        """As `PollWindow.came`; `now` of `monotonic`."""
        if not self._enabled:
            return
        seconds = self._window.came(now, awaited, in_flight)
        if not seconds:
            return
        self._until = now + seconds
        if not self._looking:
            self._looking = True
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        assert self._loop is not None
        now = monotonic()
        self._looks += 1
        if self._looks >= LOOKS_JUDGED:
            self._looks = 0
            if now - self._judged[0] >= JUDGED_SECONDS and self._contended(now):
                self._window.contended(now)
                self._until = 0.0
        if now < self._until:
            # Whoever waits for this processor may be the one that is waited for.
            os.sched_yield()
            self._loop.call_soon(self._look)
        else:
            self._looking = False

    def _contended(self, now: float) -> bool:
        """Whether somebody else has wanted the processor since this was asked last."""
        (asked, before), after = self._judged, self._waited()
        self._judged = (now, after)
        # Longer ago, it says nothing about now.
        return now - asked <= 10 * JUDGED_SECONDS and after - before > WAITED_MAX * (now - asked)
