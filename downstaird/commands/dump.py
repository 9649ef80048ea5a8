"""`downstaird dump`: the state of every extent, of one region or of several side by side."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from downstaird.core.engine import FLAG_DIRTY, FLAG_FAULTED, FLAG_INCOMPLETE, Engine
from downstaird.regions import opened
from stairlib.model.errors import DataError, InvalidRequestError

_LETTERS = ((FLAG_DIRTY, "D"), (FLAG_INCOMPLETE, "I"), (FLAG_FAULTED, "F"))


def dump(directories: list[Path], *, only_differences: bool) -> int:
    """Prints a table. 1 when regions were compared and an extent differs."""
    with ExitStack() as stack:
        engines = [stack.enter_context(opened(directory)) for directory in directories]
        _check_comparable(directories, engines)
        for number, (directory, engine) in enumerate(zip(directories, engines, strict=True)):
            print(f"{number}  {directory}  region {engine.definition.id}")
        print()
        return _compare(engines, only_differences=only_differences)


def _check_comparable(directories: list[Path], engines: list[Engine]) -> None:
    first = engines[0].definition
    for directory, engine in zip(directories, engines, strict=True):
        if engine.definition.geometry != first.geometry:
            raise InvalidRequestError(
                f"{directory} cannot be compared with {directories[0]}: it has "
                f"{engine.definition.geometry.describe()}, not {first.geometry.describe()}",
                reason="GEOMETRY_MISMATCH",
            )


def _compare(engines: list[Engine], *, only_differences: bool) -> int:
    geometry = engines[0].definition.geometry
    states = [engine.extent_states() for engine in engines]
    names = range(len(engines))
    heads = [f"{title} {name}" for title in ("gen", "flush", "flags", "digest") for name in names]
    print(f"{'extent':>8} {'first block':>12} " + " ".join(f"{head:>9}" for head in heads))
    different = 0
    for extent in range(geometry.extent_count):
        columns = [
            [str(int(state.generations[extent])) for state in states],
            [str(int(state.flushes[extent])) for state in states],
            [_flags(int(state.flags[extent])) for state in states],
            [_digest(engine, extent) for engine in engines],
        ]
        differs = any(len(set(column)) > 1 for column in columns)
        different += differs
        if only_differences and not differs:
            continue
        cells = " ".join(f"{cell:>9}" for column in columns for cell in column)
        mark = "  <---" if differs else ""
        print(f"{extent:>8} {extent * geometry.blocks_per_extent:>12} {cells}{mark}")
    if len(engines) > 1:
        print(f"\n{different} of {geometry.extent_count} extents differ")
    return 1 if different else 0


def _flags(flags: int) -> str:
    return "".join(letter for flag, letter in _LETTERS if flags & flag) or "-"


def _digest(engine: Engine, extent: int) -> str:
    try:
        return f"{engine.digest(extent):016x}"[:8]
    except DataError:
        return "damaged"
