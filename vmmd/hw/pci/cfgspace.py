"""Configuration space of one function, type 0 header.

One array of bytes and one of write masks hold everything: a read is a slice, a write changes the
masked bits. So partial accesses, reserved areas and the BAR sizing probe need no code of their own.
Invariant: bytes outside the masks change only through `set_*` calls of the device itself.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmmd.hw.pci import bits
from vmmd.hw.pci.bar import Bar, BarKind, BarWindow


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the function says it is."""

    vendor: int
    device: int
    base_class: int
    sub_class: int
    interface: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0


@dataclass(frozen=True, slots=True)
class Capability:
    """One entry of the capability list: the bytes after id and next pointer, and which bits the
    guest may write (a mask as long as the body; empty means none)."""

    identifier: int
    body: bytes
    write_mask: bytes = b""


class ConfigSpace:
    """The 4096 bytes a guest sees of a function."""

    def __init__(
        self,
        identity: Identity,
        bars: Mapping[int, Bar],
        capabilities: Sequence[Capability] = (),
    ) -> None:
        self._bytes = bytearray(bits.CONFIG_BYTES)
        self._masks = bytearray(bits.CONFIG_BYTES)
        self._bars = dict(sorted(bars.items()))
        self._capability_offsets: dict[int, int] = {}
        self._write_identity(identity)
        self._declare_bars()
        self._declare_capabilities(capabilities)
        self._power_on = bytes(self._bytes)

    @property
    def bars(self) -> Mapping[int, Bar]:
        """The declared BARs by register index."""
        return self._bars

    def capability_offset(self, identifier: int) -> int:
        """Where the capability's id byte is; KeyError when it is not declared."""
        return self._capability_offsets[identifier]

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset` as a little-endian integer; all ones beyond the space."""
        if offset < 0 or offset + size > bits.CONFIG_BYTES:
            return bits.all_ones(size)
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Changes what the masks allow; the rest of the write vanishes."""
        if offset < 0 or offset + size > bits.CONFIG_BYTES:
            return
        mask = int.from_bytes(self._masks[offset : offset + size], "little")
        old = self.read(offset, size)
        merged = (old & ~mask) | (value & mask)
        self._bytes[offset : offset + size] = merged.to_bytes(size, "little")

    def set_multifunction(self) -> None:
        """Marks the slot as having more than one function; survives a reset."""
        self._bytes[bits.HEADER_TYPE] |= bits.HEADER_TYPE_MULTIFUNCTION
        power_on = bytearray(self._power_on)
        power_on[bits.HEADER_TYPE] |= bits.HEADER_TYPE_MULTIFUNCTION
        self._power_on = bytes(power_on)

    def set_value(self, offset: int, size: int, value: int) -> None:
        """For the device itself: changes bytes whatever their masks."""
        self._bytes[offset : offset + size] = value.to_bytes(size, "little")

    @property
    def command(self) -> int:
        """The command register."""
        return self.read(bits.COMMAND, 2)

    def windows(self) -> list[BarWindow]:
        """The BARs decoded now: those whose space is enabled and whose address is not 0."""
        found = []
        command = self.command
        for index, bar in self._bars.items():
            needed = bits.COMMAND_IO if bar.kind is BarKind.IO else bits.COMMAND_MEMORY
            start = self.read(bits.BAR0 + 4 * index, bar.width) & bar.write_mask
            if command & needed and start:
                found.append(BarWindow(start, start + bar.size, index, bar.kind))
        return found

    def reset(self) -> None:
        """Power-on content: BARs zero, decoding off."""
        self._bytes[:] = self._power_on

    def _store(self, offset: int, size: int, value: int, mask: int = 0) -> None:
        self._bytes[offset : offset + size] = value.to_bytes(size, "little")
        self._masks[offset : offset + size] = mask.to_bytes(size, "little")

    def _write_identity(self, identity: Identity) -> None:
        self._store(bits.VENDOR_ID, 2, identity.vendor)
        self._store(bits.DEVICE_ID, 2, identity.device)
        self._store(bits.COMMAND, 2, 0, bits.COMMAND_WRITABLE)
        self._store(bits.REVISION_ID, 1, identity.revision)
        self._store(bits.PROGRAMMING_INTERFACE, 1, identity.interface)
        self._store(bits.SUB_CLASS, 1, identity.sub_class)
        self._store(bits.BASE_CLASS, 1, identity.base_class)
        self._store(bits.SUBSYSTEM_VENDOR_ID, 2, identity.subsystem_vendor)
        self._store(bits.SUBSYSTEM_ID, 2, identity.subsystem)
        self._store(bits.INTERRUPT_LINE, 1, 0xFF, 0xFF)

    def _declare_bars(self) -> None:
        taken: set[int] = set()
        for index, bar in self._bars.items():
            registers = set(range(index, index + bar.registers))
            assert max(registers) < bits.BAR_COUNT
            assert not taken & registers
            taken |= registers
            self._store(bits.BAR0 + 4 * index, bar.width, bar.flags, bar.write_mask)

    def _declare_capabilities(self, capabilities: Sequence[Capability]) -> None:
        offset = bits.HEADER_BYTES
        link = bits.CAPABILITIES_POINTER
        for capability in capabilities:
            body = capability.body
            mask = capability.write_mask or bytes(len(body))
            assert len(mask) == len(body)
            assert offset + 2 + len(body) <= 256
            self._bytes[link] = offset
            self._capability_offsets[capability.identifier] = offset
            self._bytes[offset] = capability.identifier
            self._bytes[offset + 2 : offset + 2 + len(body)] = body
            self._masks[offset + 2 : offset + 2 + len(body)] = mask
            link = offset + 1
            # Capabilities start at multiples of four.
            offset += (2 + len(body) + 3) & ~3
        if capabilities:
            self._store(bits.STATUS, 2, bits.STATUS_CAPABILITY_LIST)


# PCI Express capability, version 2, of an endpoint: device and link as far as they are checked.
_EXPRESS_BODY = struct.Struct("<HIHHIHH40x")
_EXPRESS_VERSION = 2
# The only width and speed: one lane, 2.5 GT/s.
_EXPRESS_LINK = 1 << 4 | 1
_EXPRESS_ROLE_BASED_ERRORS = 1 << 15


def express_capability() -> Capability:
    """Says that the function is a PCI Express endpoint, which NVMe has to be."""
    body = _EXPRESS_BODY.pack(
        _EXPRESS_VERSION, _EXPRESS_ROLE_BASED_ERRORS, 0, 0, _EXPRESS_LINK, 0, _EXPRESS_LINK
    )
    return Capability(bits.CAPABILITY_EXPRESS, body)
