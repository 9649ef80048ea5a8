"""What a picture of a replacement tells: phases, and the guest's samples around them. Pure.

Times are seconds from the moment the replacement was asked for; before it they are negative.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.cli.render import replacement_word
from controlplane.cli.units import format_bytes, format_seconds
from controlplane.cli.watch import has_ended, repair_seconds
from stairwell.controlplane.v1.replacement_service_pb2 import Replacement
from stairwell.vmmd.v1.volume_service_pb2 import VolumeSample


@dataclass(frozen=True, slots=True)
class Phase:
    """A state of the workflow, while it lasted."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Moment:
    """A sample in the picture's units: seconds, milliseconds, bytes a second. Latencies are None
    where nothing was completed; `limit` is None where none was in force."""

    start: float
    end: float
    p50: float | None
    p99: float | None
    guest: float
    repair: float
    limit: float | None


@dataclass(frozen=True, slots=True)
class Story:
    """One replacement with what was around it. `end`: when it ended, or the last that is known."""

    title: str
    phases: tuple[Phase, ...]
    moments: tuple[Moment, ...]
    end: float
    summary: str


def tell(replacement: Replacement, samples: Sequence[VolumeSample], around: float) -> Story:
    """The story with `around` seconds before and after. `samples` may cover more, or less."""
    origin = replacement.create_time.ToNanoseconds()
    last = replacement.update_time.ToNanoseconds()
    moments = [_moment(one, origin) for one in samples]
    ended = has_ended(replacement)
    newest = moments[-1].end if moments else 0.0
    end = (last - origin) / 1e9 if ended else max(newest, (last - origin) / 1e9)
    shown = tuple(one for one in moments if one.end > -around and one.start < end + around)
    phases = _phases(replacement, origin, end)
    state = replacement_word(replacement.state)
    title = (
        f"{replacement.disk} slot {replacement.slot}: {replacement.old_target} -> "
        f"{replacement.new_target}, {state}"
    )
    return Story(title, phases, shown, end, _summary(replacement, shown, end))


def _phases(replacement: Replacement, origin: int, end: float) -> tuple[Phase, ...]:
    found: list[Phase] = []
    steps = list(replacement.transitions)
    for number, step in enumerate(steps):
        start = (step.time.ToNanoseconds() - origin) / 1e9
        is_last = number + 1 == len(steps)
        until = end if is_last else (steps[number + 1].time.ToNanoseconds() - origin) / 1e9
        name = replacement_word(step.state)
        if is_last and has_ended(replacement):
            break
        if found and found[-1].name == name:
            found[-1] = Phase(name, found[-1].start, until)
        else:
            found.append(Phase(name, start, until))
    return tuple(found)


def _moment(sample: VolumeSample, origin: int) -> Moment:
    end = (sample.end_time.ToNanoseconds() - origin) / 1e9
    seconds = max(sample.seconds, 1e-6)
    served = sample.completed > 0
    limit = sample.repair_bytes_per_second_max
    return Moment(
        start=end - sample.seconds,
        end=end,
        p50=sample.p50_milliseconds if served else None,
        p99=sample.p99_milliseconds if served else None,
        guest=(sample.read_bytes + sample.write_bytes) / seconds,
        repair=sample.repair_bytes / seconds,
        limit=float(limit) if limit and sample.members_filled else None,
    )


def _summary(replacement: Replacement, moments: Sequence[Moment], end: float) -> str:
    """The figures in words."""
    parts = []
    groups = (
        ("before", [one for one in moments if one.end <= 0]),
        ("during", [one for one in moments if one.end > 0 and one.start < end]),
        ("after", [one for one in moments if one.start >= end]),
    )
    told = [
        f"{name} {format_seconds(statistics.median(times) / 1e3)}"
        for name, group in groups
        if (times := [one.p99 for one in group if one.p99 is not None])
    ]
    if told:
        parts.append(f"guest p99 (median of its samples): {', '.join(told)}")
    if replacement.bytes_copied:
        copied = format_bytes(replacement.bytes_copied)
        parts.append(f"{copied} copied in {format_seconds(repair_seconds(replacement))}")
    return "; ".join(parts)
