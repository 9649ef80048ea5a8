"""Simulated time: a heap of what is to happen, and a clock that jumps from one to the next.

Invariants: time never goes back; what is due at the same time happens in the order in which it was
scheduled; nothing happens but by `step`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Timer:
    """Something that is to happen; `cancel` makes it not happen."""

    __slots__ = ("_arguments", "_call")

    def __init__(self, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._call: Callable[..., None] | None = call
        self._arguments = arguments

    def cancel(self) -> None:
        """Forgets it. Harmless when it is over."""
        self._call = None

    def fire(self) -> None:
        """Does it, unless cancelled; once."""
        call, self._call = self._call, None
        if call is not None:
            call(*self._arguments)


class Schedule:
    """The clock and the heap. Times are in seconds from the start of the run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0

    def later(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """`call(*arguments)` after so many seconds."""
        self._order += 1
        heapq.heappush(self._heap, (self.now + seconds, self._order, call, arguments))

    def timer(self, seconds: float, call: Callable[..., None], *arguments: Any) -> Timer:
        """As `later`, for what may be cancelled."""
        timer = Timer(call, arguments)
        self.later(seconds, timer.fire)
        return timer

    def step(self) -> None:
        """The next thing that is due. Only while there is one."""
        at, _order, call, arguments = heapq.heappop(self._heap)
        if at > self.now:
            self.now = at
        self.steps += 1
        call(*arguments)

    def run(self, seconds: float) -> None:
        """Everything that is due within so many seconds; the clock stands at their end then."""
        end = self.now + seconds
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.step()
        self.now = end

    def run_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Steps until `condition` holds, for so many seconds at most. Whether it holds."""
        end = self.now + seconds
        while not condition():
            if not self._heap or self._heap[0][0] > end:
                self.now = end
                return condition()
            self.step()
        return True
