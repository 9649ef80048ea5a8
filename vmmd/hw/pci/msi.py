"""MSI: up to 32 vectors in one message whose low data bits tell them apart, all of it in the
configuration space: address, data, masks and pending bits (PCI Local Bus 3.0, section 6.8.1).

A vector that fires while masked becomes pending and is sent when it is unmasked; one that fires
while MSI is off is dropped, since the guest then polls. A guest may enable fewer vectors than there
are: they wrap around.
"""

from __future__ import annotations

import struct

from vmmd.hw.pci import bits
from vmmd.hw.pci.cfgspace import Capability, ConfigSpace
from vmmd.hw.pci.msix import SendMessage

# After id and next pointer: control, address, data, padding, masks, pending bits.
_BODY = struct.Struct("<HQHHII")
_CONTROL, _ADDRESS, _DATA, _MASK, _PENDING = 2, 4, 12, 16, 20
VECTORS_MAX = 32


class Msi:
    """`vectors`, a power of two; `send` gets each message that goes out. `bind` before use."""

    def __init__(self, vectors: int, send: SendMessage) -> None:
        assert 1 <= vectors <= VECTORS_MAX
        assert vectors & (vectors - 1) == 0
        self.vectors = vectors
        self._send = send
        self._config: ConfigSpace | None = None
        self._place = 0

    def capability(self) -> Capability:
        """The configuration space entry: 64-bit address, masks of each vector."""
        capable = (self.vectors.bit_length() - 1) << bits.MSI_CAPABLE_SHIFT
        control = bits.MSI_64BIT | bits.MSI_MASKABLE | capable
        writable = bits.MSI_ENABLE | bits.MSI_ENABLED_MASK
        body = _BODY.pack(control, 0, 0, 0, 0, 0)
        address = bits.all_ones(8) & ~3
        mask = _BODY.pack(writable, address, 0xFFFF, 0, self._all, 0)
        return Capability(bits.CAPABILITY_MSI, body, mask)

    @property
    def _all(self) -> int:
        return (1 << self.vectors) - 1

    def bind(self, config: ConfigSpace) -> None:
        """The configuration space that holds the capability."""
        self._config = config
        self._place = config.capability_offset(bits.CAPABILITY_MSI)

    def config_written(self) -> None:
        """Sends what a write has unmasked."""
        pending = self._read(_PENDING, 4) & ~self._read(_MASK, 4)
        if pending and self._enabled:
            self._set_pending(self._read(_PENDING, 4) & ~pending)
            for vector in range(self.vectors):
                if pending >> vector & 1:
                    self.fire(vector)

    def fire(self, vector: int) -> None:
        """Raises `vector`: sent, remembered or dropped by its mask."""
        assert 0 <= vector < self.vectors
        if not self._enabled:
            return
        shift = self._read(_CONTROL, 2) >> bits.MSI_ENABLED_SHIFT & 0x7
        number = vector % min(1 << shift, self.vectors)
        if self._read(_MASK, 4) >> number & 1:
            self._set_pending(self._read(_PENDING, 4) | 1 << number)
            return
        low = min(1 << shift, self.vectors) - 1
        self._send(self._read(_ADDRESS, 8), self._read(_DATA, 2) & ~low | number)

    def reset(self) -> None:
        """Nothing is kept here; the configuration space has its power-on content."""

    @property
    def _enabled(self) -> bool:
        return bool(self._read(_CONTROL, 2) & bits.MSI_ENABLE)

    def _read(self, offset: int, size: int) -> int:
        assert self._config is not None
        return self._config.read(self._place + offset, size)

    def _set_pending(self, pending: int) -> None:
        assert self._config is not None
        self._config.set_value(self._place + _PENDING, 4, pending)
