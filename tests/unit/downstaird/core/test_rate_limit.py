"""The token bucket of repair traffic, and its rests."""

import pytest

from downstaird.core.rate_limit import (
    BURST_SECONDS,
    REST_SECONDS_MAX,
    REST_TIMES,
    STEPS_PER_SECOND,
    Rests,
    Stride,
    TokenBucket,
    allowed,
    step_bytes,
    timer_seconds,
)


def test_no_limit_never_waits():
    bucket = TokenBucket()
    bucket.take(1 << 40, 0.0)
    assert bucket.wait(0.0) == 0.0


def test_the_rate_is_kept_over_time():
    bucket, now, moved = TokenBucket(1000), 50.0, 0
    while now < 60.0:
        bucket.take(100, now)
        moved += 100
        now += bucket.wait(now)
    assert moved == pytest.approx(10_000, rel=0.02)


def test_a_pause_saves_up_no_more_than_a_burst():
    bucket = TokenBucket(1000)
    bucket.take(100, 0.0)
    bucket.take(int(1000 * BURST_SECONDS), 100.0)
    assert bucket.wait(100.0) == pytest.approx(0.0)
    bucket.take(500, 100.0)
    assert bucket.wait(100.0) == pytest.approx(0.5)


def test_a_raised_limit_ends_the_wait_under_the_old_one():
    bucket = TokenBucket(1)
    bucket.take(1000, 0.0)
    assert bucket.wait(0.0) > 900
    bucket.set_rate(1000, 1.0)
    assert bucket.wait(1.0) == 0.0
    bucket.set_rate(0, 1.0)
    assert bucket.bytes_per_second == 0
    assert bucket.wait(1.0) == 0.0


def test_steps_are_followed_by_rests_while_requests_come():
    rests = Rests()
    assert rests.wait(10.0) <= 0
    rests.worked(0.002, 7, 10.0)
    assert rests.wait(10.0) == pytest.approx(REST_TIMES * 0.002)
    # Copies that run at the same time rest one after the other.
    rests.worked(0.001, 8, 10.001)
    assert rests.wait(10.0) == pytest.approx(REST_TIMES * 0.003)


def test_an_idle_guest_costs_no_rest():
    rests = Rests()
    rests.worked(0.002, 7, 10.0)
    rests.worked(0.002, 7, 20.0)
    assert rests.wait(20.0) <= 0


def test_a_step_that_was_stopped_does_not_stop_the_next():
    rests = Rests()
    rests.worked(30.0, 1, 50.0)
    assert rests.wait(50.0) == pytest.approx(REST_SECONDS_MAX)


@pytest.mark.parametrize(
    ("running", "limit", "may_go_on"),
    [((4, 2, 9), 0, {2, 4, 9}), ((4, 2, 9), 2, {2, 4}), ((4,), 2, {4}), ((), 1, set())],
)
def test_copies_that_began_first_go_on_under_a_lowered_limit(running, limit, may_go_on):
    assert allowed(running, limit) == may_go_on


def test_steps_are_large_only_while_the_guest_is_idle():
    stride = Stride(256, 1024, requests=7)
    assert [stride.bytes(requests) for requests in (7, 8, 8, 8, 20)] == [1024, 256, 1024, 1024, 256]


def test_a_caller_that_takes_no_large_steps_gets_small_ones():
    assert Stride(256, 0, requests=0).bytes(0) == 256


def test_steps_under_a_limit_are_so_many_a_second_whatever_the_limit_is():
    for rate in (0, 1, 100 * STEPS_PER_SECOND, 256 * STEPS_PER_SECOND):
        assert step_bytes(rate, 256, 2048) == 256
    # Whole multiples: a region's chunk is written once where it comes whole.
    assert step_bytes(1000 * STEPS_PER_SECOND, 256, 2048) == 768
    for rate in (2048 * STEPS_PER_SECOND, 1 << 40):
        assert step_bytes(rate, 256, 2048) == 2048


def test_a_timer_does_not_come_early():
    # Of whole milliseconds, which is what the loop's timers know.
    assert timer_seconds(1e-9) == pytest.approx(0.001)
    assert timer_seconds(0.0014) == pytest.approx(0.002)
    assert timer_seconds(0.25) == pytest.approx(0.25)
