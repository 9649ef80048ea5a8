"""A downstairs' metrics: what its region takes and gives, how long flushes take, how whole it is.

Each is declared in `METRICS`, of which docs/metrics.md is made. Nothing is counted for them on the
way of a request: sessions keep totals of their own, which are added up when somebody asks; of a
flush and a step of a checkpoint the time is put into its bucket. Counts begin anew with the
process.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import numpy as np
from opentelemetry.metrics import CallbackOptions, Observation

from stairlib.telemetry.metrics import Metric, Metrics
from stairlib.telemetry.process_metrics import observe_process
from stairlib.wire.frame import FLAG_DIRTY, FLAG_FAULTED, FLAG_INCOMPLETE

if TYPE_CHECKING:
    from downstaird.region_host import RegionHost

SESSIONS = Metric(
    "stairwell.region.sessions", "gauge", "{session}", "Upstairs that are connected now"
)
EXTENTS = Metric(
    "stairwell.region.extents",
    "gauge",
    "{extent}",
    "Extents by what is to be said of them: total, dirty (written since the last flush), incomplete"
    " (under repair), faulted (damaged)",
    ("state",),
)
STORED = Metric(
    "stairwell.region.stored", "gauge", "By", "Bytes that the region takes on its file system"
)
BYTES = Metric(
    "stairwell.region.io",
    "counter",
    "By",
    "Bytes that sessions have read and written, without those of repairs",
    ("direction",),
)
FRAMES = Metric(
    "stairwell.region.frames", "counter", "{frame}", "Frames of requests that sessions have sent"
)
FAILED = Metric(
    "stairwell.region.failures",
    "counter",
    "{operation}",
    "Operations that were answered with an error",
)
COPIED = Metric(
    "stairwell.region.copied",
    "counter",
    "By",
    "Bytes that repairs have brought here from other members",
)
WORK = Metric(
    "stairwell.region.work.bucket",
    "counter",
    "{work}",
    "What wrote and synced and took at most `le` seconds: for histogram_quantile. By kind: flush, "
    "or a step of a checkpoint",
    ("kind", "outcome", "le"),
)
WORKED = Metric(
    "stairwell.region.work.sum",
    "counter",
    "s",
    "The time that all of these took, summed",
    ("kind", "outcome"),
)
METRICS: Final = (SESSIONS, EXTENTS, STORED, BYTES, FRAMES, FAILED, COPIED, WORK, WORKED)

# A loop that does not answer in this time is told of by its absence.
ASK_SECONDS: Final = 5.0
_WORK_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_WORK_BOUNDS: Final = (*(f"{bound:g}" for bound in _WORK_BUCKETS), "+Inf")
_WORK_KINDS: Final = ("flush", "checkpoint")
_OUTCOMES: Final = ("ok", "failed")
_STATES: Final = (("dirty", FLAG_DIRTY), ("incomplete", FLAG_INCOMPLETE), ("faulted", FLAG_FAULTED))


@dataclass(slots=True)
class _Worked:
    """How often the work of a kind took how long. OpenTelemetry's histogram takes each time by
    itself, and a tenth of what else a small flush costs (docs/adr/0044)."""

    counts: list[int] = field(default_factory=lambda: [0] * len(_WORK_BOUNDS))
    seconds: float = 0.0


class RegionMetrics:
    """The instruments of one region in service. Whoever reads them has a thread of its own; the
    region is asked on its loop, so that what is told is of one moment. End the metrics before the
    region, and not on the loop."""

    def __init__(self, metrics: Metrics, host: RegionHost) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._block_size = host.engine.definition.geometry.block_size
        self._worked = {(kind, outcome): _Worked() for kind in _WORK_KINDS for outcome in _OUTCOMES}
        host.lane.took = self._took
        for metric, read in (
            (SESSIONS, lambda: [Observation(host.session_count)]),
            (EXTENTS, self._extents),
            (STORED, lambda: [Observation(host.engine.stored_bytes())]),
            (BYTES, self._bytes),
            (FRAMES, lambda: [Observation(host.totals().frames)]),
            (FAILED, lambda: [Observation(host.totals().failed)]),
            (COPIED, lambda: [Observation(host.totals().copied_bytes)]),
            (WORK, self._work),
            (WORKED, self._work_seconds),
        ):
            metrics.observe(metric, partial(self._asked, read))
        observe_process(metrics)

    def _took(self, kind: str, seconds: float, *, failed: bool) -> None:
        worked = self._worked[kind, "failed" if failed else "ok"]
        worked.counts[bisect_left(_WORK_BUCKETS, seconds)] += 1
        worked.seconds += seconds

    def _work(self) -> list[Observation]:
        """As a histogram's buckets are: each has those of the smaller ones, too."""
        return [
            Observation(count, {"kind": kind, "outcome": outcome, "le": bound})
            for (kind, outcome), worked in self._worked.items()
            for bound, count in zip(_WORK_BOUNDS, accumulate(worked.counts), strict=True)
        ]

    def _work_seconds(self) -> list[Observation]:
        return [
            Observation(worked.seconds, {"kind": kind, "outcome": outcome})
            for (kind, outcome), worked in self._worked.items()
        ]

    def _asked(
        self, read: Callable[[], list[Observation]], _options: CallbackOptions
    ) -> list[Observation]:
        async def asked() -> list[Observation]:
            return read()

        return asyncio.run_coroutine_threadsafe(asked(), self._loop).result(ASK_SECONDS)

    def _extents(self) -> list[Observation]:
        flags = self._host.engine.extent_states().flags
        found = [Observation(len(flags), {"state": "total"})]
        for name, flag in _STATES:
            found.append(Observation(int(np.count_nonzero(flags & flag)), {"state": name}))
        return found

    def _bytes(self) -> list[Observation]:
        totals = self._host.totals()
        return [
            Observation(totals.read_blocks * self._block_size, {"direction": "read"}),
            Observation(totals.written_blocks * self._block_size, {"direction": "write"}),
        ]
