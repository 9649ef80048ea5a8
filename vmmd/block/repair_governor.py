"""The rate of a volume's repairs, over all its regions: sets it, and follows the guest.

Twice a second the guest's sample and what the copies moved go to the controller, and each region
gets its part of the rate by how many members it fills. Invariant: what is set is told to all
regions before the call returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vmmd.block.volume_history import VolumeHistory
from vmmd.core.guest_meter import GuestMeter
from vmmd.core.repair_rate import RateController, RateReason, RepairPolicy
from vmmd.upstairs.core.repair_limits import RepairLimits
from vmmd.upstairs.shell.runner import RegionUpstairs

TICK_SECONDS = 0.5
# Of a new measurement of the rate that the copies really have: readable, and follows in a second.
_RATE_WEIGHT = 0.6


@dataclass(frozen=True, slots=True)
class RepairRate:
    """The rate in force (0 is none) and why, the rate that is, and what was asked for."""

    bytes_per_second: int
    reason: RateReason
    measured: float
    stress: float
    policy: RepairPolicy


class RepairGovernor:
    """Of one volume; `regions` gives its regions as they are now, `history` is told of each tick.
    Start it with the volume."""

    def __init__(
        self,
        regions: Callable[[], Sequence[RegionUpstairs]],
        meter: GuestMeter,
        history: VolumeHistory,
    ) -> None:
        self._regions = regions
        self._meter = meter
        self._history = history
        self._controller = RateController()
        self._moved: dict[RegionUpstairs, int] = {}
        self._measured = 0.0
        self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to look at the guest and the copies."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._at = loop.time()
            self._meter.take(self._at)
            self._tell()
            self._timer = loop.call_later(TICK_SECONDS, self._tick)

    def close(self) -> None:
        """Ends it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def set_policy(self, policy: RepairPolicy) -> None:
        """In force at once, also for a repair that runs."""
        self._controller.set_policy(policy)
        self._tell()

    def status(self) -> RepairRate:
        """As it is now."""
        controller = self._controller
        return RepairRate(
            controller.rate,
            controller.reason,
            self._measured,
            controller.stress,
            controller.policy,
        )

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TICK_SECONDS, self._tick)
        now = loop.time()
        members, moved = self._look()
        seconds, self._at = now - self._at, now
        weight = _RATE_WEIGHT if members else 1.0
        self._measured += weight * (moved / max(seconds, 1e-3) - self._measured)
        self._controller.step(self._meter.take(now), repairing=bool(members), moved=moved)
        self._history.tick(seconds, moved=moved, members=members, rate=self._controller.rate)
        self._tell()

    def _look(self) -> tuple[int, int]:
        """(members that are being filled, bytes moved since the last look)."""
        members = moved = 0
        before, self._moved = self._moved, {}
        for region in self._regions():
            count, total = region.filling
            members += count
            self._moved[region] = total
            # A repair that began anew counts from nothing.
            moved += max(0, total - before.get(region, 0))
        return members, moved

    def _tell(self) -> None:
        regions = self._regions()
        filling = {region: region.filling[0] for region in regions}
        everything = sum(filling.values())
        policy = self._controller.policy
        limits = RepairLimits(self._controller.rate, policy.extents_in_flight_max)
        for region, members in filling.items():
            # One that fills nobody yet may begin to at any time.
            region.set_repair_limits(limits.share(everything, members or 1))
