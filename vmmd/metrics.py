"""vmmd's metrics: its machines, how their volumes are, and what their guests feel.

Each is declared in `METRICS`, of which docs/metrics.md is made. A machine's process keeps the
figures; it is asked when somebody reads, and nothing is counted for them on the way of a request.
Counts begin anew with the machine. A guest's latencies come from another process ready-made, which
OpenTelemetry's histograms do not take: they are a counter with the label `le` (ADR 0044).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
from opentelemetry.metrics import CallbackOptions, Observation

from stairlib.model.errors import StairwellError
from stairlib.rpc.errors import translated
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.metrics import Metric, Metrics
from stairlib.telemetry.process_metrics import observe_process
from stairwell.vmmd.v1 import machine_process_service_pb2 as pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from stairwell.vmmd.v1.machine_process_service_pb2_grpc import MachineProcessServiceStub
from vmmd.core.lifecycle import MachineState

if TYPE_CHECKING:
    from vmmd.supervisor.machines import Machines

_log = get_logger(__name__)

_DISK: Final = ("machine", "disk")
MACHINES = Metric(
    "stairwell.machines", "gauge", "{machine}", "Machines of this host, by state", ("state",)
)
SILENT = Metric(
    "stairwell.machines.silent",
    "gauge",
    "{machine}",
    "Machines whose process did not tell its figures in time; what follows lacks them",
)
MEMORY = Metric(
    "stairwell.machine.memory",
    "gauge",
    "By",
    "Physical memory that a machine's process uses",
    ("machine",),
)
PROCESSOR = Metric(
    "stairwell.machine.cpu.time",
    "counter",
    "s",
    "Processor time that a machine's process has used",
    ("machine",),
)
STATE = Metric(
    "stairwell.volume.state",
    "gauge",
    "{volume}",
    "1 for the state the volume is in, 0 for each other one",
    (*_DISK, "state"),
)
SLOTS = Metric(
    "stairwell.volume.slots",
    "gauge",
    "{slot}",
    "Slots of a region of the volume, by the state of their member: active ones are whole",
    (*_DISK, "region", "state"),
)
REQUESTS = Metric(
    "stairwell.volume.requests",
    "counter",
    "{request}",
    "Requests that the guest has submitted, by kind: read, write, flush, discard",
    (*_DISK, "kind"),
)
BYTES = Metric(
    "stairwell.volume.io",
    "counter",
    "By",
    "Bytes that the guest has read, written and discarded: read, write, discard",
    (*_DISK, "direction"),
)
FAILED = Metric(
    "stairwell.volume.failures",
    "counter",
    "{request}",
    "Requests of the guest that were answered with an error, by kind and reason: failed, "
    "read_only, unsupported, out_of_range",
    (*_DISK, "kind", "reason"),
)
LATENCY = Metric(
    "stairwell.volume.latency.bucket",
    "counter",
    "{request}",
    "Completed requests of the guest that took less than `le` seconds: for histogram_quantile. "
    "What was submitted together counts as the slowest kind in it",
    (*_DISK, "kind", "le"),
)
WAITED = Metric(
    "stairwell.volume.latency.sum",
    "counter",
    "s",
    "The time that all completed requests of the guest took, summed",
    (*_DISK, "kind"),
)
SIZES = Metric(
    "stairwell.volume.size.bucket",
    "counter",
    "{request}",
    "Requests of the guest of at most `le` bytes, as they reach the volume, by kind: read, write, "
    "discard",
    (*_DISK, "kind", "le"),
)
IN_FLIGHT = Metric(
    "stairwell.volume.in_flight",
    "gauge",
    "{request}",
    "Requests of the guest that are not completed",
    _DISK,
)
WAITING = Metric(
    "stairwell.volume.waiting",
    "gauge",
    "{request}",
    "Those of them that wait until the members have room: back-pressure",
    _DISK,
)
JOBS = Metric(
    "stairwell.volume.slot.jobs",
    "gauge",
    "{job}",
    "Jobs in flight on a member, or held for one that is away",
    (*_DISK, "region", "slot"),
)
JOB_BYTES = Metric(
    "stairwell.volume.slot.bytes",
    "gauge",
    "By",
    "Bytes of these jobs",
    (*_DISK, "region", "slot"),
)
REPAIRS = Metric(
    "stairwell.volume.repairs",
    "counter",
    "{repair}",
    "Repairs of the members that serve now, by how they ended: completed, aborted",
    (*_DISK, "outcome"),
)
REPAIR_LEFT = Metric(
    "stairwell.volume.repair.remaining",
    "gauge",
    "By",
    "What running repairs have yet to look at",
    _DISK,
)
MISMATCHES = Metric(
    "stairwell.volume.read.mismatches",
    "counter",
    "{read}",
    "Reads that failed their integrity check on one member and were served by another",
    _DISK,
)
HEALED = Metric(
    "stairwell.volume.healed",
    "counter",
    "{block}",
    "Blocks of such reads that were written again from a good copy",
    _DISK,
)
SCRUBBED = Metric(
    "stairwell.volume.scrub.remaining",
    "gauge",
    "By",
    "What running scrubs have yet to copy from read-only parents",
    _DISK,
)

# A machine's process that does not answer in this time is left out; a loop that does not is told of
# by its absence.
FIGURES_SECONDS: Final = 3.0
ASK_SECONDS: Final = 5.0
# One reading asks each machine once: what is told is of one moment.
FRESH_SECONDS: Final = 0.5

Figures: TypeAlias = pb.GetFiguresResponse
Labels: TypeAlias = dict[str, str]
Tell: TypeAlias = Callable[[Labels, pb.VolumeFigures], Iterator[Observation]]


# As clients print them.
_VOLUME_STATES: Final = {
    number: name.removeprefix("VOLUME_STATE_").lower()
    for name, number in volume_pb.VolumeState.items()
    if number
}
_SLOT_STATES: Final = {
    number: name.removeprefix("SLOT_STATE_").lower()
    for name, number in volume_pb.SlotState.items()
    if number
}


def _state(labels: Labels, figures: pb.VolumeFigures) -> Iterator[Observation]:
    for number, word in _VOLUME_STATES.items():
        yield Observation(int(figures.volume.state == number), labels | {"state": word})


def _slots(labels: Labels, figures: pb.VolumeFigures) -> Iterator[Observation]:
    for region in figures.volume.regions:
        found = Counter(slot.state for slot in region.slots)
        for number, word in _SLOT_STATES.items():
            where = {"region": region.path, "state": word}
            yield Observation(found[number], labels | where)


def _requests(labels: Labels, figures: pb.VolumeFigures) -> Iterator[Observation]:
    counters = figures.volume.counters
    for kind, count in (
        ("read", counters.reads),
        ("write", counters.writes),
        ("flush", counters.flushes),
        ("discard", counters.discards),
    ):
        yield Observation(count, labels | {"kind": kind})


def _bytes(labels: Labels, figures: pb.VolumeFigures) -> Iterator[Observation]:
    counters = figures.volume.counters
    yield Observation(counters.read_bytes, labels | {"direction": "read"})
    yield Observation(counters.write_bytes, labels | {"direction": "write"})
    yield Observation(figures.discarded_bytes, labels | {"direction": "discard"})


def _failures(labels: Labels, figures: pb.VolumeFigures) -> Iterator[Observation]:
    for each in figures.failures:
        yield Observation(each.count, labels | {"kind": each.kind, "reason": each.reason})


def _latency(labels: Labels, figures: pb.VolumeFigures) -> Iterator[Observation]:
    for totals in figures.latencies:
        of_kind = labels | {"kind": totals.kind}
        for bound, below in zip(totals.bounds_seconds, totals.below, strict=True):
            yield Observation(below, of_kind | {"le": f"{bound:g}"})
        yield Observation(totals.count, of_kind | {"le": "+Inf"})


def _waited(labels: Labels, figures: pb.VolumeFigures) -> Iterator[Observation]:
    for totals in figures.latencies:
        yield Observation(totals.seconds, labels | {"kind": totals.kind})


def _sizes(labels: Labels, figures: pb.VolumeFigures) -> Iterator[Observation]:
    for totals in figures.sizes:
        of_kind = labels | {"kind": totals.kind}
        for bound, at_most in zip(totals.bounds_bytes, totals.at_most, strict=True):
            yield Observation(at_most, of_kind | {"le": str(bound)})
        yield Observation(totals.count, of_kind | {"le": "+Inf"})


def _jobs(name: str, labels: Labels, figures: pb.VolumeFigures) -> Iterator[Observation]:
    for load in figures.loads:
        where = {"region": load.region_path, "slot": str(load.slot)}
        yield Observation(getattr(load, name), labels | where)


def _repairs(labels: Labels, figures: pb.VolumeFigures) -> Iterator[Observation]:
    slots = [slot for region in figures.volume.regions for slot in region.slots]
    completed = sum(slot.repairs_completed for slot in slots)
    yield Observation(completed, labels | {"outcome": "completed"})
    yield Observation(sum(s.repairs_aborted for s in slots), labels | {"outcome": "aborted"})


def _repair_left(figures: pb.VolumeFigures) -> int:
    running = [
        slot.repair
        for region in figures.volume.regions
        for slot in region.slots
        if slot.HasField("repair")
    ]
    return sum(max(0, each.bytes_total - each.bytes_done) for each in running)


def _scrub_left(figures: pb.VolumeFigures) -> int:
    running = volume_pb.SCRUB_STATE_RUNNING
    scrubs = (each for each in figures.volume.scrubs if each.state == running)
    return sum(max(0, each.bytes_total - each.bytes_done) for each in scrubs)


def _one(read: Callable[[pb.VolumeFigures], float]) -> Tell:
    def tell(labels: Labels, figures: pb.VolumeFigures) -> Iterator[Observation]:
        yield Observation(read(figures), labels)

    return tell


# What is told of each volume.
_OF_VOLUMES: Final[tuple[tuple[Metric, Tell], ...]] = (
    (STATE, _state),
    (SLOTS, _slots),
    (REQUESTS, _requests),
    (BYTES, _bytes),
    (FAILED, _failures),
    (LATENCY, _latency),
    (WAITED, _waited),
    (SIZES, _sizes),
    (IN_FLIGHT, _one(lambda figures: figures.requests_in_flight)),
    (WAITING, _one(lambda figures: figures.requests_waiting)),
    (JOBS, partial(_jobs, "jobs")),
    (JOB_BYTES, partial(_jobs, "bytes")),
    (REPAIRS, _repairs),
    (REPAIR_LEFT, _one(_repair_left)),
    (MISMATCHES, _one(lambda figures: figures.volume.counters.read_mismatches)),
    (HEALED, _one(lambda figures: figures.volume.counters.blocks_healed)),
    (SCRUBBED, _one(_scrub_left)),
)
METRICS: Final = (MACHINES, SILENT, MEMORY, PROCESSOR, *(metric for metric, _ in _OF_VOLUMES))


class MachineMetrics:
    """The instruments of one vmmd. Whoever reads them has a thread of its own; machines are asked
    on the loop. End the metrics before the machines, and not on the loop."""

    def __init__(self, metrics: Metrics, machines: Machines) -> None:
        self._machines = machines
        self._loop = asyncio.get_running_loop()
        self._asking = asyncio.Lock()
        self._figures: list[tuple[str, Figures | None]] = []
        self._taken_at: float | None = None
        reads: list[tuple[Metric, Callable[[], list[Observation]]]] = [
            (MACHINES, self._states),
            (SILENT, self._silent),
            (MEMORY, self._memory),
            (PROCESSOR, self._processor),
            *((metric, partial(self._of_volumes, tell)) for metric, tell in _OF_VOLUMES),
        ]
        for metric, read in reads:
            metrics.observe(metric, partial(self._read, read))
        observe_process(metrics)

    def _read(
        self, tell: Callable[[], list[Observation]], _options: CallbackOptions
    ) -> list[Observation]:
        async def told() -> list[Observation]:
            await self._ask()
            return tell()

        return asyncio.run_coroutine_threadsafe(told(), self._loop).result(ASK_SECONDS)

    async def _ask(self) -> None:
        """Has every living machine tell its figures, if nobody did just now."""
        async with self._asking:
            if self._taken_at is not None and monotonic() - self._taken_at < FRESH_SECONDS:
                return
            self._figures = await asyncio.gather(
                *(self._told(name, channel) for name, channel in self._machines.channels())
            )
            self._taken_at = monotonic()

    async def _told(self, name: str, channel: grpc.aio.Channel) -> tuple[str, Figures | None]:
        stub: Any = MachineProcessServiceStub(channel)
        try:
            with translated("machine process"):
                return name, await stub.GetFigures(pb.GetFiguresRequest(), timeout=FIGURES_SECONDS)
        except StairwellError as error:
            _log.warning("machine's figures are missing", machine=name, error=error.message)
            return name, None

    def _states(self) -> list[Observation]:
        found = Counter(record.published.state for record in self._machines.records())
        return [Observation(found[state], {"state": state.value}) for state in MachineState]

    def _silent(self) -> list[Observation]:
        return [Observation(sum(figures is None for _, figures in self._figures))]

    def _memory(self) -> list[Observation]:
        return [Observation(figures.memory_bytes, labels) for labels, figures in self._answers()]

    def _processor(self) -> list[Observation]:
        told = self._answers()
        return [Observation(figures.processor_seconds, labels) for labels, figures in told]

    def _of_volumes(self, tell: Tell) -> list[Observation]:
        return [
            observation
            for labels, figures in self._answers()
            for volume in figures.volumes
            for observation in tell(labels | {"disk": volume.volume.disk}, volume)
        ]

    def _answers(self) -> Iterator[tuple[Labels, Figures]]:
        for name, figures in self._figures:
            if figures is not None:
                yield {"machine": name}, figures
