"""The meter of the guest's requests."""

import pytest

from vmmd.block.backend import BlockOp, Request
from vmmd.core.guest_history import upper_bound
from vmmd.core.guest_meter import LATENCY_BOUNDS, TIMES_MAX, GuestMeter, kind_of


def batch(*ops):
    return [Request(op, number, 0, 1) for number, op in enumerate(ops)]


def test_a_batch_counts_as_its_slowest_kind():
    write = kind_of(batch(BlockOp.WRITE))
    discard = kind_of(batch(BlockOp.WRITE, BlockOp.DISCARD))
    read = kind_of(batch(BlockOp.DISCARD, BlockOp.READ, BlockOp.DISCARD))
    flush = kind_of(batch(BlockOp.READ, BlockOp.FLUSH, BlockOp.WRITE))
    assert len({write, discard, read, flush}) == 4
    assert kind_of(batch(BlockOp.FLUSH)) == flush


def test_what_was_seen_is_told_once():
    meter = GuestMeter(10.0)
    meter.begun(2, 10.1)
    meter.ended(1, 1, 0.2, 10.3)
    meter.ended(1, 1, 0.4, 10.5)
    meter.begun(3, 10.9)
    sample = meter.take(11.0)
    assert sample.seconds == pytest.approx(1.0)
    assert sample.busy == pytest.approx(0.5)
    assert sample.counts == (0, 2, 0)
    assert sample.waited[1] == pytest.approx(0.6)
    # What is still in flight is busy in the next interval, too.
    meter.ended(2, 3, 0.6, 11.5)
    sample = meter.take(12.0)
    assert sample.busy == pytest.approx(0.5)
    assert sample.counts == (0, 0, 3)
    assert meter.take(13.0).busy == 0.0


def test_latencies_are_told_once_and_apart_from_the_sample():
    meter = GuestMeter(0.0)
    meter.begun(3, 0.0)
    meter.ended(1, 2, 0.25, 0.25)
    meter.ended(0, 1, 0.5, 0.5)
    meter.take(1.0)
    counts, longest = meter.take_latencies()
    assert [(upper_bound(n), count) for n, count in enumerate(counts) if count] == [
        (pytest.approx(0.25, rel=0.13), 2),
        (pytest.approx(0.5, rel=0.13), 1),
    ]
    assert longest == 0.5
    counts, longest = meter.take_latencies()
    assert (sum(counts), longest) == (0, 0.0)


def test_a_sample_has_its_latencies_by_kind_whoever_takes_them_too():
    meter = GuestMeter(0.0)
    meter.begun(4, 0.0)
    meter.ended(1, 2, 0.25, 0.25)
    meter.take_latencies()
    meter.ended(2, 1, 0.5, 0.5)
    found = meter.take(1.0).latencies
    assert found.sum(axis=1).tolist() == [0, 2, 1, 0]
    assert upper_bound(int(found[2].argmax())) == pytest.approx(0.5, rel=0.13)
    meter.ended(1, 1, 1e-3, 1.5)
    meter.take_latencies()
    assert meter.take(2.0).latencies.sum(axis=1).tolist() == [0, 1, 0, 0]


def test_times_that_nobody_takes_are_counted_and_not_kept():
    meter = GuestMeter(0.0)
    for number in range(2 * TIMES_MAX + 3):
        meter.begun(2, 0.0)
        meter.ended(0, 2, 1e-3 if number else 2.0, 1.0)
        assert len(meter._times) < TIMES_MAX
    counts, longest = meter.take_latencies()
    assert sum(counts) == 2 * (2 * TIMES_MAX + 3)
    assert longest == 2.0


def test_totals_are_of_everything_whatever_was_taken():
    meter = GuestMeter(0.0)
    # 32 µs, 100 µs three times, 1 ms, an hour.
    for count, seconds in ((1, 32e-6), (3, 100e-6), (1, 1e-3), (1, 3600.0)):
        meter.begun(count, 1.0)
        meter.ended(0, count, seconds, 2.0)
        meter.take_latencies()
    meter.begun(2, 1.0)
    meter.ended(kind_of(batch(BlockOp.DISCARD)), 2, 0.5, 2.0)
    totals, read, flush, discard = meter.latency_totals()
    assert [each.kind for each in (totals, read, flush, discard)] == [
        "write", "read", "flush", "discard",
    ]  # fmt: skip
    assert (read.count, read.seconds, flush.count) == (0, 0.0, 0)
    assert (discard.count, discard.seconds) == (2, 1.0)
    # In samples it is a write.
    assert meter.take(3.0).counts == (8, 0, 0)
    below = dict(zip(LATENCY_BOUNDS, totals.below, strict=True))
    assert (totals.count, meter.in_flight) == (6, 0)
    assert totals.seconds == pytest.approx(3600.001332)
    assert below[64e-6] == 1
    assert below[128e-6] == below[512e-6] == 4
    assert below[1024e-6] == 5
    # The last bucket of all is beyond the last bound.
    assert totals.below[-1] == 5
    meter.begun(2, 3.0)
    meter.ended(0, 1, 64e-6, 4.0)
    assert meter.latency_totals()[0].count == 7
    assert meter.in_flight == 1
    # A bound is exclusive.
    assert meter.latency_totals()[0].below[0] == 1
