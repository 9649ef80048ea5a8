"""For how long a machine's process looks for what comes next before it sleeps. Pure.

A processor that sleeps takes as long to wake up as a small request takes to be served, and in a
virtual machine longer. So for a moment after something has come it is better to look again at once,
as the halt polling of KVM and the I/O threads of QEMU do. That is only worth it while what is
waited for comes soon, nobody else wants the processor, and few requests are in flight: many keep
the process awake by themselves (docs/adr/0057).

Invariants: a window is at most WINDOW_SECONDS_MAX, and for most things less; one that was in vain
is halved, down to none; whoever wants the processor has it for a while that doubles each time.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

# Above what a read takes whose members have to wake up: below that, a window that was lost once
# would not be found again, since nothing comes as soon as it did with it (docs/adr/0057).
WINDOW_SECONDS_MAX: Final = 200e-6
# Of whatever else: longer, and a flush's members are kept from the processor they need.
OTHER_WINDOW_SECONDS_MAX: Final = 100e-6
# The first that is tried once something came soon enough.
WINDOW_SECONDS_MIN: Final = 12.5e-6
# With more requests in flight there is no need to wait for one of them.
DEPTH_MAX: Final = 4
# For so long nothing is looked for when somebody else wants the processor.
YIELD_SECONDS_MIN: Final = 0.1
YIELD_SECONDS_MAX: Final = 2.0


class Awaited(IntEnum):
    """What comes next, as far as it is known; each has a window of its own."""

    REQUEST = 0  # nothing is in flight: the guest's next one
    READ = 1  # a member's answer to reads, or a request beside them
    SYNC = 2  # a flush, or whatever else takes as long


class PollWindow:
    """Times are seconds of one clock that does not go back."""

    def __init__(self, longest: float = WINDOW_SECONDS_MAX) -> None:
        self._longest = [min(longest, OTHER_WINDOW_SECONDS_MAX)] * len(Awaited)
        self._longest[Awaited.READ] = min(longest, WINDOW_SECONDS_MAX)
        self._windows = [0.0] * len(Awaited)
        self._awaited = Awaited.REQUEST
        self._last = 0.0
        self._deep = True
        self._yields_until = 0.0
        self._yields = YIELD_SECONDS_MIN

    def came(self, now: float, awaited: Awaited, in_flight: int) -> float:
        """Something has come, and now that is awaited: for how long to look for it; 0: not at
        all."""
        windows, before = self._windows, self._awaited
        if not self._deep:
            waited, longest = now - self._last, self._longest[before]
            if waited <= longest:
                if waited > windows[before]:
                    windows[before] = min(longest, max(WINDOW_SECONDS_MIN, 2 * waited))
            elif windows[before]:
                half = windows[before] / 2
                windows[before] = half if half >= WINDOW_SECONDS_MIN else 0.0
        self._last, self._awaited = now, awaited
        self._deep = in_flight > DEPTH_MAX
        if self._deep or now < self._yields_until:
            return 0.0
        return windows[awaited]

    def contended(self, now: float) -> None:
        """Somebody else wanted the processor while this looked for something."""
        if now - self._yields_until > YIELD_SECONDS_MAX:
            self._yields = YIELD_SECONDS_MIN
        self._yields_until = now + self._yields
        self._yields = min(2 * self._yields, YIELD_SECONDS_MAX)
