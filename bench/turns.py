"""Runs one of our programs and tells what the turns of its loop take.

    python -m bench.turns FILE PROGRAM [ARGUMENT...]

Every millisecond the loop is asked for a turn; what its thread has used of the processor since the
last one is what was done in between. That is told, not by how much a turn was late: it does not
depend on what else the machine does. Searches for garbage are told by their time. On SIGUSR1 writes
one JSON object to FILE, about what was since the last: `beats`, quantiles in milliseconds of the
processor as `p50 p99 p999 longest`, and by generation how many `searches` and the longest of each.
"""

from __future__ import annotations

import asyncio
import gc
import json
import runpy
import signal
import sys
import time
from array import array
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

BEAT_SECONDS = 0.001
# What turns are counted by, up to a quarter of a second.
STEP_SECONDS = 0.00005
STEPS = 5_000


class Turns:
    """What was measured since it was last told, in memory of a fixed size: it is measured too."""

    def __init__(self, where: Path) -> None:
        self.where = where
        # By how many whole steps a turn took.
        self.turns = array("L", [0] * STEPS)
        self.longest = 0.0
        self.searches = [[0, 0.0] for _ in range(3)]
        self._began = 0.0

    async def beat(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.tell)
        before = time.thread_time()
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            now = time.thread_time()
            self.turns[min(int((now - before) / STEP_SECONDS), STEPS - 1)] += 1
            self.longest = max(self.longest, now - before)
            before = now

    def searched(self, phase: str, info: dict[str, int]) -> None:
        """For gc.callbacks."""
        if phase == "start":
            self._began = time.thread_time()
        else:
            seen = self.searches[info["generation"]]
            seen[:] = seen[0] + 1, max(seen[1], time.thread_time() - self._began)

    def tell(self) -> None:
        told: dict[str, Any] = {
            "beats": sum(self.turns), "p50": self._quantile(0.5), "p99": self._quantile(0.99),
            "p999": self._quantile(0.999), "longest": 1e3 * self.longest,
            "searches": [
                {"number": number, "longest": 1e3 * longest} for number, longest in self.searches
            ],
        }  # fmt: skip
        self.turns = array("L", [0] * STEPS)
        self.longest = 0.0
        self.searches = [[0, 0.0] for _ in range(3)]
        new = self.where.with_suffix(".new")
        new.write_text(json.dumps(told))
        new.replace(self.where)

    def _quantile(self, share: float) -> float:
        """Milliseconds, to a step."""
        left = share * sum(self.turns)
        for number, turns in enumerate(self.turns):
            left -= turns
            if left <= 0:
                return 1e3 * STEP_SECONDS * (number + 1)
        return 0.0


def main(where: str, program: str, *arguments: str) -> None:
    turns = Turns(Path(where))
    run = asyncio.Runner.run

    def measured(runner: asyncio.Runner, main: Coroutine[Any, Any, Any], **more: Any) -> Any:
        async def both() -> Any:
            beating = asyncio.create_task(turns.beat())
            try:
                return await main
            finally:
                beating.cancel()

        return run(runner, both(), **more)

    asyncio.Runner.run = measured  # type: ignore[method-assign]
    gc.callbacks.append(turns.searched)
    sys.argv = [program, *arguments]
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
