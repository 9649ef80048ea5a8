"""The token bucket of each caller: what it lets through, when it says to come back, what it
forgets."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from stairlib.model.call_rate import TELL_SECONDS, CallRate, CallRates


def admitted(rates: CallRates, caller: str, now: float, calls: int) -> int:
    return sum(not rates.take(caller, now).wait for _ in range(calls))


def test_a_burst_at_once_then_the_rate() -> None:
    rates = CallRates(CallRate(10, 5))
    assert admitted(rates, "a", 100.0, 20) == 5
    assert admitted(rates, "a", 100.1, 20) == 1
    assert admitted(rates, "a", 100.3, 20) == 2
    # After a pause no more than the burst.
    assert admitted(rates, "a", 200.0, 20) == 5


def test_callers_have_buckets_of_their_own() -> None:
    rates = CallRates(CallRate(1, 2))
    assert admitted(rates, "a", 0.0, 9) == 2
    assert admitted(rates, "b", 0.0, 9) == 2
    assert admitted(rates, "a", 0.0, 9) == 0


def test_who_comes_back_when_told_gets_in_and_not_before() -> None:
    rates = CallRates(CallRate(4, 1))
    assert not rates.take("a", 0.0).wait
    wait = rates.take("a", 0.1).wait
    assert abs(wait - 0.15) < 1e-9
    assert rates.take("a", 0.1 + wait * 0.9).wait > 0
    # Refused ones do not push the moment away.
    assert not rates.take("a", 0.1 + wait).wait


def test_who_has_not_called_for_longest_is_forgotten_first() -> None:
    rates = CallRates(CallRate(1, 1), callers_max=3)
    for caller in ("a", "b", "c", "a"):
        rates.take(caller, 0.0)
    rates.take("d", 0.0)
    assert len(rates) == 3
    # b begins anew; a is remembered.
    assert not rates.take("b", 0.0).wait
    assert rates.take("a", 0.0).wait


def test_refusals_are_told_together() -> None:
    rates = CallRates(CallRate(1, 1))
    rates.take("a", 0.0)
    told = [rates.take("a", 0.5).tell for _ in range(100)]
    assert told == [1] + [0] * 99
    rates.take("a", 0.5 + TELL_SECONDS)
    assert rates.take("a", 0.5 + TELL_SECONDS).tell == 100


@given(
    st.integers(1, 50),
    st.integers(1, 20),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 400)), max_size=200),
)
def test_never_more_than_rate_and_burst_in_any_time(
    rate: int, burst: int, calls: list[tuple[str, int]]
) -> None:
    """Of all windows between two admitted calls, none has more than the burst and the rate."""
    rates = CallRates(CallRate(rate, burst))
    times: dict[str, list[Fraction]] = {"a": [], "b": []}
    now = 0
    for caller, step in calls:
        now += step
        if not rates.take(caller, now / 1000).wait:
            times[caller].append(Fraction(now, 1000))
    for found in times.values():
        for first in range(len(found)):
            for last in range(first, len(found)):
                passed = found[last] - found[first]
                # Rounding may let one in a millionth of its time early.
                assert last - first + 1 <= burst + passed * rate + Fraction(1, 1000)
