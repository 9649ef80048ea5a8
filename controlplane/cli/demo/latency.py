"""Percentiles of a run from the percentiles of its intervals. Pure.

A report says p50, p99 and the longest of the commands since the last one. Percentiles cannot be
averaged, but each report bounds its interval's distribution: half the commands are below p50, one
in a hundred is above p99, none is above the longest. Between these points the share is taken as
linear, the intervals are added up by their number of commands, and the merged distribution is
solved for the wanted share.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from stairwell.vmmd.v1.guest_service_pb2 import WorkloadReport

# Halving an interval this often leaves less than a nanosecond of anything a guest can wait for.
_BISECTIONS = 60


def merged_percentile(reports: Sequence[WorkloadReport], share: float = 0.99) -> float:
    """Milliseconds that `share` of all commands stayed below; 0 when no command was reported."""
    assert 0 < share < 1
    counted = [report for report in reports if report.interval_ios]
    total = sum(report.interval_ios for report in counted)
    if not total:
        return 0.0
    low, high = 0.0, max(_longest(report) for report in counted)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        below = sum(report.interval_ios * share_below(report, middle) for report in counted)
        if below < share * total:
            low = middle
        else:
            high = middle
    return high


def _longest(report: WorkloadReport) -> float:
    return max(report.max_milliseconds, report.p99_milliseconds, report.p50_milliseconds)


def share_below(report: WorkloadReport, milliseconds: float) -> float:
    """Which share of one interval's commands took at most that long, by linear interpolation."""
    points = [
        (0.0, 0.0),
        (report.p50_milliseconds, 0.5),
        (max(report.p99_milliseconds, report.p50_milliseconds), 0.99),
        (_longest(report), 1.0),
    ]
    for (left, below), (right, above) in itertools.pairwise(points):
        if milliseconds < right:
            return below + (above - below) * (milliseconds - left) / (right - left)
    return 1.0
