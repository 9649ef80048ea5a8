"""Errors and delays on purpose, for tests of what is above: `--lossy`, `--read-errors` and the
like."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from downstaird.core.engine import Buffer, Engine, FlushWork, ReadWork
from stairlib.model.context import ContextArray
from stairlib.model.errors import DataError

# As the daemons this one stands in for: one in four.
CHANCE = 0.25
LOSSY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """What goes wrong. read_errors, write_errors, flush_errors: how likely each fails, 0 to 1.
    latency_seconds is added to each request frame."""

    lossy: bool = False
    read_errors: float = 0.0
    write_errors: float = 0.0
    flush_errors: float = 0.0
    latency_seconds: float = 0.0

    @property
    def any_errors(self) -> bool:
        """Whether engine calls fail."""
        return any((self.read_errors, self.write_errors, self.flush_errors))


class Delays:
    """How long each request frame is held back."""

    def __init__(self, plan: FaultPlan, chance: random.Random) -> None:
        self._plan = plan
        self._chance = chance

    def next(self, *, lossy: bool = False) -> float:
        """Seconds for the next frame of a session, which may be lossy by its own wish."""
        seconds = self._plan.latency_seconds
        if (lossy or self._plan.lossy) and self._chance.random() < CHANCE:
            seconds += LOSSY_SECONDS
        return seconds


def with_faults(engine: Engine, plan: FaultPlan, chance: random.Random) -> Engine:
    """The engine, with calls that fail by chance where the plan says so; the same object
    otherwise."""
    if not plan.any_errors:
        return engine

    def fail(probability: float, what: str) -> None:
        if probability and chance.random() < probability:
            raise _error(what)

    read, write, begin = engine.read, engine.write, engine.begin_flush

    class Faulty:
        """Passes everything on but reads, writes and flushes."""

        def __getattr__(self, name: str) -> object:
            return getattr(engine, name)

        def read(self, offset: int, count: int) -> tuple[ContextArray, Sequence[Buffer]]:
            fail(plan.read_errors, "read")
            return read(offset, count)

        def begin_read(self, _offset: int, _count: int) -> ReadWork | None:
            """None: what a repair reads fails by the same chance."""
            return None

        def write(self, offset: int, contexts: ContextArray, data: Buffer) -> None:
            fail(plan.write_errors, "write")
            write(offset, contexts, data)

        def write_scattered(
            self, _offsets: Sequence[int], _contexts: ContextArray, _data: Buffer
        ) -> bool:
            """False: each write fails, or not, by itself."""
            return False

        def begin_flush(self, number: int, generation: int, snapshot: str = "") -> FlushWork:
            fail(plan.flush_errors, "flush")
            return begin(number, generation, snapshot)

    faulty: Engine = Faulty()  # type: ignore[assignment]
    return faulty


def _error(what: str) -> DataError:
    return DataError(f"{what} failed on purpose (the daemon runs with faults)", reason="IO_ERROR")
