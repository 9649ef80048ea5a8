"""Percentiles merged from intervals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cli.demo.latency import merged_percentile, share_below
from stairwell.vmmd.v1.guest_service_pb2 import WorkloadReport


def report(ios, p50, p99, longest) -> WorkloadReport:
    return WorkloadReport(
        interval_ios=ios, p50_milliseconds=p50, p99_milliseconds=p99, max_milliseconds=longest
    )


def test_one_interval_gives_its_own_percentiles():
    one = [report(1000, 1, 8, 20)]
    assert merged_percentile(one) == pytest.approx(8)
    assert merged_percentile(one, 0.5) == pytest.approx(1)


def test_nothing_reported_is_nothing():
    assert merged_percentile([]) == 0
    assert merged_percentile([report(0, 0, 0, 0)]) == 0


def test_a_short_stall_does_not_count_like_a_long_one():
    calm, stalled = report(100_000, 1, 2, 3), report(10, 500, 900, 1000)
    assert merged_percentile([calm, stalled]) < 3
    assert merged_percentile([calm, report(10_000, 500, 900, 1000)]) > 400


def test_shares_rise_from_none_to_all():
    one = report(10, 1, 8, 20)
    assert share_below(one, 0) == 0
    assert share_below(one, 1) == pytest.approx(0.5)
    assert share_below(one, 4.5) == pytest.approx(0.745)
    assert share_below(one, 20) == 1


def test_a_report_without_spread_is_a_step():
    assert share_below(report(5, 2, 2, 2), 1.9) < 0.5
    assert share_below(report(5, 2, 2, 2), 2) == 1


numbers = st.floats(0, 1000, allow_nan=False)


@given(st.lists(st.tuples(st.integers(1, 5000), numbers, numbers, numbers), min_size=1, max_size=9))
def test_the_merged_value_lies_among_the_intervals_own(values):
    reports = [report(ios, *sorted(points)) for ios, *points in values]
    merged = merged_percentile(reports)
    assert merged <= max(one.p99_milliseconds for one in reports) + 1e-6
    assert merged >= min(one.p99_milliseconds for one in reports) - 1e-6
