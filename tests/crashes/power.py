"""What power loss may leave of a log of operations.

Legal is, for each file, what its last sync covered, with any choice, sector by sector (512 bytes),
among that and all that was written over it since, in whatever order; with any of the sizes it had
since. Of creations and renames since the directory was synced any number from the first on may
have happened. A crash between two syncs leaves nothing that one just before the later of them
could not leave as well, so states are taken before each sync and where what is expected changes.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from downstaird.core.disk import Disk
from tests.crashes.recording import Operation

SECTOR = 512
_NOTHING = bytes(SECTOR)


@dataclass(slots=True)
class _Content:
    """A file. `now` and `durable`: sectors that are not zeros. pending: per sector what it may hold
    besides what is durable."""

    now: dict[int, bytes] = field(default_factory=dict)
    durable: dict[int, bytes] = field(default_factory=dict)
    size: int = 0
    durable_size: int = 0
    pending: dict[int, list[bytes]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    syncs: int = 0

    def write(self, offset: int, data: bytes) -> None:
        """Sector by sector; the ends of an uneven write take the rest from what is there."""
        end = offset + len(data)
        first = offset // SECTOR
        head = self.now.get(first, _NOTHING)[: offset % SECTOR]
        tail = self.now.get(end // SECTOR, _NOTHING)[end % SECTOR :] if end % SECTOR else b""
        whole = head + data + tail
        for at in range(0, len(whole), SECTOR):
            self._set(first + at // SECTOR, whole[at : at + SECTOR])
        if end > self.size:
            self.resize(end)

    def _set(self, sector: int, data: bytes) -> None:
        versions = self.pending.setdefault(sector, [])
        if data not in versions:
            versions.append(data)
        self.now[sector] = data

    def resize(self, size: int) -> None:
        """What is behind a cut reads as zeros, should the file grow again."""
        if size < self.size:
            for sector in [sector for sector in self.now if sector >= -(-size // SECTOR)]:
                self._set(sector, _NOTHING)
        self.size = size
        if size not in self.sizes:
            self.sizes.append(size)

    def sync(self) -> None:
        """All of it is durable."""
        if self.pending or self.sizes:
            self.syncs += 1
        self.durable = dict(self.now)
        self.durable_size = self.size
        self.pending = {}
        self.sizes = []

    def choices(self) -> Iterator[tuple[int, list[Any]]]:
        """(sector, what it may hold, oldest first); sector -1 is the size."""
        sizes = [self.durable_size, *(size for size in self.sizes if size != self.durable_size)]
        if len(sizes) > 1:
            yield -1, sizes
        for sector, versions in sorted(self.pending.items()):
            old = self.durable.get(sector, _NOTHING)
            options = [old, *(version for version in versions if version != old)]
            if len(options) > 1:
                yield sector, options


class Choice(NamedTuple):
    """file -1: how many of the directory's changes have happened."""

    file: int
    sector: int
    options: list[Any]


@dataclass(slots=True)
class Medium:
    """What may be on the medium after the operations so far."""

    files: dict[int, _Content] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    changes: list[dict[str, int]] = field(default_factory=list)

    def apply(self, operation: Operation) -> None:
        """One more."""
        kind, number = operation.kind, operation.file
        if kind == "create":
            self.files[number] = _Content()
            self._renamed({**self._latest(), operation.name: number})
        elif kind == "rename":
            kept = {name: file for name, file in self._latest().items() if file != number}
            self._renamed({**kept, operation.name: number})
        elif kind == "write":
            self.files[number].write(operation.offset, operation.data)
        elif kind == "punch":
            self._punch(self.files[number], operation)
        elif kind == "truncate":
            self.files[number].resize(operation.size)
        elif kind == "sync":
            self.files[number].sync()
        elif kind == "sync-directory":
            self.names = self._latest()
            self.changes = []

    def _latest(self) -> dict[str, int]:
        return self.changes[-1] if self.changes else self.names

    def _renamed(self, names: dict[str, int]) -> None:
        self.changes.append(names)

    @staticmethod
    def _punch(content: _Content, operation: Operation) -> None:
        length = min(operation.size, content.size - operation.offset)
        if length > 0:
            content.write(operation.offset, bytes(length))

    def choices(self) -> list[Choice]:
        """All that is not decided yet."""
        found = []
        if self.changes:
            found.append(Choice(-1, 0, [self.names, *self.changes]))
        for number, content in self.files.items():
            found += [Choice(number, *choice) for choice in content.choices()]
        return found

    def base(self) -> tuple[Any, ...]:
        """Changes whenever what is durable changes."""
        return (tuple(self.names.items()), *(content.syncs for content in self.files.values()))

    def put(self, choices: Sequence[Choice], picked: Sequence[int], target: Disk) -> None:
        """Makes the state on an empty disk."""
        names = self.names
        sizes: dict[int, int] = {}
        sectors: dict[int, dict[int, bytes]] = {}
        for choice, index in zip(choices, picked, strict=True):
            option = choice.options[index]
            if choice.file < 0:
                names = option
            elif choice.sector < 0:
                sizes[choice.file] = option
            elif index:
                sectors.setdefault(choice.file, {})[choice.sector] = option
        for name, number in names.items():
            content = self.files[number]
            held = content.durable
            if number in sectors:
                held = {**held, **sectors[number]}
            _fill(target, name, held, sizes.get(number, content.durable_size))
        target.sync_directory()


def _fill(target: Disk, name: str, held: dict[int, bytes], size: int) -> None:
    file = target.open(name, create=True)
    last = -1
    run: list[bytes] = []
    start = 0
    for sector in sorted(held):
        if sector * SECTOR >= size:
            break
        if sector != last + 1 and run:
            file.pwritev(run, start * SECTOR)
            run = []
        if not run:
            start = sector
        run.append(held[sector])
        last = sector
    if run:
        file.pwritev(run, start * SECTOR)
    if file.size() != size:
        file.truncate(size)
    file.datasync()
    file.close()


def picks(
    choices: Sequence[Choice], most: int, samples: int, rng: random.Random
) -> tuple[bool, Iterator[tuple[int, ...]]]:
    """All ways to choose, if there are at most `most`; else `samples` of them, the interesting ones
    first. Whether these are all."""
    if math.prod(len(choice.options) for choice in choices) <= most:
        return True, itertools.product(*(range(len(choice.options)) for choice in choices))
    return False, _sampled(choices, samples, rng)


def _sampled(
    choices: Sequence[Choice], samples: int, rng: random.Random
) -> Iterator[tuple[int, ...]]:
    newest = [len(choice.options) - 1 for choice in choices]
    files = sorted({choice.file for choice in choices})
    for number in range(samples):
        kind = number % 6
        if kind == 0:
            # One file is ahead of all others.
            ahead = rng.choice(files)
            yield tuple(
                new if choice.file == ahead else 0
                for choice, new in zip(choices, newest, strict=True)
            )
        elif kind == 1:
            # All but one sector got out: torn.
            torn = rng.randrange(len(choices))
            yield tuple(0 if at == torn else new for at, new in enumerate(newest))
        elif kind == 2:
            # The header first: of each file what lies before a place.
            sector = choices[rng.randrange(len(choices))].sector
            yield tuple(
                new if choice.sector <= sector else 0
                for choice, new in zip(choices, newest, strict=True)
            )
        elif kind == 3:
            # One file is behind all others.
            behind = rng.choice(files)
            yield tuple(
                0 if choice.file == behind else new
                for choice, new in zip(choices, newest, strict=True)
            )
        else:
            chance = rng.choice((0.1, 0.5, 0.9))
            yield tuple(rng.randint(1, new) if rng.random() < chance else 0 for new in newest)
