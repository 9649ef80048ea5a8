"""An asyncio event loop on simulated time, for the few parts that are coroutines.

It has what futures, tasks, events, sleeps and timeouts need, and no input or output. Callbacks run
from the schedule, in the order in which they were asked for, and nothing runs by itself.
"""

from __future__ import annotations

import asyncio

# What asyncio has for those who write event loops.
from asyncio.events import _get_running_loop, _set_running_loop
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

from stairlib.sim.schedule import Schedule, Timer


class SimulatedLoop(asyncio.AbstractEventLoop):
    """See the module."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        # What no task caught.
        self.failures: list[str] = []

    def time(self) -> float:
        """The simulated clock."""
        return self._schedule.now

    def get_debug(self) -> bool:
        """Never."""
        return False

    def is_running(self) -> bool:
        """Always: whoever is called by the schedule is inside."""
        return True

    def is_closed(self) -> bool:
        """Never."""
        return False

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> _Handle:
        """In the next step of the schedule that is due now."""
        return self.call_later(0.0, callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
    ) -> _Handle:
        """After so many simulated seconds."""
        timer = self._schedule.timer(max(0.0, delay), self._run, callback, args, context)
        return _Handle(timer, self.time() + delay)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> _Handle:
        """At that simulated time."""
        return self.call_later(when - self.time(), callback, *args, context=context)

    def _run(self, callback: Callable[..., Any], args: tuple[Any, ...], context: Any) -> None:
        before = _get_running_loop()
        _set_running_loop(self)
        try:
            if context is None:
                callback(*args)
            else:
                context.run(callback, *args)
        finally:
            _set_running_loop(before)

    def inside(self, make: Callable[[], Any]) -> Any:
        """`make()` as it would run on the loop; what it returns."""
        found: list[Any] = []
        self._run(lambda: found.append(make()), (), None)
        return found[0]

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], **_options: Any
    ) -> asyncio.Task[Any]:
        """A task of this loop; it starts when the schedule gets there."""
        return asyncio.Task(coro, loop=self)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keeps it for whoever looks at `failures`."""
        self.failures.append(f"{context.get('message')}: {context.get('exception')!r}")


class _Handle:
    """A callback that may be cancelled."""

    def __init__(self, timer: Timer, when: float) -> None:
        self._timer = timer
        self._when = when

    def cancel(self) -> None:
        """Forgets it."""
        self._timer.cancel()

    def when(self) -> float:
        """When it is due, on the loop's clock."""
        return self._when

    def cancelled(self) -> bool:
        """Not told."""
        return False
