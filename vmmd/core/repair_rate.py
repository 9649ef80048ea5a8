"""How fast a volume's repairs may go: what was asked for, what the fleet leaves, what the guest
bears. Pure.

Without `adaptive` the rate is the lowest of the limit and the fleet's share. With it, the rate is
between the floor and that, and follows the guest. The measure is *stress*: how long its requests
take now, over how long they take when the repair stands at its floor or rests, each kind of request
compared with itself. Above STRESS_HIGH the rate is cut by a factor; below STRESS_LOW it grows by a
little, as long as the repair uses what it has; in between it stays. A guest that does nothing for a
while leaves the repair its ceiling, and is given the rate that it bore before when it comes back.

What is compared with is learnt: while no repair runs, and while one is at its floor. A guest whose
requests have become slower by themselves so costs the repair some seconds at the floor, not its
life; one whose requests have become quicker is noticed at any rate.

Invariants: never below the floor, never above the ceiling; any steady guest comes to a rate that
stays within a factor of two; a limit that is set is in force at once.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmmd.core.guest_meter import KINDS, GuestSample
from vmmd.core.guest_tail import GuestTail

MIB = 1 << 20
# A guest that is always busy leaves a 100 GiB region four hours at this.
FLOOR_BYTES_PER_SECOND = 8 * MIB
# Of a mean. The 99th percentile rises faster than the mean: it was twice as high where the mean was
# up by a third to a half.
STRESS_HIGH = 1.5
STRESS_LOW = 1.25
# The part of the guest's requests that take more than twice as long as 99 in 100 usually do. One in
# a hundred is what is promised; what the guest feels before a request comes here is in none of it.
SLOW_HIGH = 0.008
SLOW_LOW = 0.004
CUT = 0.7
# A step up: a part of the rate, and at first, until the guest is felt, another one.
GROWTH = 0.05
GROWTH_AT_FIRST = 0.2
# A repair that uses less than this part of its rate is held up by something else.
USED_SHARE = 0.6
# The guest is idle when it has a request in flight less than this part of the time, for so long.
IDLE_SHARE = 0.02
IDLE_SECONDS = 1.0
# Weight of a new sample in what is compared with, and how many requests make one.
LEARNING = 0.2
SAMPLE_REQUESTS_MIN = 8
# A guest with a request in flight less than this part of the time hardly feels a repair, and has
# too few of them to tell: the rate grows until it has had so many that they do.
QUIET_SHARE = 0.2
# Stress is smoothed over about so many samples.
STRESS_SAMPLES = 2


class RateReason(enum.IntEnum):
    """Why the rate is what it is; the values are those of RepairRateReason on the wire."""

    UNLIMITED = 1
    LIMIT = 2
    FLEET_SHARE = 3
    FLOOR = 4
    ADAPTING = 5
    IDLE = 6


@dataclass(frozen=True, slots=True)
class RepairPolicy:
    """What is wanted for a volume; rates in bytes per second, 0 for none. `fleet_share` is what the
    fleet's rate leaves to it."""

    bytes_per_second_max: int = 0
    bytes_per_second_min: int = FLOOR_BYTES_PER_SECOND
    extents_in_flight_max: int = 4
    adaptive: bool = True
    fleet_share: int = 0

    @property
    def ceiling(self) -> int:
        """The most that may be; 0 is no bound."""
        bounds = [each for each in (self.bytes_per_second_max, self.fleet_share) if each]
        return min(bounds, default=0)

    @property
    def floor(self) -> int:
        """What a busy guest leaves the repairs."""
        floor = self.bytes_per_second_min or FLOOR_BYTES_PER_SECOND
        return min(floor, self.ceiling) if self.ceiling else floor


class RateController:
    """One volume's. Call `step` with a sample about twice a second; read `rate` and `reason`."""

    def __init__(self, policy: RepairPolicy | None = None) -> None:
        self._policy = policy or RepairPolicy()
        # By kind of request, seconds that one takes; None when nothing is known yet.
        self._usual: list[float | None] = [None] * KINDS
        self._tail = GuestTail()
        self._borne = float(self._policy.floor)
        # Requests that are too few yet to tell of stress: by kind, and their seconds.
        self._gathered = [0] * KINDS
        self._gathered_waited = [0.0] * KINDS
        self._first = True
        self._idle_for = 0.0
        self._stress = 1.0
        self._running = False

    @property
    def policy(self) -> RepairPolicy:
        """What is wanted."""
        return self._policy

    @property
    def stress(self) -> float:
        """How much longer the guest's requests take than usual; 1 is not at all."""
        return self._stress

    @property
    def rate(self) -> int:
        """Bytes per second of all copies together; 0 is no limit."""
        policy = self._policy
        if not policy.adaptive or self._idle:
            return policy.ceiling
        return max(1, int(self._borne))

    @property
    def reason(self) -> RateReason:
        """Why."""
        policy = self._policy
        if policy.adaptive and not self._idle:
            if self._borne <= policy.floor and policy.floor != policy.ceiling:
                return RateReason.FLOOR
            if not policy.ceiling or self._borne < policy.ceiling:
                return RateReason.ADAPTING
        elif policy.adaptive and self._idle and not policy.ceiling:
            return RateReason.IDLE
        if not policy.ceiling:
            return RateReason.UNLIMITED
        if policy.fleet_share == policy.ceiling:
            return RateReason.FLEET_SHARE
        return RateReason.LIMIT

    @property
    def _idle(self) -> bool:
        return self._idle_for >= IDLE_SECONDS

    def set_policy(self, policy: RepairPolicy) -> None:
        """In force at once."""
        self._policy = policy
        self._borne = self._bounded(self._borne)

    def step(self, sample: GuestSample, *, repairing: bool, moved: int) -> None:
        """One sample of the guest, and the bytes that the copies moved in the same time."""
        was_idle, was_running = self._idle, self._running
        idle = sample.busy < IDLE_SHARE * sample.seconds
        self._idle_for = self._idle_for + sample.seconds if idle else 0.0
        self._running = repairing
        if not repairing:
            self._first, self._borne, self._stress = True, float(self._policy.floor), 1.0
            self._learn(sample, at_rest=True)
            self._tail.learn(sample.latencies, repairing=False)
            self._forget()
        elif was_running and not idle and not was_idle and self._policy.adaptive:
            # Some of the first sample of a repair, and of a guest that comes back, is from before.
            self._follow(sample, moved)

    def _follow(self, sample: GuestSample, moved: int) -> None:
        at_rest = self._borne <= self._policy.floor
        stress = self._stress_of(sample)
        self._learn(sample, at_rest=at_rest)
        self._tail.judge(sample.latencies)
        if at_rest:
            self._tail.learn(sample.latencies, repairing=True)
        if stress is not None:
            self._stress += (stress - self._stress) / STRESS_SAMPLES
        if stress is not None or sample.busy < QUIET_SHARE * sample.seconds:
            self._adapt(moved / sample.seconds)

    def _adapt(self, used: float) -> None:
        slow = self._tail.slow
        if self._stress > STRESS_HIGH or slow > SLOW_HIGH:
            self._first = False
            # Seen at a rate that is over.
            self._forget()
            self._borne = self._bounded(CUT * min(self._borne, max(used, self._policy.floor)))
        elif self._stress < STRESS_LOW and slow < SLOW_LOW and used >= USED_SHARE * self._borne:
            growth = GROWTH_AT_FIRST if self._first else GROWTH
            self._borne = self._bounded(self._borne + growth * max(self._borne, MIB))

    def _bounded(self, rate: float) -> float:
        rate = max(rate, float(self._policy.floor))
        ceiling = self._policy.ceiling
        return min(rate, float(ceiling)) if ceiling else rate

    def _forget(self) -> None:
        self._tail.forget()
        self._gathered, self._gathered_waited = [0] * KINDS, [0.0] * KINDS

    def _stress_of(self, sample: GuestSample) -> float | None:
        """The kinds' own ratios, weighted by their numbers; None while there is too little to
        tell."""
        for kind in range(KINDS):
            self._gathered[kind] += sample.counts[kind]
            self._gathered_waited[kind] += sample.waited[kind]
        weighed, total = 0.0, 0
        for count, waited, usual in zip(
            self._gathered, self._gathered_waited, self._usual, strict=True
        ):
            if count and usual:
                weighed += count * (waited / count / usual)
                total += count
        if total < SAMPLE_REQUESTS_MIN:
            return None
        self._gathered, self._gathered_waited = [0] * KINDS, [0.0] * KINDS
        return weighed / total

    def _learn(self, sample: GuestSample, *, at_rest: bool) -> None:
        for kind, (count, waited) in enumerate(zip(sample.counts, sample.waited, strict=True)):
            if not count:
                continue
            mean, usual = waited / count, self._usual[kind]
            if usual is None:
                if at_rest:
                    self._usual[kind] = mean
            elif at_rest or mean < usual:
                weight = LEARNING * min(1.0, count / SAMPLE_REQUESTS_MIN)
                self._usual[kind] = usual + weight * (mean - usual)
