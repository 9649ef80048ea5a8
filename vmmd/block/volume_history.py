"""The history of one volume: what its counters, its meter and its repairs tell at each tick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from time import time

from vmmd.core.guest_history import GuestHistory, Sample, Tick
from vmmd.core.guest_meter import GuestMeter
from vmmd.core.request_figures import VolumeCounters


class VolumeHistory:
    """`counters` and `meter` are the volume's own; `clock` gives seconds since the Unix epoch."""

    def __init__(
        self, counters: VolumeCounters, meter: GuestMeter, clock: Callable[[], float] = time
    ) -> None:
        self._counters = counters
        self._meter = meter
        self._clock = clock
        self._seen = asdict(counters)
        self._history = GuestHistory()

    def tick(self, seconds: float, *, moved: int, members: int, rate: int) -> None:
        """So many seconds have passed; repairs moved so many bytes, fill so many members, and may
        move `rate` bytes a second now (0 is no bound)."""
        now, before = asdict(self._counters), self._seen
        self._seen = now
        latencies, longest = self._meter.take_latencies()
        grown = {name: now[name] - before[name] for name in now if name != "failed"}
        self._history.tick(
            self._clock(),
            Tick(
                seconds=seconds,
                **grown,
                latencies=latencies,
                longest=longest,
                repair_bytes=moved,
                members_filled=members,
                rate_max=rate,
            ),
        )

    def after(self, moment: float) -> list[Sample]:
        """The samples that end after a moment of the clock, oldest first."""
        return self._history.after(moment)
