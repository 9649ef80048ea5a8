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
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

BEAT_SECONDS = 0.001


class Turns:
    """What was measured since it was last told."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.used: list[float] = []
        self.searches: dict[int, list[float]] = {}
        self._began = 0.0

    async def beat(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.tell)
        before = time.thread_time()
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            now = time.thread_time()
            self.used.append(now - before)
            before = now

    def searched(self, phase: str, info: dict[str, int]) -> None:
        """For gc.callbacks."""
        if phase == "start":
            self._began = time.thread_time()
        else:
            took = time.thread_time() - self._began
            self.searches.setdefault(info["generation"], []).append(took)

    def tell(self) -> None:
        used, self.used = sorted(self.used), []
        searches, self.searches = self.searches, {}
        told: dict[str, Any] = {"beats": len(used)}
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("longest", 1.0)):
            told[name] = 1e3 * used[min(len(used) - 1, int(share * len(used)))] if used else 0.0
        told["searches"] = {
            generation: {"number": len(each), "longest": 1e3 * max(each)}
            for generation, each in sorted(searches.items())
        }
        new = self.where.with_suffix(".new")
        new.write_text(json.dumps(told))
        new.replace(self.where)


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
