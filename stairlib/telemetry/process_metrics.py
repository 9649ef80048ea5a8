"""What every daemon tells of its own process: memory and processor time.

Names and units are OpenTelemetry's (semantic conventions, process metrics). Read from /proc when
somebody asks.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from opentelemetry.metrics import CallbackOptions, Observation

from stairlib.telemetry.metrics import Metric, Metrics

MEMORY: Final = Metric(
    "process.memory.usage", "gauge", "By", "Physical memory that the process uses"
)
PROCESSOR: Final = Metric(
    "process.cpu.time", "counter", "s", "Processor time that the process has used"
)
UPTIME: Final = Metric("process.uptime", "gauge", "s", "The time since the process told of itself")
PROCESS_METRICS: Final = (MEMORY, PROCESSOR, UPTIME)

_STATM = Path("/proc/self/statm")


def memory_bytes() -> int:
    """Physical memory that this process uses."""
    return int(_STATM.read_text().split()[1]) * resource.getpagesize()


def observe_process(metrics: Metrics) -> None:
    """Tells them from now on."""
    began = time.monotonic()

    def memory(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(memory_bytes())

    def processor(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(time.process_time())

    def uptime(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(time.monotonic() - began)

    metrics.observe(MEMORY, memory)
    metrics.observe(PROCESSOR, processor)
    metrics.observe(UPTIME, uptime)
