"""`downstaird clone`: a new region as a copy of one that is served read-only elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from time import monotonic

from downstaird import regions
from downstaird.cloning import CloneProgress, Cloning, ask_source
from downstaird.config import CloneOptions
from stairlib.model.errors import StairwellError
from stairlib.runtime import process
from stairlib.runtime.process import StopSignal
from stairlib.telemetry import logs
from stairlib.telemetry.tracing import Tracing

SERVICE = "downstairs-clone"
# A line this often: enough to see that it goes on.
PROGRESS_SECONDS = 1.0


def clone(options: CloneOptions) -> int:
    """Clones, and says how far it is. 0 when the region is whole and durable."""
    logs.configure(SERVICE, level="error")
    return process.run(lambda stop: _clone(options, stop))


async def _clone(options: CloneOptions, stop: StopSignal) -> int:
    tracing = Tracing(SERVICE, str(options.directory))
    try:
        task = await ask_source(options.source, tracing, options.id, options.expected, options.tls)
        unfinished = regions.open_clone(options.directory, task.definition)
        cloning = Cloning(task, unfinished, tracing, _Printer(options).show)
        done = await _until_stopped(cloning, stop)
    finally:
        tracing.shutdown()
    if done is None:
        return 1
    geometry = task.definition.geometry
    print(
        f"cloned region {options.id} in {options.directory} from {options.source}: "
        f"{geometry.describe()}, {_mib(done.bytes_copied)} MiB copied, equal and durable"
    )
    return 0


async def _until_stopped(cloning: Cloning, stop: StopSignal) -> CloneProgress | None:
    """None when a signal came first."""
    running = asyncio.ensure_future(cloning.run())
    stopped = asyncio.ensure_future(stop.event.wait())
    try:
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    except StairwellError:
        _say_how_to_go_on()
        raise
    finally:
        stopped.cancel()
    _say_how_to_go_on()
    return None


def _say_how_to_go_on() -> None:
    print(
        "downstaird: the clone is not finished; what was copied is kept, run the same command "
        "again to go on",
        file=sys.stderr,
    )


class _Printer:
    """Progress as lines."""

    def __init__(self, options: CloneOptions) -> None:
        self._source = options.source
        self._next = monotonic() + PROGRESS_SECONDS

    def show(self, progress: CloneProgress) -> None:
        """Prints, unless it did so a moment ago."""
        now = monotonic()
        if now < self._next:
            return
        self._next = now + PROGRESS_SECONDS
        print(
            f"{progress.extents_done} of {progress.extents_total} extents are as at "
            f"{self._source}, {_mib(progress.bytes_copied)} MiB copied",
            flush=True,
        )


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.1f}"
