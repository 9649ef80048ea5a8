"""The control plane's metrics: what it drives, how far that is, what it waits for.

Each is declared in `METRICS`, of which docs/metrics.md is made. What is counted is counted where a
step is stored; what is a state is read from the drivers when somebody asks. Label values are closed
sets: a reason is one of `BLOCKED_REASONS`, never a text. Counts begin anew with the process.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from opentelemetry.metrics import CallbackOptions, Observation

from controlplane.core.blocked_reasons import REASONS, reason_of
from controlplane.core.replacement import Replacement, State
from controlplane.core.scrub import Scrub
from controlplane.core.scrub import State as ScrubState
from stairlib.telemetry.metrics import Metric, Metrics

REPLACEMENTS = Metric(
    "stairwell.replacements",
    "gauge",
    "{replacement}",
    "Replacements that this control plane drives, by state; each state is there, with 0 if need be",
    ("state",),
)
ENDED = Metric(
    "stairwell.replacement.ended",
    "counter",
    "{replacement}",
    "Replacements that have ended, by the state they ended in",
    ("state",),
)
BLOCKED = Metric(
    "stairwell.replacement.blocked",
    "gauge",
    "{replacement}",
    "Replacements that wait for something, by what they wait for",
    ("reason",),
)
COPIED = Metric(
    "stairwell.replacement.copied",
    "counter",
    "By",
    "Bytes that repairs have copied to new members",
)
RATE = Metric(
    "stairwell.replacement.rate",
    "gauge",
    "By/s",
    "The rate of all running repairs together, smoothed over some seconds",
)
OLDEST = Metric(
    "stairwell.replacement.oldest.age",
    "gauge",
    "s",
    "The time since the oldest running replacement was asked for; 0 when none runs",
)
STEP = Metric(
    "stairwell.replacement.step.duration",
    "histogram",
    "s",
    "How long one attempt at a step took, by its outcome: ok, failed, blocked or cut",
    ("step", "outcome"),
)
FAILURES = Metric(
    "stairwell.replacement.step.failures",
    "counter",
    "{attempt}",
    "Attempts that failed and are made again, by step",
    ("step",),
)
SCRUBS = Metric(
    "stairwell.scrubs", "gauge", "{scrub}", "Scrubs that this control plane drives, by state",
    ("state",),
)  # fmt: skip
WATCHERS = Metric(
    "stairwell.watchers",
    "gauge",
    "{watcher}",
    "Streams of news that clients hold open, by what they watch",
    ("subject",),
)
METRICS: Final = (
    REPLACEMENTS, ENDED, BLOCKED, COPIED, RATE, OLDEST, STEP, FAILURES, SCRUBS, WATCHERS,
)  # fmt: skip

_STEP_BUCKETS: Final = (0.01, 0.05, 0.25, 1.0, 5.0, 30.0, 120.0, 600.0, 3_600.0, 21_600.0, 86_400.0)
_RUNNING: Final = tuple(state for state in State if not state.ended)
_SCRUBBING: Final = tuple(state for state in ScrubState if not state.ended)


class WorkflowMetrics:
    """The instruments, and what they read when asked, by whatever thread."""

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = time.time) -> None:
        self._replacements: Callable[[], Iterable[Replacement]] = tuple
        self._scrubs: Callable[[], Iterable[Scrub]] = tuple
        self._watchers: Callable[[], dict[str, int]] = dict
        self._clock = clock
        meter = metrics.meter
        for metric, read in (
            (REPLACEMENTS, self._by_state),
            (BLOCKED, self._blocked),
            (RATE, self._rate),
            (OLDEST, self._oldest),
            (SCRUBS, self._scrubs_by_state),
            (WATCHERS, self._open_streams),
        ):
            metrics.observe(metric, read)
        self._ended, self._copied, self._failures = (
            meter.create_counter(metric.name, unit=metric.unit, description=metric.description)
            for metric in (ENDED, COPIED, FAILURES)
        )
        self._step = metrics.histogram(STEP, _STEP_BUCKETS)
        # A series that begins with its first failure has not grown by it: all are there from the
        # start.
        for state in State:
            if state.ended:
                self._ended.add(0, {"state": state.value})
            else:
                self._failures.add(0, {"step": state.value})
        self._copied.add(0)

    def reads(
        self,
        *,
        replacements: Callable[[], Iterable[Replacement]],
        scrubs: Callable[[], Iterable[Scrub]],
        watchers: Callable[[], dict[str, int]],
    ) -> None:
        """Where to read from: what is driven now, and the open streams by subject."""
        self._replacements, self._scrubs, self._watchers = replacements, scrubs, watchers

    def advanced(self, before: Replacement, after: Replacement) -> None:
        """A step of a replacement was stored."""
        copied = after.progress.bytes_copied - before.progress.bytes_copied
        if copied > 0:
            self._copied.add(copied)
        if after.attempt > before.attempt:
            self._failures.add(1, {"step": before.state.value})
        if after.state.ended and not before.state.ended:
            self._ended.add(1, {"state": after.state.value})

    def step_took(self, state: State, outcome: str, seconds: float) -> None:
        """One attempt at a step is over."""
        self._step.record(seconds, {"step": state.value, "outcome": outcome})

    # ---- read by whoever asks

    def _by_state(self, _options: CallbackOptions) -> Iterable[Observation]:
        counts = Counter(record.state for record in self._replacements())
        return [Observation(counts[state], {"state": state.value}) for state in _RUNNING]

    def _blocked(self, _options: CallbackOptions) -> Iterable[Observation]:
        texts = [record.blocked_on for record in self._replacements() if record.blocked_on]
        counts = Counter(map(reason_of, texts))
        return [Observation(counts[reason], {"reason": reason}) for reason in REASONS]

    def _rate(self, _options: CallbackOptions) -> Iterable[Observation]:
        records = self._replacements()
        return [Observation(sum(record.progress.bytes_per_second for record in records))]

    def _oldest(self, _options: CallbackOptions) -> Iterable[Observation]:
        begun = [record.created_at for record in self._replacements()]
        return [Observation(max(0.0, self._clock() - min(begun)) if begun else 0.0)]

    def _scrubs_by_state(self, _options: CallbackOptions) -> Iterable[Observation]:
        counts = Counter(record.state for record in self._scrubs())
        return [Observation(counts[state], {"state": state.value}) for state in _SCRUBBING]

    def _open_streams(self, _options: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(count, {"subject": subject})
            for subject, count in sorted(self._watchers().items())
        ]
