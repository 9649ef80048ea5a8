"""Goes through what power loss could leave of a workload, and opens all of it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from downstaird.store.memory import MemoryDisk
from tests.crashes.power import Choice, Medium, picks
from tests.crashes.recording import Operation, RecordingDisk
from tests.crashes.workload import Expected, Workload, opened
from tests.property.region_crashes import ViolationError

# Making a region is the same every time: looked at in one seed of so many.
_CREATION_EVERY = 20
_TAKEN_BEFORE = frozenset({"sync", "sync-directory", "expect"})


@dataclass(frozen=True, slots=True)
class Bounds:
    """most: states that are enumerated at one place; where there are more, `samples` are drawn.
    nested: how often a recovery is itself cut off, of a hundred. steps: of the workload."""

    most: int = 256
    samples: int = 24
    nested: float = 1.0
    steps: int = 14


SHORT = Bounds()
LONG = Bounds(most=4096, samples=240, nested=2.0, steps=40)


@dataclass
class Found:
    """What was gone through; error is empty where all was well. crash: the number of the state."""

    seed: int
    states: int = 0
    nested: int = 0
    places: int = 0
    places_whole: int = 0
    operations: int = 0
    crash: int = -1
    error: str = ""
    log: list[str] = field(default_factory=list)


def places(log: Sequence[Operation]) -> Iterator[tuple[int, Medium, Expected]]:
    """Where states are taken: the number of operations before, and what may be there."""
    medium = Medium()
    expected: Expected | None = None
    for index, operation in enumerate(log):
        if expected is not None and operation.kind in _TAKEN_BEFORE:
            yield index, medium, expected
        if operation.kind == "expect":
            expected = operation.expected
        else:
            medium.apply(operation)
    if expected is not None:
        yield len(log), medium, expected


def recorded(seed: object, steps: int, inner: Any = None) -> tuple[RecordingDisk, Workload]:
    """A workload, run to its end."""
    disk = RecordingDisk(inner if inner is not None else MemoryDisk())
    workload = Workload(disk, seed)
    workload.run(steps)
    workload.region.close()
    return disk, workload


def go_through(
    seed: int, bounds: Bounds, *, only: int | None = None, steps: int | None = None
) -> Found:
    """All states of one seed. only: the number of the one to look at."""
    found = Found(seed)
    try:
        disk, _ = recorded(seed, steps or bounds.steps)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        found.error = f"in the workload: {type(error).__name__}: {error}"
        return found
    rng = random.Random(f"states {seed}")
    seen: set[int] = set()
    found.operations = len(disk.log)
    for index, medium, expected in places(disk.log):
        if expected.absent and seed % _CREATION_EVERY:
            continue
        choices = medium.choices()
        whole, ways = picks(choices, bounds.most, bounds.samples, rng)
        found.places += 1
        found.places_whole += whole
        for way in ways:
            key = _key(medium, choices, way, expected)
            if key in seen:
                continue
            seen.add(key)
            number = found.states
            found.states += 1
            deeper = rng.random() * 100 < bounds.nested
            if only is not None and number != only:
                continue
            try:
                _look(seed, medium, choices, way, expected, found if deeper else None)
            except Exception as error:  # noqa: BLE001 - as above
                found.crash = number
                found.error = f"{type(error).__name__}: {error}"
                found.log = story(disk.log, index, choices, way, expected)
                return found
    return found


def _key(medium: Medium, choices: Sequence[Choice], way: Sequence[int], expected: Expected) -> int:
    """Equal for equal states that may hold the same."""
    chosen = [
        (choice.file, choice.sector, hash(str(option) if choice.file < 0 else option))
        for choice, index in zip(choices, way, strict=True)
        if index
        for option in (choice.options[index],)
    ]
    return hash((medium.base(), tuple(chosen), id(expected)))


def _look(
    seed: int,
    medium: Medium,
    choices: Sequence[Choice],
    way: Sequence[int],
    expected: Expected,
    deeper: Found | None,
) -> None:
    disk = MemoryDisk()
    medium.put(choices, way, disk)
    region = opened(disk, expected)
    if region is None:
        return
    state = expected.check(region)
    generation = region.ownership.generation
    region.close()
    if deeper is None:
        return
    again = MemoryDisk()
    medium.put(choices, way, again)
    recording = RecordingDisk(again)
    recording.adopt({name: again.stored_pages(name) for name in again.names()})
    # What is found first stays: a second power cut, during the opening or after, changes nothing.
    workload = Workload(recording, f"{seed} again", found=(state, generation))
    workload.run(2)
    workload.region.close()
    rng = random.Random(f"deeper {seed} {deeper.states}")
    for _, below, then in places(recording.log):
        inner = below.choices()
        for inner_way in picks(inner, 4, 3, rng)[1]:
            deeper.nested += 1
            disk = MemoryDisk()
            below.put(inner, inner_way, disk)
            reopened = opened(disk, then)
            if reopened is None:
                raise ViolationError("the region is gone after a second power cut")
            then.check(reopened)
            reopened.close()


def story(
    log: Sequence[Operation],
    index: int,
    choices: Sequence[Choice],
    way: Sequence[int],
    expected: Expected,
) -> list[str]:
    """What happened, what got out, and what was expected, a line each."""
    names: dict[int, str] = {}
    lines = []
    for number, operation in enumerate(log[:index]):
        if operation.name:
            names[operation.file] = operation.name
        lines.append(f"{number:5}  {operation.line()}")
    lines.append("power is lost; of what was not synced this is on the medium:")
    for choice, picked in zip(choices, way, strict=True):
        if choice.file < 0:
            text = f"directory: {picked} of {len(choice.options) - 1} changes"
        else:
            what = "size" if choice.sector < 0 else f"sector {choice.sector}"
            text = f"{names[choice.file]}, {what}: version {picked} of {len(choice.options) - 1}"
        lines.append(f"       {text}")
    lines.append(f"expected: {expected}")
    return lines
