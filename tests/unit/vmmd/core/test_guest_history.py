"""The rings of samples and the buckets of latencies."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from vmmd.core.guest_history import (
    BUCKETS,
    COARSE_SAMPLES,
    COARSE_TICKS,
    FINE_SAMPLES,
    GuestHistory,
    Tick,
    buckets_of,
    percentile,
    upper_bound,
)


def bucket_of(seconds: float) -> int:
    (bucket,) = buckets_of(np.array([seconds])).tolist()
    return bucket


def tick(seconds=0.5, latencies=(), members=0, rate=0, **numbers):
    counts = [0] * BUCKETS
    for each in latencies:
        counts[bucket_of(each)] += 1
    names = ("reads", "writes", "flushes", "discards", "read_bytes", "write_bytes", "repair_bytes")
    return Tick(
        seconds=seconds,
        **{name: numbers.get(name, 0) for name in names},
        latencies=counts,
        longest=max(latencies, default=0.0),
        members_filled=members,
        rate_max=rate,
    )


def test_buckets_hold_what_their_bounds_say_and_are_an_eighth_wide():
    chance = random.Random(1)
    times = [number / 1e6 for number in range(1, 2000)]
    times += [2.0 ** chance.uniform(0, 31) / 1e6 for _ in range(5000)]
    for seconds in times:
        bucket = bucket_of(seconds)
        assert seconds < upper_bound(bucket) * (1 + 1e-12)
        assert upper_bound(bucket) <= seconds * 1.125 * (1 + 1e-12)
        assert seconds >= upper_bound(bucket - 1) * (1 - 1e-12)


def test_each_bucket_is_above_the_one_before():
    bounds = [upper_bound(bucket) for bucket in range(8, BUCKETS)]
    assert upper_bound(0) == upper_bound(7) == 1e-6
    assert all(low < high for low, high in itertools.pairwise(bounds))


def test_times_outside_the_buckets_are_in_the_first_and_the_last():
    assert bucket_of(0.0) == bucket_of(-1e-9) == bucket_of(0.9e-6) == 0
    assert bucket_of(1e9) == BUCKETS - 1


def test_percentiles_are_right_to_an_eighth():
    chance = random.Random(7)
    times = sorted(chance.expovariate(500) for _ in range(5000))
    counts = tick(latencies=times).latencies
    for share in (0.5, 0.9, 0.99):
        exact = times[int(share * len(times))]
        assert percentile(counts, share, times[-1]) == pytest.approx(exact, rel=0.14)
    assert percentile(counts, 1.0, times[-1]) == times[-1]
    assert percentile([0] * BUCKETS, 0.99, 0.0) == 0.0


def test_a_sample_says_what_its_tick_did():
    history = GuestHistory()
    history.tick(
        100.0,
        tick(0.4, [0.001, 0.002, 0.1], 1, 99, reads=2, writes=1, read_bytes=8, repair_bytes=7),
    )
    (sample,) = history.after(0.0)
    assert (sample.end, sample.seconds, sample.completed) == (100.0, 0.4, 3)
    assert (sample.reads, sample.writes, sample.read_bytes) == (2, 1, 8)
    assert (sample.repair_bytes, sample.members_filled, sample.rate_max) == (7, 1, 99)
    assert sample.p50 == pytest.approx(0.002, rel=0.13)
    assert sample.p99 == sample.longest == 0.1
    assert history.after(100.0) == []


def test_what_fine_samples_have_forgotten_coarse_ones_tell():
    history = GuestHistory()
    count = FINE_SAMPLES + 5 * COARSE_TICKS
    for number in range(1, count + 1):
        history.tick(number * 0.5, tick(reads=1, latencies=[0.001]))
    samples = history.after(0.0)
    assert sum(one.reads for one in samples) == count
    assert [one.reads for one in samples[:5]] == [COARSE_TICKS] * 5
    assert samples[0].completed == COARSE_TICKS
    assert {one.reads for one in samples[5:]} == {1}
    assert_in_order(samples)
    # A moment that fine samples cover needs no coarse ones.
    assert {one.reads for one in history.after(count * 0.5 - 100)} == {1}


def test_levels_that_do_not_meet_leave_a_gap_and_no_overlap():
    history = GuestHistory()
    for number in range(1, FINE_SAMPLES + COARSE_TICKS + 8):
        history.tick(number * 0.5, tick(reads=1))
    assert_in_order(history.after(0.0))


def test_the_memory_of_days_is_bounded():
    history = GuestHistory()
    quiet = tick(reads=1)
    for number in range(1, COARSE_TICKS * (COARSE_SAMPLES + 3)):
        history.tick(number * 0.5, quiet)
    samples = history.after(0.0)
    assert len(samples) <= FINE_SAMPLES + COARSE_SAMPLES
    assert_in_order(samples)


def assert_in_order(samples):
    for earlier, later in itertools.pairwise(samples):
        assert earlier.end <= later.end - later.seconds + 1e-9
