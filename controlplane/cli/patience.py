"""Waiting as long as a daemon asks of a caller who calls too often, within the time of a call."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from stairlib.model.errors import CallRateError

# Several that were refused at once do not come back at once: each waits up to so much longer.
SPREAD = 0.5


class Patience:
    """Of one call: `seconds` in all. A call that was refused so was not begun, so that any may be
    made again."""

    def __init__(
        self,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._chance = chance
        self._ends = clock() + seconds

    def left(self) -> float:
        """Seconds until the call has to have its answer; a moment when there are none."""
        return max(0.001, self._ends - self._clock())

    async def wait(self, error: CallRateError) -> None:
        """Returns when the call may be made again; raises the error where that is too late."""
        seconds = error.retry_seconds * (1 + SPREAD * self._chance())
        if error.retry_seconds >= self._ends - self._clock():
            raise error
        await self._sleep(min(seconds, self.left()))
