"""The rate of repairs: bounds, reasons, and how it follows a guest."""

import numpy as np
import pytest

from vmmd.core.guest_history import BUCKETS, buckets_of
from vmmd.core.guest_meter import GuestSample
from vmmd.core.repair_rate import (
    FLOOR_BYTES_PER_SECOND,
    IDLE_SECONDS,
    MIB,
    QUIET_SHARE,
    SLOW_HIGH,
    STRESS_LOW,
    RateController,
    RateReason,
    RepairPolicy,
)
from vmmd.core.request_figures import KIND_NAMES, READ

STEP = 0.5
IDLE = GuestSample(STEP, 0.0, (0, 0, 0), (0.0, 0.0, 0.0))


def busy(milliseconds=1.0, count=100, kind=1):
    """A sample of a guest whose requests of one kind take so long."""
    counts = [0, 0, 0]
    waited = [0.0, 0.0, 0.0]
    counts[kind], waited[kind] = count, count * milliseconds / 1000
    return GuestSample(STEP, STEP, tuple(counts), tuple(waited))


def uneven(slow=0, count=1000):
    """Reads of a millisecond, of which so many take eight."""
    latencies = np.zeros((len(KIND_NAMES), BUCKETS), np.int64)
    for number, seconds in ((count - slow, 0.001), (slow, 0.008)):
        latencies[READ, buckets_of(np.array([seconds]))] += number
    waited = 0.001 * (count - slow) + 0.008 * slow
    return GuestSample(STEP, STEP, (0, count, 0), (0.0, waited, 0.0), latencies)


def step(controller, sample, used=1.0):
    """One step of a repair that uses that part of its rate, of 200 MiB/s where there is none."""
    moved = int(used * (controller.rate or 200 * MIB) * STEP)
    controller.step(sample, repairing=True, moved=moved)


def at_work(policy=None):
    """A controller that knows a busy guest, in its first repair."""
    controller = RateController(policy)
    for _ in range(10):
        controller.step(busy(), repairing=False, moved=0)
    step(controller, busy())
    return controller


@pytest.mark.parametrize(
    ("policy", "rate", "reason"),
    [
        (RepairPolicy(adaptive=False), 0, RateReason.UNLIMITED),
        (RepairPolicy(7, adaptive=False), 7, RateReason.LIMIT),
        (RepairPolicy(7, adaptive=False, fleet_share=5), 5, RateReason.FLEET_SHARE),
        (RepairPolicy(7, adaptive=False, fleet_share=9), 7, RateReason.LIMIT),
        (RepairPolicy(), FLOOR_BYTES_PER_SECOND, RateReason.FLOOR),
        # A limit below the floor is the floor, and the reason.
        (RepairPolicy(1 * MIB), 1 * MIB, RateReason.LIMIT),
        (RepairPolicy(fleet_share=2 * MIB), 2 * MIB, RateReason.FLEET_SHARE),
        (RepairPolicy(bytes_per_second_min=3), 3, RateReason.FLOOR),
    ],
)
def test_what_is_in_force_and_why(policy, rate, reason):
    controller = RateController(policy)
    assert (controller.rate, controller.reason) == (rate, reason)


def test_a_guest_that_was_idle_before_leaves_the_repair_everything():
    controller = RateController()
    for _ in range(int(IDLE_SECONDS / STEP)):
        controller.step(IDLE, repairing=False, moved=0)
    assert (controller.rate, controller.reason) == (0, RateReason.IDLE)
    controller.set_policy(RepairPolicy(9 * MIB))
    assert (controller.rate, controller.reason) == (9 * MIB, RateReason.LIMIT)


def test_a_guest_that_comes_back_finds_the_rate_it_bore_before():
    controller = at_work()
    for _ in range(5):
        step(controller, busy())
    borne = controller.rate
    assert borne > FLOOR_BYTES_PER_SECOND
    for _ in range(int(IDLE_SECONDS / STEP) + 1):
        step(controller, IDLE)
    assert controller.reason is RateReason.IDLE
    step(controller, busy())
    assert (controller.rate, controller.reason) == (borne, RateReason.ADAPTING)


def test_a_guest_that_suffers_takes_the_rate_to_the_floor_and_no_further():
    controller = at_work()
    for _ in range(10):
        step(controller, busy())
    assert controller.rate > 2 * FLOOR_BYTES_PER_SECOND
    # At first, until the floor is what it is compared with.
    for _ in range(12):
        step(controller, busy(3.0))
    assert (controller.rate, controller.reason) == (FLOOR_BYTES_PER_SECOND, RateReason.FLOOR)


def test_a_guest_that_became_slower_by_itself_holds_the_repair_up_for_a_while_only():
    controller = at_work()
    for _ in range(60):
        step(controller, busy(3.0))
    assert controller.rate > 2 * FLOOR_BYTES_PER_SECOND


def test_a_mix_that_changes_is_no_suffering():
    controller = RateController()
    for _ in range(10):
        controller.step(busy(1.0, kind=1), repairing=False, moved=0)
        controller.step(busy(20.0, kind=2), repairing=False, moved=0)
    step(controller, busy())
    for _ in range(10):
        step(controller, busy(20.0, kind=2))
    assert controller.stress == pytest.approx(1.0, abs=0.05)
    assert controller.rate > FLOOR_BYTES_PER_SECOND


def test_a_rate_that_is_not_used_does_not_grow():
    controller = at_work()
    for _ in range(20):
        step(controller, busy(), used=0.3)
    assert controller.rate == FLOOR_BYTES_PER_SECOND


def test_a_cut_begins_at_what_was_used():
    controller = at_work()
    for _ in range(20):
        step(controller, busy())
    high = controller.rate
    for _ in range(3):
        step(controller, busy(5.0), used=0.2)
    assert controller.rate < high * 0.2


def test_a_limit_is_in_force_at_once():
    controller = at_work()
    for _ in range(20):
        step(controller, busy())
    controller.set_policy(RepairPolicy(2 * MIB, bytes_per_second_min=1 * MIB))
    assert controller.rate == 2 * MIB
    controller.set_policy(RepairPolicy(bytes_per_second_min=30 * MIB))
    assert controller.rate == 30 * MIB


def test_a_new_repair_begins_at_the_floor():
    controller = at_work()
    for _ in range(20):
        step(controller, busy())
    controller.step(busy(), repairing=False, moved=0)
    assert controller.rate == FLOOR_BYTES_PER_SECOND


def test_one_bad_sample_costs_a_third_and_no_more():
    controller = at_work()
    for _ in range(20):
        step(controller, busy())
    before = controller.rate
    step(controller, busy(3.0))
    assert controller.stress > 1.5
    assert 0.6 * before <= controller.rate < 0.8 * before


def test_a_few_slow_requests_in_a_hundred_that_the_mean_does_not_show_lower_the_rate():
    controller = RateController()
    for _ in range(10):
        controller.step(uneven(), repairing=False, moved=0)
    for _ in range(11):
        step(controller, uneven())
    high = controller.rate
    assert high > 3 * FLOOR_BYTES_PER_SECOND
    for _ in range(4):
        step(controller, uneven(slow=30))
    assert controller.stress < STRESS_LOW
    assert controller.rate < 0.7 * high
    # Fewer than are promised: it stays, or grows.
    rate = controller.rate
    for _ in range(20):
        step(controller, uneven(slow=int(1000 * SLOW_HIGH) - 1))
    assert controller.rate >= rate


def test_slow_ones_of_before_a_cut_lead_to_no_other():
    controller = RateController()
    for _ in range(10):
        controller.step(uneven(), repairing=False, moved=0)
    for _ in range(11):
        step(controller, uneven())
    high = controller.rate
    step(controller, uneven(slow=100))
    cut = controller.rate
    assert cut == pytest.approx(0.7 * high, rel=0.01)
    step(controller, uneven())
    assert controller.rate >= cut


def rarely(milliseconds=1.0, count=1, busy=0.05):
    """A guest that asks for something now and then: less than a percentile or a mean can be of."""
    waited = (0.0, count * milliseconds / 1000, 0.0)
    return GuestSample(STEP, busy * STEP, (0, count, 0), waited)


def test_a_guest_that_hardly_works_does_not_hold_the_repair_at_its_floor():
    controller = at_work()
    for _ in range(20):
        step(controller, rarely())
    assert controller.rate > 10 * FLOOR_BYTES_PER_SECOND


def test_it_is_spared_too_once_it_had_enough_requests_to_tell():
    controller = at_work()
    for _ in range(20):
        step(controller, rarely())
    high = controller.rate
    for _ in range(40):
        step(controller, rarely(5.0))
    assert controller.rate < 0.5 * high


def test_few_requests_that_take_all_the_time_are_no_guest_that_hardly_works():
    controller = at_work()
    for _ in range(7):
        step(controller, rarely(500.0, busy=1.1 * QUIET_SHARE))
    assert controller.rate == FLOOR_BYTES_PER_SECOND
