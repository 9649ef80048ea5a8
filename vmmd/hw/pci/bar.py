"""Base address registers: what a function declares, and where the guest has put it.

The register itself lives in the configuration space's bytes; its write mask is what makes the
sizing probe (write all ones, read back) work. Sizes and addresses are in bytes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from vmmd.hw.pci import bits


class BarKind(enum.Enum):
    """Which space a BAR decodes; MEMORY64 takes two registers."""

    IO = "io"
    MEMORY32 = "memory32"
    MEMORY64 = "memory64"


@dataclass(frozen=True, slots=True)
class Bar:
    """A declared BAR. `size` is a power of two: at least 4 for IO, 16 for memory."""

    kind: BarKind
    size: int

    def __post_init__(self) -> None:
        smallest = 4 if self.kind is BarKind.IO else 16
        assert self.size >= smallest
        assert self.size & (self.size - 1) == 0

    @property
    def registers(self) -> int:
        """How many 32-bit registers it takes."""
        return 2 if self.kind is BarKind.MEMORY64 else 1

    @property
    def width(self) -> int:
        """Bytes of its registers."""
        return 4 * self.registers

    @property
    def flags(self) -> int:
        """The read-only low bits of the register."""
        if self.kind is BarKind.IO:
            return bits.BAR_TYPE_IO
        return bits.BAR_TYPE_MEMORY64 if self.kind is BarKind.MEMORY64 else 0

    @property
    def write_mask(self) -> int:
        """The address bits a guest can change."""
        flag_bits = bits.BAR_IO_FLAGS if self.kind is BarKind.IO else bits.BAR_MEMORY_FLAGS
        return bits.all_ones(self.width) & ~(self.size - 1) & ~flag_bits


class BarWindow(NamedTuple):
    """A BAR that is being decoded: [start, end) of its space belongs to BAR `bar`."""

    start: int
    end: int
    bar: int
    kind: BarKind
