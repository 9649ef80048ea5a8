"""A PCI-to-PCI bridge: the number that the guest gives the bus behind it, and a window it may set.

No BARs, no capabilities, no interrupt. The memory window is kept and not enforced: what is behind
the bridge is reached wherever its own BARs are. Source: reference propolis.md §10.
"""

from __future__ import annotations

from vmmd.hw.pci import bits
from vmmd.hw.pci.cfgspace import ConfigSpace, Identity
from vmmd.hw.pci.device import PciFunction

VENDOR = 0x1DE5
DEVICE = 0x0002


class BridgeConfigSpace(ConfigSpace):
    """A type 1 header."""

    def __init__(self) -> None:
        super().__init__(
            Identity(VENDOR, DEVICE, bits.CLASS_BRIDGE, bits.SUB_CLASS_PCI_BRIDGE, 0), {}
        )
        self._store(bits.HEADER_TYPE, 1, bits.HEADER_TYPE_BRIDGE)
        for register in (bits.PRIMARY_BUS, bits.SECONDARY_BUS, bits.SUBORDINATE_BUS):
            self._store(register, 1, 0, 0xFF)
        for register in (bits.BRIDGE_MEMORY_BASE, bits.BRIDGE_MEMORY_LIMIT):
            self._store(register, 2, 0, bits.BRIDGE_MEMORY_MASK)
        self._power_on = bytes(self._bytes)


class PciBridge(PciFunction):
    """`downstream` is the number of the bus behind it on this machine, whatever the guest calls
    it."""

    def __init__(self, downstream: int) -> None:
        super().__init__(BridgeConfigSpace())
        self.downstream = downstream

    @property
    def secondary(self) -> int:
        """What the guest calls the bus behind it; 0 while it has no name."""
        return self.config.read(bits.SECONDARY_BUS, 1)
