"""Runs a daemon's main coroutine on a uvloop loop, with signals as a clean request to stop.

Invariants: one loop per process; the first SIGTERM or SIGINT sets an event and nothing else, the
second one ends the process at once; a StairwellError that leaves main is one line on stderr and
exit status 1, not a traceback.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from stairlib.model.errors import StairwellError
from stairlib.telemetry import logs


@dataclass(slots=True)
class StopSignal:
    """The request to stop: `event` is set by the first signal, `number` is that signal or None."""

    event: asyncio.Event = field(default_factory=asyncio.Event)
    number: int | None = None

    def request(self, number: int | None = None) -> None:
        """Asks main to stop, as a signal would."""
        self.number = number if self.number is None else self.number
        self.event.set()


def run(main: Callable[[StopSignal], Coroutine[Any, Any, int]]) -> int:
    """Runs `main(stop)` to its end on a new loop; returns its exit status."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            # Not awaited on a loop yet: an asyncio.Event binds to its loop at the first wait.
            stop = StopSignal()
            loop = runner.get_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, _on_signal, stop, number)
            # What the imports made stays for good. Searched for garbage again and again, it would
            # stop the loop for 30 ms each time.
            gc.freeze()
            return runner.run(main(stop))
    except StairwellError as error:
        print(f"{Path(sys.argv[0]).name}: {error.message}", file=sys.stderr)
        return 1
    finally:
        logs.flush()


def _on_signal(stop: StopSignal, number: int) -> None:
    if stop.event.is_set() and stop.number is not None:
        # Someone waits and asked twice: no clean-up that could hang as well.
        os._exit(128 + number)
    stop.request(number)
