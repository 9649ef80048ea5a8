"""How many of a guest's requests are slow."""

import numpy as np
import pytest

from vmmd.core.guest_history import BUCKETS, buckets_of
from vmmd.core.guest_tail import KNOWN_REQUESTS_MIN, GuestTail
from vmmd.core.request_figures import FLUSH, KIND_NAMES, READ


def seen(kind=READ, **counts):
    """So many requests of a kind that took so many milliseconds: `ms3=7` is seven of three."""
    found = np.zeros((len(KIND_NAMES), BUCKETS), np.int64)
    for name, count in counts.items():
        found[kind, buckets_of(np.array([float(name[2:]) / 1000]))] += count
    return found


def at_rest(latencies, times=5):
    tail = GuestTail()
    for _ in range(times):
        tail.learn(latencies, repairing=False)
    return tail


# Of whom 99 in 100 take at most 4 ms.
USUAL = seen(ms1=900, ms4=95, ms20=5)


def test_what_takes_twice_as_long_as_99_in_100_usually_do_is_slow():
    tail = at_rest(USUAL)
    tail.judge(seen(ms1=900, ms4=70, ms7=20, ms9=10))
    assert tail.slow == pytest.approx(0.01)


def test_what_is_as_usual_is_not_slow():
    tail = at_rest(USUAL)
    for _ in range(10):
        tail.judge(USUAL)
    assert tail.slow == pytest.approx(0.005)


def test_the_last_seconds_count():
    tail = at_rest(USUAL)
    tail.judge(seen(ms50=1000))
    assert tail.slow == 1.0
    for _ in range(20):
        tail.judge(seen(ms1=1000))
    assert tail.slow < 0.004
    tail.judge(seen(ms50=100))
    assert tail.slow > 0.02
    tail.forget()
    assert tail.slow == 0.0


def test_two_slow_ones_may_be_chance():
    tail = at_rest(USUAL)
    tail.judge(seen(ms1=20, ms50=2))
    assert tail.slow == 0.0
    tail.judge(seen(ms1=20, ms50=2))
    assert tail.slow > 0.05


def test_each_kind_is_compared_with_itself_once_enough_of_it_was_seen():
    few = seen(FLUSH, ms1=KNOWN_REQUESTS_MIN // 10)
    tail = at_rest(USUAL + few)
    tail.judge(seen(ms1=100) + seen(FLUSH, ms50=100))
    assert tail.slow == 0.0
    tail = at_rest(USUAL + 10 * few)
    tail.judge(seen(ms1=100) + seen(FLUSH, ms1=90, ms50=10))
    assert tail.slow == pytest.approx(0.05)


def test_usual_is_learnt_anew_at_rest_and_more_slowly_during_a_repair():
    slower = 3 * seen(ms1=900, ms40=100)
    quick, slow = at_rest(USUAL), at_rest(USUAL)
    for _ in range(10):
        quick.learn(slower, repairing=False)
        slow.learn(seen(ms1=9, ms40=1), repairing=True)
    for tail in (quick, slow):
        tail.judge(slower)
    assert quick.slow == 0.0
    assert slow.slow == pytest.approx(0.1)


def test_the_last_bucket_has_no_end_and_nothing_beyond_it():
    endless = np.zeros((len(KIND_NAMES), BUCKETS), np.int64)
    endless[READ, -1] = 1000
    tail = at_rest(endless)
    tail.judge(endless)
    assert tail.slow == 0.0
