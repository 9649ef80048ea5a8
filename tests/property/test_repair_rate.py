"""Over all guests and limits: the rate of repairs stays in its bounds, nobody starves, it settles.
And the fleet's rate is divided as it should be."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controlplane.core.repair_shares import Need, shares
from vmmd.core.guest_history import BUCKETS, buckets_of
from vmmd.core.guest_meter import GuestSample
from vmmd.core.repair_rate import MIB, STRESS_HIGH, RateController, RepairPolicy
from vmmd.core.request_figures import KIND_NAMES, READ

STEP = 0.5
RATES = st.integers(1, 1 << 36)
policies = st.builds(
    RepairPolicy,
    bytes_per_second_max=st.just(0) | RATES,
    bytes_per_second_min=st.just(0) | RATES,
    adaptive=st.booleans(),
    fleet_share=st.just(0) | RATES,
)
times = st.floats(1e-6, 30.0)
counts = st.tuples(*[st.integers(0, 5000)] * 3)
samples = st.builds(
    lambda busy, counts, means: GuestSample(
        STEP, busy * STEP, counts, tuple(n * m for n, m in zip(counts, means, strict=True))
    ),
    st.floats(0, 1),
    counts,
    st.tuples(times, times, times),
)
steps = st.lists(
    st.tuples(samples, st.booleans(), st.floats(0, 1.2), st.none() | policies), max_size=60
)


@given(policies, steps)
def test_never_under_the_floor_nor_over_the_ceiling(policy, run):
    controller = RateController(policy)
    for sample, repairing, used, changed in run:
        if changed is not None:
            controller.set_policy(changed)
            policy = changed
            in_bounds(controller, policy)
        moved = int(used * (controller.rate or 1 << 30) * STEP)
        controller.step(sample, repairing=repairing, moved=moved)
        in_bounds(controller, policy)
        assert controller.reason


def in_bounds(controller, policy):
    ceiling = policy.ceiling
    if not policy.adaptive:
        assert controller.rate == ceiling
        return
    if ceiling:
        assert policy.floor <= controller.rate <= ceiling
    else:
        assert controller.rate == 0 or controller.rate >= policy.floor


class Guest:
    """A guest whose requests take longer the faster the repair is: usual * (1 + (rate / bears)^2).
    The disk moves no more than `disk` bytes per second."""

    def __init__(self, usual: float, bears: float, disk: float) -> None:
        self.usual, self.bears, self.disk = usual, bears, disk

    def step(self, controller: RateController, *, repairing: bool = True) -> None:
        rate = min(controller.rate or self.disk, self.disk) if repairing else 0
        mean = self.usual * (1 + (rate / self.bears) ** 2)
        count = 200
        sample = GuestSample(STEP, STEP, (0, count, 0), (0.0, count * mean, 0.0))
        controller.step(sample, repairing=repairing, moved=int(rate * STEP))


def settled(guest):
    """What a long repair beside the guest uses of the disk in its last hundred steps."""
    controller = RateController()
    for _ in range(20):
        guest.step(controller, repairing=False)
    for _ in range(300):
        guest.step(controller)
    used = []
    for _ in range(100):
        guest.step(controller)
        used.append(min(controller.rate, guest.disk))
    return used


guests = st.builds(
    Guest,
    st.floats(1e-5, 0.1),
    st.floats(20 * MIB, 2000 * MIB),
    st.floats(10 * MIB, 1000 * MIB),
)


@settings(max_examples=50)
@given(guests)
def test_any_steady_guest_is_spared_and_the_repair_settles(guest):
    used = settled(guest)
    # It settles: what it uses stays within a factor of two.
    assert max(used) <= 2 * min(used)
    # The guest is spared: its requests take little longer than what was to be borne.
    worst = 1 + (max(used) / guest.bears) ** 2
    assert worst <= STRESS_HIGH * 1.3 or max(used) <= 1.1 * RateController().policy.floor
    # And the repair is not held up for nothing: half of what the guest bears is used.
    easy = min(guest.disk, guest.bears * 0.15**0.5)
    assert max(used) >= 0.5 * min(easy, guest.disk)


class SlowedGuest(Guest):
    """A guest of which the repair holds up some requests, for four times the usual: so many that
    one in a hundred is at the rate that it bears."""

    def step(self, controller: RateController, *, repairing: bool = True) -> None:
        rate = min(controller.rate or self.disk, self.disk) if repairing else 0
        count = 1000
        slow = min(count, round(count * 0.01 * rate / self.bears))
        latencies = np.zeros((len(KIND_NAMES), BUCKETS), np.int64)
        for number, times in ((count - slow, 1), (slow, 4)):
            latencies[READ, buckets_of(np.array([times * self.usual]))] += number
        waited = self.usual * (count + 3 * slow)
        sample = GuestSample(STEP, STEP, (0, count, 0), (0.0, waited, 0.0), latencies)
        controller.step(sample, repairing=repairing, moved=int(rate * STEP))


slowed_guests = st.builds(
    SlowedGuest,
    st.floats(1e-5, 0.1),
    st.floats(20 * MIB, 2000 * MIB),
    st.floats(10 * MIB, 1000 * MIB),
)


@settings(max_examples=50)
@given(slowed_guests)
def test_no_more_than_one_request_in_a_hundred_is_held_up(guest):
    seen = settled(guest)
    assert sum(seen) / len(seen) <= guest.bears
    assert min(seen) >= 0.2 * min(guest.disk, guest.bears)


needs = st.lists(st.tuples(st.integers(0, 1 << 44), st.just(0) | RATES), max_size=40)


# Who was given less than an equal part, but more than those after it, took from what was theirs.
@example(10**9, [(0, 0), (0, 0), (0, 0), (0, 0), (1, 0), (1, 181 * 10**6)])
@given(st.integers(1000, 1 << 40), needs)
def test_the_fleets_rate_is_kept_used_and_starves_nobody(rate, wanted):
    given_needs = [Need(key, left, most) for key, (left, most) in enumerate(wanted)]
    found = shares(rate, given_needs)
    assert set(found) == set(range(len(wanted)))
    if not wanted:
        return
    # A share is at least 1, and whole numbers lose less than one each.
    assert sum(found.values()) <= rate + len(wanted)
    for need in given_needs:
        most = need.bytes_per_second_max or rate
        assert found[need.key] <= max(1, most)
        assert found[need.key] >= max(1, min(most, int(rate / len(wanted) / 2) - 1))
    if any(not each.bytes_per_second_max for each in given_needs):
        assert sum(found.values()) >= rate - len(wanted)
    for one in given_needs:
        for other in given_needs:
            same = one.bytes_per_second_max == other.bytes_per_second_max
            if same and one.bytes_left >= other.bytes_left:
                assert found[one.key] >= found[other.key] - 1
