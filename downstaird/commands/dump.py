"""`downstaird dump`: the state of every extent, or of single blocks, of one region or of up to
three side by side."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from downstaird.core.engine import Engine
from downstaird.regions import opened
from stairlib.model.context import mismatches
from stairlib.model.errors import DataError, FieldViolation, InvalidRequestError
from stairlib.wire.frame import FLAG_DIRTY, FLAG_FAULTED, FLAG_INCOMPLETE

DIRECTORIES_MAX = 3
_LETTERS = ((FLAG_DIRTY, "D"), (FLAG_INCOMPLETE, "I"), (FLAG_FAULTED, "F"))


@dataclass(frozen=True, slots=True)
class Dump:
    """What to show: all extents, the blocks of one `extent`, or one `block` of the region."""

    directories: list[Path]
    extent: int | None = None
    block: int | None = None
    only_differences: bool = False
    json: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One extent or block. cells: for each column, what each region has there."""

    number: int
    cells: dict[str, list[str]]

    @property
    def differs(self) -> bool:
        """Whether a column is not the same in all regions."""
        return any(len(set(values)) > 1 for values in self.cells.values())


def dump(wanted: Dump) -> int:
    """Prints a table. 1 when regions were compared and something differs."""
    with ExitStack() as stack:
        engines = [stack.enter_context(opened(directory)) for directory in wanted.directories]
        _check(wanted, engines)
        names = [str(engine.definition.id) for engine in engines]
        lines = list(_lines(wanted, engines))
    different = [line for line in lines if line.differs]
    what = "extents" if wanted.extent is None and wanted.block is None else "blocks"
    shown = different if wanted.only_differences else lines
    if wanted.json:
        _print_json(wanted, names, what, shown, len(different))
    else:
        _print_table(wanted, names, what, shown)
        if len(engines) > 1:
            print(f"\n{len(different)} of {len(lines)} {what} differ")
    return 1 if different else 0


def _check(wanted: Dump, engines: Sequence[Engine]) -> None:
    first = engines[0].definition.geometry
    for directory, engine in zip(wanted.directories, engines, strict=True):
        geometry = engine.definition.geometry
        if geometry != first:
            raise InvalidRequestError(
                f"{directory} cannot be compared with {wanted.directories[0]}: it has "
                f"{geometry.describe()}, not {first.describe()}",
                reason="GEOMETRY_MISMATCH",
            )
    for flag, number, limit, what in (
        ("--extent", wanted.extent, first.extent_count, "extents"),
        ("--block", wanted.block, first.block_count, "blocks"),
    ):
        if number is not None and not 0 <= number < limit:
            rule = f"{number} is not one of the region's {limit} {what}"
            raise InvalidRequestError(f"{flag} {rule}", (FieldViolation(flag, rule),))


def _lines(wanted: Dump, engines: Sequence[Engine]) -> Iterator[Line]:
    geometry = engines[0].definition.geometry
    if wanted.block is not None:
        yield _block(wanted.block, engines)
    elif wanted.extent is not None:
        first = wanted.extent * geometry.blocks_per_extent
        yield from _letters(engines, first, geometry.blocks_per_extent)
    else:
        states = [engine.extent_states() for engine in engines]
        for extent in range(geometry.extent_count):
            digests = [_digest(engine, extent) for engine in engines]
            cells = {
                "gen": [str(int(state.generations[extent])) for state in states],
                "flush": [str(int(state.flushes[extent])) for state in states],
                "flags": [_flags(int(state.flags[extent])) for state in states],
                "digest": digests,
            }
            yield Line(extent, cells)


def _letters(engines: Sequence[Engine], first: int, count: int) -> Iterator[Line]:
    """Per block the regions with equal data, and with equal contexts, have the same letter."""
    blocks = [_blocks_of(engine, first, count) for engine in engines]
    for index in range(count):
        here = [found[index] for found in blocks]
        yield Line(
            first + index,
            {
                "data": _grouped([data for _, data, _ in here]),
                "context": _grouped([context for context, _, _ in here]),
                "state": [state for _, _, state in here],
            },
        )


def _grouped(values: Sequence[Hashable]) -> list[str]:
    letters: dict[Hashable, str] = {}
    for value in values:
        letters.setdefault(value, "ABC"[len(letters)])
    return [letters[value] for value in values]


def _block(block: int, engines: Sequence[Engine]) -> Line:
    found = [_blocks_of(engine, block, 1)[0] for engine in engines]
    return Line(
        block,
        {
            "state": [state for _, _, state in found],
            "data xxh3": [data for _, data, _ in found],
            "context": [context for context, _, _ in found],
        },
    )


def _blocks_of(engine: Engine, first: int, count: int) -> list[tuple[str, str, str]]:
    """(context, hash of the data, state) of each block; blocks that cannot be read say so."""
    definition = engine.definition
    size = definition.geometry.block_size
    try:
        contexts, buffers = engine.read(first, count)
    except DataError:
        return [("-", "-", "damaged")] * count
    data = b"".join(buffers)
    bad = set(mismatches(data, contexts, size, encrypted=definition.encrypted))
    raw = np.ascontiguousarray(contexts, dtype="<u8").tobytes()
    width = len(raw) // count
    found = []
    for index in range(count):
        context = raw[index * width : (index + 1) * width]
        state = "bad" if index in bad else "written" if any(context) else "unwritten"
        hashed = xxhash.xxh3_64_hexdigest(data[index * size : (index + 1) * size])
        found.append((context.hex(), hashed, state))
    return found


def _print_table(wanted: Dump, names: list[str], what: str, lines: Sequence[Line]) -> None:
    for number, (directory, name) in enumerate(zip(wanted.directories, names, strict=True)):
        print(f"{number}  {directory}  region {name}")
    print()
    if wanted.block is not None:
        _print_block(lines)
        return
    if not lines:
        return
    heads = [f"{title} {at}" for title in lines[0].cells for at in range(len(names))]
    print(f"{what[:-1]:>12} " + " ".join(f"{head:>9}" for head in heads))
    for line in lines:
        cells = " ".join(f"{cell:>9}" for column in line.cells.values() for cell in column)
        mark = "  <---" if line.differs else ""
        print(f"{line.number:>12} {cells}{mark}")


def _print_block(lines: Sequence[Line]) -> None:
    for line in lines:
        print(f"block {line.number}")
        for title, values in line.cells.items():
            mark = "  <---" if len(set(values)) > 1 else ""
            for at, value in enumerate(values):
                print(f"  {title:<10} {at}  {value}{mark}")


def _print_json(
    wanted: Dump, names: list[str], what: str, lines: Sequence[Line], different: int
) -> None:
    regions = [
        {"directory": str(directory), "region": name}
        for directory, name in zip(wanted.directories, names, strict=True)
    ]
    shown = [
        {what[:-1]: line.number, "differs": line.differs}
        | {title.replace(" ", "_"): values for title, values in line.cells.items()}
        for line in lines
    ]
    print(json.dumps({"regions": regions, "different": different, what: shown}, indent=2))


def _flags(flags: int) -> str:
    return "".join(letter for flag, letter in _LETTERS if flags & flag) or "-"


def _digest(engine: Engine, extent: int) -> str:
    try:
        return f"{engine.digest(extent):016x}"[:8]
    except DataError:
        return "damaged"
