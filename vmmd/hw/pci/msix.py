"""MSI-X: the table of messages, its masks, and the pending bits.

The table and the pending-bit array live in one BAR: the table at 0, the array on the next 4 KiB
boundary. A vector that fires while masked becomes pending and is sent when it is unmasked; one that
fires while MSI-X is off is dropped, since the guest then polls. Entries start masked.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from vmmd.hw.pci import bits
from vmmd.hw.pci.bar import Bar, BarKind
from vmmd.hw.pci.cfgspace import Capability

# (address, data) of a message-signalled interrupt.
SendMessage = Callable[[int, int], None]

_ENTRY = struct.Struct("<QII")


class MsixTable:
    """`vectors` entries; `send` gets each message that goes out."""

    def __init__(self, vectors: int, bar_index: int, send: SendMessage) -> None:
        assert 1 <= vectors <= 2048
        self.vectors = vectors
        self._bar_index = bar_index
        self._send = send
        self._enabled = False
        self._function_masked = False
        table_bytes = vectors * bits.MSIX_ENTRY_BYTES
        self._pending_offset = -(-table_bytes // bits.PAGE_BYTES) * bits.PAGE_BYTES
        self._table = bytearray(table_bytes)
        self._pending = bytearray(-(-vectors // 64) * 8)
        self.reset()

    @property
    def bar(self) -> Bar:
        """The BAR that holds table and pending bits."""
        size = self._pending_offset + bits.PAGE_BYTES
        return Bar(BarKind.MEMORY32, 1 << (size - 1).bit_length())

    def capability(self) -> Capability:
        """The configuration space entry that announces the table."""
        body = struct.pack(
            "<HII", self.vectors - 1, self._bar_index, self._pending_offset | self._bar_index
        )
        control = bits.MSIX_ENABLE | bits.MSIX_FUNCTION_MASK
        return Capability(bits.CAPABILITY_MSIX, body, struct.pack("<HII", control, 0, 0))

    def control_written(self, control: int) -> None:
        """Takes the message control register's new value and sends what that unmasked."""
        self._enabled = bool(control & bits.MSIX_ENABLE)
        self._function_masked = bool(control & bits.MSIX_FUNCTION_MASK)
        self._send_unmasked()

    def fire(self, vector: int) -> None:
        """Raises `vector`: sent, remembered or dropped by its masks."""
        assert 0 <= vector < self.vectors
        if not self._enabled:
            return
        address, data, control = _ENTRY.unpack_from(self._table, vector * bits.MSIX_ENTRY_BYTES)
        if self._function_masked or control & bits.MSIX_ENTRY_MASKED:
            self._pending[vector // 8] |= 1 << (vector % 8)
            return
        self._send(address, data)

    def read(self, offset: int, size: int) -> int:
        """A guest's read in the BAR; areas without meaning read 0."""
        if offset >= self._pending_offset:
            source, offset = self._pending, offset - self._pending_offset
        else:
            source = self._table
        if offset + size > len(source):
            return 0
        return int.from_bytes(source[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest's write in the BAR; the pending bits are read-only."""
        if offset + size > len(self._table):
            return
        self._table[offset : offset + size] = (value & bits.all_ones(size)).to_bytes(size, "little")
        self._send_unmasked()

    def reset(self) -> None:
        """Every entry zero and masked, nothing pending, MSI-X off."""
        self._enabled = False
        self._function_masked = False
        self._pending[:] = bytes(len(self._pending))
        for vector in range(self.vectors):
            _ENTRY.pack_into(
                self._table, vector * bits.MSIX_ENTRY_BYTES, 0, 0, bits.MSIX_ENTRY_MASKED
            )

    def _send_unmasked(self) -> None:
        if not self._enabled or self._function_masked or not any(self._pending):
            return
        for vector in range(self.vectors):
            bit = 1 << (vector % 8)
            if self._pending[vector // 8] & bit:
                self._pending[vector // 8] &= ~bit
                # Still masked by its entry: fire() makes it pending again.
                self.fire(vector)
